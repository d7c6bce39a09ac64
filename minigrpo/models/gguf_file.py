"""GGUF files of the Llama family: the metadata, the tensors dequantised, the tokenizer.

The file is mapped into memory, not read.  Header and tensor table are checked against the file's size before anything is allocated,
and only what this model computes exactly is let through.  GGUF keeps the rows of Q and K in the order that this model uses, rotated
neighbours side by side, so they are taken as they are.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3).  Dequantisation: the gguf package.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minigrpo.models.packages import need
from minigrpo.models.text_tokenizer import TextTokenizer, byte_level_tokenizer
from minigrpo.parameters import TransformerConfig

SCALARS = dict(enumerate(("B", "b", "H", "h", "I", "i", "f", "?", None, None, "Q", "q", "d")))  # GGUF value types as struct letters
STRING, ARRAY = 8, 9
MAX_DIMENSIONS = 4
CONTROL = 3  # the type of a special token
QUANTISATIONS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in the file: shape (outputs, inputs), quantisation, first byte."""

    shape: tuple[int, ...]
    kind: str
    start: int


class GGUFFile:
    """An open GGUF file.   metadata: key -> value; tensors: this package's parameter name -> TensorInfo.

    Raises ValueError if the file is no GGUF, is cut short, or holds what is not supported.
    """

    def __init__(self, path: str | Path) -> None:
        need("gguf")
        self.path = Path(path)
        with open(self.path, "rb") as file:
            size = self.path.stat().st_size
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        if self._data[:4] != b"GGUF":
            raise ValueError(f"{self.path} is not a GGUF file (it does not begin with the letters GGUF)")
        self._at = 4
        (version,) = self._unpack("I")
        if version not in (2, 3):
            raise ValueError(f"{self.path} is GGUF of version {version}: versions 2 and 3 (little-endian) are read")
        n_tensors, n_values = self._unpack("QQ")
        self.metadata: dict[str, Any] = {}
        for _ in range(n_values):
            key = self._string()
            self.metadata[key] = self._value(self._unpack("I")[0])
        table = [self._tensor() for _ in range(n_tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"{self.path} is damaged: its alignment is {alignment!r}")
        start = -(-self._at // alignment) * alignment
        self.tensors: dict[str, TensorInfo] = {}
        for name, shape, kind, offset in table:
            info = TensorInfo(shape, kind, start + offset)
            if info.start + self.stored_bytes(info) > len(self._data):
                raise ValueError(f"{self.path} is cut short: tensor {name} would end after the file does; fetch it again")
            self.tensors[self._parameter(name)] = info

    # -- the model ---------------------------------------------------------------------------------------------------

    def config(self, max_seq_len: int | None = None) -> TransformerConfig:
        """The model's shape.   Raises ValueError for another architecture than `llama`, and for variants of it."""
        architecture = self.metadata.get("general.architecture")
        if architecture != "llama":
            raise ValueError(f"{self.path} holds a model of architecture {architecture!r}: only llama is supported")
        if self._number("rope.scaling.type", "none") not in ("none", ""):
            raise ValueError(f"{self.path} scales rotary positions ({self._number('rope.scaling.type')}): that is not supported")
        if self._number("expert_count", 0):
            raise ValueError(f"{self.path} is a mixture of experts: that is not supported")
        embedding = self.tensors.get("model.embed_tokens.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise ValueError(f"{self.path} has no token embedding (token_embd.weight)")
        n_layers, heads = self._whole("block_count"), self._whole("attention.head_count")
        if n_layers > len(self.tensors):
            raise ValueError(f"{self.path} is damaged: {n_layers} layers but {len(self.tensors)} tensors")
        dim = self._whole("embedding_length")
        head_dim = self._whole("attention.key_length", dim // heads)
        for key in ("attention.value_length", "rope.dimension_count"):
            if self._whole(key, head_dim) != head_dim:
                raise ValueError(f"{self.path}: {key} is {self._number(key)}, but heads are {head_dim} wide: that is not supported")
        context = self._whole("context_length")
        config = TransformerConfig(
            vocab_size=embedding.shape[0],
            dim=dim,
            n_layers=n_layers,
            n_heads=heads,
            n_kv_heads=self._whole("attention.head_count_kv", heads),
            ffn_dim=self._whole("feed_forward_length"),
            max_seq_len=min(context, max_seq_len or context),
            rope_base=self._real("rope.freq_base", 10_000.0),
            norm_eps=self._real("attention.layer_norm_rms_epsilon"),
            tie_embeddings="lm_head.weight" not in self.tensors,
            head_dim=head_dim,
        )
        check_tensors(self.path, {name: info.shape for name, info in self.tensors.items()}, config)
        return config

    def read(self, name: str) -> np.ndarray:
        """One parameter, dequantised.   -> float32"""
        from gguf import GGMLQuantizationType, quants

        info = self.tensors[name]
        raw = np.frombuffer(self._data, dtype=np.uint8, count=self.stored_bytes(info), offset=info.start)
        if info.kind == "F32":
            return raw.view(np.float32).reshape(info.shape)
        rows = raw.reshape(*info.shape[:-1], -1)
        kind = GGMLQuantizationType[info.kind]
        rows = rows.view(np.float16) if info.kind == "F16" else rows
        return quants.dequantize(rows, kind).reshape(info.shape)

    def stored_bytes(self, info: TensorInfo) -> int:
        """How many bytes of the file a tensor takes."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[info.kind]]
        return math.prod(info.shape) // block * size

    def tokenizer(self) -> TextTokenizer:
        """The file's tokenizer.   Raises ValueError for one that cannot be rebuilt exactly."""
        kind, pre = self.metadata.get("tokenizer.ggml.model"), self.metadata.get("tokenizer.ggml.pre")
        if kind != "gpt2" or pre not in ("smollm", "gpt-2"):
            raise ValueError(
                f"{self.path} has a tokenizer of kind {kind!r} ({pre!r}), which is not rebuilt from GGUF: "
                "put the model's tokenizer.json beside the file"
            )
        tokens, types = self.metadata.get("tokenizer.ggml.tokens"), self.metadata.get("tokenizer.ggml.token_type", ())
        merges, eos = self.metadata.get("tokenizer.ggml.merges"), self.metadata.get("tokenizer.ggml.eos_token_id")
        special = [token for token, type_ in zip(tokens or (), types, strict=False) if type_ == CONTROL]
        try:
            return byte_level_tokenizer(
                tokens, merges, special, eos=eos, vocab_size=self.config().vocab_size, split_digits=pre == "smollm"
            )
        except Exception as error:  # the tokenizers package raises bare Exception
            raise ValueError(f"{self.path} holds a damaged tokenizer ({error}): fetch it again") from error

    # -- the format --------------------------------------------------------------------------------------------------

    def _take(self, n: int) -> bytes:
        if self._at + n > len(self._data):
            raise ValueError(f"{self.path} is cut short or damaged: its header asks for more bytes than the file has")
        self._at += n
        return self._data[self._at - n : self._at]

    def _unpack(self, letters: str) -> tuple:
        return struct.unpack("<" + letters, self._take(struct.calcsize("<" + letters)))

    def _string(self) -> str:
        return self._take(self._unpack("Q")[0]).decode("utf-8", errors="replace")

    def _value(self, type_: int) -> Any:
        if type_ == STRING:
            return self._string()
        if type_ == ARRAY:
            item, n = self._unpack("IQ")
            if item == STRING:
                return [self._string() for _ in range(n)]
            letter = self._letter(item)
            return np.frombuffer(self._take(n * struct.calcsize("<" + letter)), dtype=np.dtype(letter))
        return self._unpack(self._letter(type_))[0]

    def _letter(self, type_: int) -> str:
        if SCALARS.get(type_) is None:
            raise ValueError(f"{self.path} is damaged: its metadata has a value of unknown type {type_}")
        return SCALARS[type_]

    def _tensor(self) -> tuple[str, tuple[int, ...], str, int]:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        name, (n,) = self._string(), self._unpack("I")
        if not 1 <= n <= MAX_DIMENSIONS:
            raise ValueError(f"{self.path} is damaged: tensor {name!r} has {n} dimensions")
        shape = self._unpack("Q" * n)[::-1]  # GGUF counts the innermost dimension first
        number, offset = self._unpack("IQ")
        kind = GGMLQuantizationType(number).name if number in GGMLQuantizationType._value2member_map_ else f"number {number}"
        if kind not in QUANTISATIONS:
            raise ValueError(f"{self.path}: tensor {name!r} has quantisation {kind}: supported are {', '.join(QUANTISATIONS)}")
        block, _ = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        if not all(shape) or shape[-1] % block:
            raise ValueError(f"{self.path} is damaged: tensor {name!r} of shape {shape} cannot be stored as {kind}")
        return name, shape, kind, offset

    def _parameter(self, name: str) -> str:
        parts = name.split(".")
        if parts[0] == "blk" and len(parts) == 4 and parts[2] in LAYER_NAMES and parts[3] == "weight":
            return f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}.weight"
        if len(parts) == 2 and parts[0] in TOP_NAMES and parts[1] == "weight":
            return TOP_NAMES[parts[0]] + ".weight"
        raise ValueError(f"{self.path}: tensor {name!r} belongs to a kind of model that is not supported")

    def _number(self, key: str, default: Any = None) -> Any:
        value = self.metadata.get(f"llama.{key}", default)
        if value is None:
            raise ValueError(f"{self.path} is damaged: it lacks llama.{key}")
        return value

    def _real(self, key: str, default: float | None = None) -> float:
        value = self._number(key, default)
        if not isinstance(value, int | float):
            raise ValueError(f"{self.path}: llama.{key} is {value!r}, it should be a number")
        return float(f"{value:.6g}")  # stored in float32: 1e-5 reads as 9.999999747378752e-06

    def _whole(self, key: str, default: int | None = None) -> int:
        value = self._number(key, default)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{self.path}: llama.{key} is {value!r}, it should be a whole number above 0 (the same in all layers)")
        return value


def check_tensors(path: Path, found: Mapping[str, tuple[int, ...]], config: TransformerConfig) -> None:
    """Raises ValueError unless a file has exactly the parameters of this shape of model."""
    expected = config.shapes()
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing:
        raise ValueError(f"{path} lacks {len(missing)} tensors of a Llama model, such as {missing[0]}")
    if extra:
        raise ValueError(f"{path} has {len(extra)} tensors that a plain Llama model has not, such as {extra[0]}: not supported")
    for name, shape in expected.items():
        if tuple(found[name]) != shape:
            raise ValueError(f"{path}: {name} has shape {tuple(found[name])}, the configuration says {shape}")
