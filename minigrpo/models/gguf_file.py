"""GGUF files of the Llama family: the metadata, the tensors dequantised, the tokenizer.

The file is mapped into memory, not read.  Header and tensor table are checked against the file's size before anything is allocated,
and only what this model computes exactly is let through: every key of the header is known, or refused.
GGUF keeps the rows of Q and K in the order that this model uses, rotated neighbours side by side, so they are taken as they are.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3).  Dequantisation: the gguf package.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minigrpo.engine.parameters import TransformerConfig
from minigrpo.models.packages import need, refusing, shown
from minigrpo.models.text_tokenizer import TextTokenizer, byte_level_tokenizer

SCALARS = dict(
    enumerate(("B", "b", "H", "h", "I", "i", "f", "?", None, None, "Q", "q", "d"))
)  # GGUF value types as struct letters
STRING, ARRAY = 8, 9
MAX_DIMENSIONS = 4
UNKNOWN, CONTROL, USER_DEFINED = (
    2,
    3,
    4,
)  # types of tokens that are found in a text before it is split
TOKEN_TYPES = (
    1,
    UNKNOWN,
    CONTROL,
    USER_DEFINED,
    5,
)  # 1 is an ordinary token, 5 one that no text has
QUANTISATIONS = (
    "F32",
    "F16",
    "BF16",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
)
ROPE_BASES, NORM_EPSILONS = (1.0, 1e30), (1e-30, 1.0)  # what a model may have
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
HARMLESS = re.compile(  # keys that change no number, or are read below
    r"general\.(?!type$|quantization_version$)|quantize\.|mradermacher\.|split\.tensors\.count$"
    r"|tokenizer\.(chat_template|huggingface\.json$)"
    r"|tokenizer\.ggml\.(\w+_token_id|model|pre|tokens|token_type|scores|merges|add_bos_token)$"
    r"|llama\.(vocab_size|context_length|embedding_length|block_count|feed_forward_length)$"
    r"|llama\.rope\.(dimension_count|freq_base|scaling\.original_context_length|scaling\.finetuned)$"
    r"|llama\.attention\.(head_count|head_count_kv|key_length|value_length|layer_norm(_rms)?_epsilon)$"
)
NEUTRAL = (  # what other keys may say without changing a number; tokenizers are those of the GPT-2 kind
    {
        "general.type": ("model",),
        "general.quantization_version": (2,),
        "split.count": (0, 1),
        "split.no": (0,),
    }
    | {"llama.rope.scaling.type": ("none", ""), "llama.rope.scaling.attn_factor": (1,)}
    | {"llama.rope.scaling.factor": (0, 1), "llama.rope.scale_linear": (0, 1)}
    | {
        "llama.expert_count": (0,),
        "llama.expert_used_count": (0,),
        "llama.attention.causal": (True,),
    }
    | {
        "llama.tensor_data_layout": ("Meta AI original pth",),
        "llama.use_parallel_residual": (False,),
    }
    | {"tokenizer.ggml.remove_extra_whitespaces": (False,)}
    | {
        f"tokenizer.ggml.add_{what}": (False,)
        for what in ("eos_token", "sep_token", "space_prefix")
    }
)
REASONS = {
    "split.": "is one of several parts",
    ".rope.": "scales rotary positions",
    ".expert_": "is a mixture of experts",
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
        self.path, self._gguf = Path(path), need("gguf")
        with open(self.path, "rb") as file:
            size = self.path.stat().st_size
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        if self._data[:4] != b"GGUF":
            raise ValueError(
                f"{self.path} is not a GGUF file (it does not begin with the letters GGUF)"
            )
        self._at = 4
        (version,) = self._unpack("I")
        if version not in (2, 3):
            raise ValueError(
                f"{self.path} is GGUF of version {version}: versions 2 and 3 (little-endian) are read"
            )
        n_tensors, n_values = self._unpack("QQ")
        self.metadata: dict[str, Any] = {}
        for _ in range(n_values):
            key = self._string()
            if key in self.metadata:
                raise ValueError(f"{self.path} is damaged: it says {shown(key)} twice")
            self.metadata[key] = self._value(self._unpack("I")[0])
        table = [self._tensor() for _ in range(n_tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(
                f"{self.path} is damaged: its alignment is {shown(alignment)}, it should be a power of two"
            )
        end = start = -(-self._at // alignment) * alignment
        self.tensors: dict[str, TensorInfo] = {}
        for name, shape, kind, offset in sorted(
            table, key=lambda row: row[3]
        ):  # in the order in which they lie in the file
            info, parameter = TensorInfo(shape, kind, start + offset), self._parameter(name)
            if parameter in self.tensors or info.start < end or offset % alignment:
                raise ValueError(
                    f"{self.path} is damaged: tensor {shown(name)} is there twice, overlaps another or is not aligned"
                )
            end = info.start + self.stored_bytes(info)
            if end > len(self._data):
                raise ValueError(
                    f"{self.path} is cut short: tensor {shown(name)} would end after the file does; fetch it again"
                )
            self.tensors[parameter] = info

    # -- the model ---------------------------------------------------------------------------------------------------

    def config(self, max_seq_len: int | None = None) -> TransformerConfig:
        """The model's shape.   Raises ValueError for another architecture than `llama`, and for variants of it."""
        architecture = self.metadata.get("general.architecture")
        if architecture != "llama":
            raise ValueError(
                f"{self.path} holds a model of architecture {shown(architecture)}: only llama is supported"
            )
        self._check_keys(tokenizer=False)
        embedding = self.tensors.get("model.embed_tokens.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise ValueError(f"{self.path} has no token embedding (token_embd.weight)")
        n_layers, heads = self._whole("block_count"), self._whole("attention.head_count")
        if n_layers > len(self.tensors):
            raise ValueError(
                f"{self.path} is damaged: {n_layers} layers but {len(self.tensors)} tensors"
            )
        dim = self._whole("embedding_length")
        head_dim = self._whole("attention.key_length", dim // heads)
        for key in ("attention.value_length", "rope.dimension_count"):
            if self._whole(key, head_dim) != head_dim:
                raise ValueError(
                    f"{self.path}: {key} is {self._number(key)}, but heads are {head_dim} wide: that is not supported"
                )
        context = self._whole("context_length")
        shape = {
            "vocab_size": embedding.shape[0],
            "dim": dim,
            "n_layers": n_layers,
            "n_heads": heads,
            "n_kv_heads": self._whole("attention.head_count_kv", heads),
            "ffn_dim": self._whole("feed_forward_length"),
            "max_seq_len": min(context, max_seq_len or context),
            "rope_base": self._real("rope.freq_base", ROPE_BASES, 10_000.0),
            "norm_eps": self._real("attention.layer_norm_rms_epsilon", NORM_EPSILONS),
            "tie_embeddings": "lm_head.weight" not in self.tensors,
            "head_dim": head_dim,
        }
        with refusing(str(self.path)):
            config = TransformerConfig(**shape)
        check_tensors(self.path, {name: info.shape for name, info in self.tensors.items()}, config)
        return config

    def read(self, name: str, config: TransformerConfig | None = None) -> np.ndarray:
        """One parameter, dequantised; its order needs no config.   -> float32"""
        info = self.tensors[name]
        raw = np.frombuffer(
            self._data, dtype=np.uint8, count=self.stored_bytes(info), offset=info.start
        )
        rows, kind = raw.reshape(*info.shape[:-1], -1), self._gguf.GGMLQuantizationType[info.kind]
        return self._gguf.quants.dequantize(rows, kind).reshape(info.shape)

    def stored_bytes(self, info: TensorInfo) -> int:
        """How many bytes of the file a tensor takes."""
        block, size = self._gguf.GGML_QUANT_SIZES[self._gguf.GGMLQuantizationType[info.kind]]
        return math.prod(info.shape) // block * size

    def tokenizer(self) -> TextTokenizer:
        """The file's tokenizer.   Raises ValueError for one that cannot be rebuilt exactly."""
        kind, pre = (
            self.metadata.get("tokenizer.ggml.model"),
            self.metadata.get("tokenizer.ggml.pre"),
        )
        if kind != "gpt2" or pre not in ("smollm", "gpt-2"):
            raise ValueError(
                f"{self.path} has a tokenizer of kind {shown(kind)} ({shown(pre)}), which is not rebuilt from GGUF: "
                "put the model's tokenizer.json beside the file"
            )
        self._check_keys(tokenizer=True)
        keys = "tokens", "token_type", "merges", "add_bos_token", "bos_token_id", "eos_token_id"
        tokens, types, merges, add_bos, bos, eos = (
            self.metadata.get(f"tokenizer.ggml.{key}") for key in keys
        )
        with refusing(f"{self.path} holds a damaged tokenizer"):
            if len(tokens) != len(types) or not set(types) <= set(TOKEN_TYPES):
                raise ValueError("its tokens need a type each")
            if isinstance(eos, bool):
                raise ValueError(f"its EOS is {eos}")
            if add_bos not in (None, False) and not (
                add_bos is True and type(bos) is int and 0 <= bos < len(tokens)
            ):
                raise ValueError("texts should begin with a BOS that it does not name")
            special = [
                token
                for token, type_ in zip(tokens, types, strict=True)
                if type_ in (UNKNOWN, CONTROL)
            ]
            added = [
                token for token, type_ in zip(tokens, types, strict=True) if type_ == USER_DEFINED
            ]
            size, tokenizers = self.config().vocab_size, need("tokenizers")
            built = byte_level_tokenizer(
                tokens, merges, special, eos=eos, vocab_size=size, split_digits=pre == "smollm"
            )
            built.core.add_tokens(
                [tokenizers.AddedToken(token, normalized=False) for token in added]
            )
            if add_bos:
                start = {"id": "BOS", "ids": [bos], "tokens": [tokens[bos]]}
                built.core.post_processor = tokenizers.processors.TemplateProcessing(
                    single="BOS $A", special_tokens=[start]
                )
            return built

    def check_tokenizer(self, other: TextTokenizer) -> None:
        """Raises ValueError where the header contradicts a tokenizer.json beside the file: ordinary tokens, EOS, BOS."""
        header = {
            key: self.metadata.get(f"tokenizer.ggml.{key}")
            for key in ("tokens", "token_type", "add_bos_token")
        }
        tokens, types, add_bos = header.values()
        with refusing(
            f"the tokenizer.json beside {self.path} is not this model's, or one of them is damaged"
        ):
            for token, i in other.core.get_vocab().items() if tokens is not None else ():
                if i >= len(tokens) or (tokens[i] != token and (types is None or types[i] == 1)):
                    raise ValueError(
                        f"token {i} is {shown(token)} there and {shown(tokens[i : i + 1])} here"
                    )
            if any(other.core.id_to_token(end) is None for end in other.ends):
                raise ValueError(f"it has no token {other.ends}, which ends a completion")
            first, bos = (
                other.encode("a")[:1].tolist(),
                self.metadata.get("tokenizer.ggml.bos_token_id"),
            )
            added = len(other.encode("a")) > len(
                other.core.encode("a", add_special_tokens=False).ids
            )
            if add_bos is not None and (added != bool(add_bos) or (added and first != [bos])):
                raise ValueError(
                    f"a text begins with {first} there; add_bos_token is {add_bos} here, and BOS {bos}"
                )

    def _check_keys(self, tokenizer: bool) -> None:
        """Raises ValueError for a key, of the tokenizer or of the rest, that may change what is computed."""
        for key, value in self.metadata.items():
            if key.startswith("tokenizer.") != tokenizer or HARMLESS.match(key):
                continue
            foreign = isinstance(value, str) and not key.startswith(
                ("general.", "llama.", "tokenizer.")
            )
            if not foreign and value not in NEUTRAL.get(key, ()):
                reason = next(
                    (text for part, text in REASONS.items() if part in key),
                    "has a key that may change what is computed",
                )
                value = shown(value, quotes=not isinstance(value, str))
                raise ValueError(
                    f"{self.path} {reason} ({value}): {shown(key)} of its header is not supported"
                )

    # -- the format --------------------------------------------------------------------------------------------------

    def _take(self, n: int) -> bytes:
        if self._at + n > len(self._data):
            raise ValueError(
                f"{self.path} is cut short or damaged: its header asks for more bytes than the file has"
            )
        self._at += n
        return self._data[self._at - n : self._at]

    def _unpack(self, letters: str) -> tuple:
        return struct.unpack("<" + letters, self._take(struct.calcsize("<" + letters)))

    def _string(self) -> str:
        return self._take(self._unpack("Q")[0]).decode("utf-8", errors="surrogateescape")

    def _value(self, type_: int) -> Any:
        if type_ == STRING:
            return self._string()
        if type_ == ARRAY:
            item, n = self._unpack("IQ")
            if item == STRING:
                return [self._string() for _ in range(n)]
            letter = self._letter(item)
            return np.frombuffer(
                self._take(n * struct.calcsize("<" + letter)), dtype=np.dtype(letter)
            ).tolist()
        return self._unpack(self._letter(type_))[0]

    def _letter(self, type_: int) -> str:
        if SCALARS.get(type_) is None:
            raise ValueError(
                f"{self.path} is damaged: its metadata has a value of unknown type {type_}"
            )
        return SCALARS[type_]

    def _tensor(self) -> tuple[str, tuple[int, ...], str, int]:
        name, (n,) = self._string(), self._unpack("I")
        if not 1 <= n <= MAX_DIMENSIONS:
            raise ValueError(f"{self.path} is damaged: tensor {shown(name)} has {n} dimensions")
        shape = self._unpack("Q" * n)[::-1]  # GGUF counts the innermost dimension first
        number, offset = self._unpack("IQ")
        kind = {kind.value: kind.name for kind in self._gguf.GGMLQuantizationType}.get(
            number, f"number {number}"
        )
        if kind not in QUANTISATIONS:
            raise ValueError(
                f"{self.path}: tensor {shown(name)} has quantisation {kind}: supported are {', '.join(QUANTISATIONS)}"
            )
        block, _ = self._gguf.GGML_QUANT_SIZES[self._gguf.GGMLQuantizationType[kind]]
        if not all(shape) or shape[-1] % block:
            raise ValueError(
                f"{self.path} is damaged: tensor {shown(name)} of shape {shape} cannot be stored as {kind}"
            )
        return name, shape, kind, offset

    def _parameter(self, name: str) -> str:
        parts = name.split(".")
        if (
            parts[0] == "blk"
            and len(parts) == 4
            and parts[2] in LAYER_NAMES
            and parts[3] == "weight"
        ):
            return f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}.weight"
        if len(parts) == 2 and parts[0] in TOP_NAMES and parts[1] == "weight":
            return TOP_NAMES[parts[0]] + ".weight"
        raise ValueError(
            f"{self.path}: tensor {shown(name)} belongs to a kind of model that is not supported"
        )

    def _number(self, key: str, default: Any = None) -> Any:
        value = self.metadata.get(f"llama.{key}", default)
        if value is None:
            raise ValueError(f"{self.path} is damaged: it lacks llama.{key}")
        return value

    def _real(self, key: str, bounds: tuple[float, float], default: float | None = None) -> float:
        value = real(self._number(key, default), bounds, f"{self.path}: llama.{key}")
        short = np.float32(value)  # as it is stored: 1e-5 reads as 9.999999747378752e-06
        return float(str(short)) if short == value else value

    def _whole(self, key: str, default: int | None = None) -> int:
        return whole(self._number(key, default), f"{self.path}: llama.{key}")


def whole(value: object, what: str) -> int:
    """A size that a file claims.   Raises ValueError for anything else."""
    if type(value) is not int or value < 1:
        raise ValueError(
            f"{what} is {shown(value)}, it should be a whole number above 0 (the same in all layers)"
        )
    return value


def real(value: object, bounds: tuple[float, float], what: str) -> float:
    """A number of a file.   Raises ValueError for one that is none, or with which nothing finite comes out."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not bounds[0] <= value <= bounds[1]
    ):
        raise ValueError(
            f"{what} is {shown(value)}, it should be a number from {bounds[0]:g} to {bounds[1]:g}"
        )
    return float(value)


def check_tensors(
    path: Path, found: Mapping[str, tuple[int, ...]], config: TransformerConfig
) -> None:
    """Raises ValueError unless a file has exactly the parameters of this shape of model."""
    expected = config.shapes()
    differ = expected.keys() - found.keys(), found.keys() - expected.keys()
    missing, extra = ([shown(name, False) for name in sorted(names)] for names in differ)
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} tensors of a Llama model, such as {missing[0]}"
        )
    if extra:
        raise ValueError(
            f"{path} has {len(extra)} tensors that a plain Llama model has not, such as {extra[0]}: not supported"
        )
    for name, shape in expected.items():
        if tuple(found[name]) != shape:
            raise ValueError(
                f"{path}: {name} has shape {tuple(found[name])}, the configuration says {shape}"
            )
