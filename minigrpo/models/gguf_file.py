"""GGUF files of the Llama family: the metadata, the tensors dequantised, the tokenizer.

The file is mapped into memory, not read.  Header and tensor table are checked against the file's
size before anything is allocated, and only what this model computes exactly is let through: every
key of the header is known, or refused.  A file of architecture llama keeps the rows of Q and K in
the order that this model uses, rotated neighbours side by side; in those of qwen2 and qwen3 they
are permuted, as in a Hugging Face folder.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3).
Dequantisation: the gguf package.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minigrpo.engine.parameters import LLAMA3, TransformerConfig, rotate_neighbours
from minigrpo.models.checks import check_tensors, need, real, refusing, shown, whole
from minigrpo.models.gguf_keys import check_keys
from minigrpo.models.text_tokenizer import ChatTemplate, TextTokenizer, byte_level_tokenizer

SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))  # of struct
STRING, ARRAY = 8, 9
MAX_DIMENSIONS = 4
# Types of tokens: unknown, control and user-defined ones are found in a text before it is split; 5
# is one that no text has.
ORDINARY, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = range(1, 6)
TOKEN_IDS = {"bos": "bos_token", "eos": "eos_token", "eot": "eot_token", "eom": "eom_token"}
TOKEN_IDS |= {"unknown": "unk_token", "padding": "pad_token"}
QUANTISATIONS = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K"
ARCHITECTURES = "llama", "qwen2", "qwen3"
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
TOP_NAMES["rope_freqs"] = "rope_freqs"
DIVISORS = "rope_freqs.weight"  # no parameter: what rotary frequencies are divided by
LAYER_TABLE = """
    attn_norm=input_layernorm ffn_norm=post_attention_layernorm
    attn_q=self_attn.q_proj attn_k=self_attn.k_proj attn_v=self_attn.v_proj
    attn_output=self_attn.o_proj attn_q_norm=self_attn.q_norm attn_k_norm=self_attn.k_norm
    ffn_gate=mlp.gate_proj ffn_up=mlp.up_proj ffn_down=mlp.down_proj
"""
LAYER_NAMES = dict(pair.split("=") for pair in LAYER_TABLE.split())


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in the file: shape (outputs, inputs), quantisation, first byte."""

    shape: tuple[int, ...]
    kind: str
    start: int


class GGUFFile:
    """An open GGUF file.   metadata: key -> value; tensors: this package's names -> TensorInfo.

    Raises ValueError if the file is no GGUF, is cut short, or holds what is not supported.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self._gguf = Path(path), need("gguf")
        with open(self.path, "rb") as file:
            size = self.path.stat().st_size
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        if self._data[:4] != b"GGUF":
            told = f"{self.path} is not a GGUF file"
            raise ValueError(f"{told} (it does not begin with the letters GGUF)")
        self._at = 4
        (version,) = self._unpack("I")
        if version not in (2, 3):
            told = f"{self.path} is GGUF of version {version}"
            raise ValueError(f"{told}: versions 2 and 3 (little-endian) are read")
        n_tensors, n_values = self._unpack("QQ")
        self.metadata: dict[str, Any] = {}
        for _ in range(n_values):
            key = self._string()
            if key in self.metadata:
                raise self._damaged(f"it says {shown(key)} twice")
            self.metadata[key] = self._value(self._unpack("I")[0])
        self._kind = self.metadata.get("general.architecture")
        table = [self._tensor() for _ in range(n_tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._damaged(f"its alignment is {shown(alignment)}, it should be a power of two")
        end = start = -(-self._at // alignment) * alignment
        self.tensors: dict[str, TensorInfo] = {}
        for name, shape, kind, offset in sorted(table, key=lambda row: row[3]):  # as they lie
            info, parameter = TensorInfo(shape, kind, start + offset), self._parameter(name)
            if parameter in self.tensors or info.start < end or offset % alignment:
                wrong = "is there twice, overlaps another or is not aligned"
                raise self._damaged(f"tensor {shown(name)} {wrong}")
            end = info.start + self.stored_bytes(info)
            if end > len(self._data):
                told = f"{self.path} is cut short: tensor {shown(name)} would end after the file"
                raise ValueError(f"{told} does; fetch it again")
            self.tensors[parameter] = info

    # -- the model -------------------------------------------------------------------------------

    def config(self, max_seq_len: int | None = None) -> TransformerConfig:
        """The model's shape.   Raises ValueError for one that this package does not compute."""
        if self._kind not in ARCHITECTURES:
            told = f"{self.path} holds a model of architecture {shown(self._kind)}"
            raise ValueError(f"{told}: only {', '.join(ARCHITECTURES)} are supported")
        check_keys(self.path, self.metadata, tokenizer=False)
        embedding = self.tensors.get("model.embed_tokens.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise ValueError(f"{self.path} has no token embedding (token_embd.weight)")
        n_layers, heads = self._whole("block_count"), self._whole("attention.head_count")
        if n_layers > len(self.tensors):
            raise self._damaged(f"{n_layers} layers but {len(self.tensors)} tensors")
        dim = self._whole("embedding_length")
        head_dim = self._whole("attention.key_length", dim // heads)
        for key in ("attention.value_length", "rope.dimension_count"):
            if (width := self._whole(key, head_dim)) != head_dim:
                told = f"{self.path}: {key} is {width}, but heads are {head_dim} wide"
                raise ValueError(f"{told}: that is not supported")
        context = self._whole("context_length")
        shape = {
            "vocab_size": embedding.shape[0],
            "dim": dim,
            "n_layers": n_layers,
            "n_heads": heads,
            "n_kv_heads": self._whole("attention.head_count_kv", heads),
            "ffn_dim": self._whole("feed_forward_length"),
            "max_seq_len": min(context, max_seq_len or context),
            "rope_base": self._real("rope.freq_base", "rope_base", 10_000.0),
            "norm_eps": self._real("attention.layer_norm_rms_epsilon", "norm_eps"),
            "tie_embeddings": "lm_head.weight" not in self.tensors,
            "head_dim": head_dim,
            "model_type": self._kind,
        }
        with refusing(str(self.path)):
            config = self._scaled(TransformerConfig(**shape))
        found = {name: info.shape for name, info in self.tensors.items() if name != DIVISORS}
        check_tensors(self.path, found, config)
        return config

    def _scaled(self, config: TransformerConfig) -> TransformerConfig:
        """With its rotary positions scaled: by a factor, or by divisors as Llama 3.1's are made."""
        keys = (f"{self._kind}.rope.{key}" for key in ("scaling.factor", "scale_linear"))
        factor = next((self.metadata[key] for key in keys if key in self.metadata), 1) or 1
        linear = replace(config, rope_scaling={"rope_type": "linear", "factor": factor})
        if DIVISORS not in self.tensors:
            return config if factor == 1 else linear
        divisors = [float(x) for x in self.read(DIVISORS).ravel()]
        if factor != 1 or len(divisors) != config.head_dim // 2:
            raise ValueError(f"it scales rotary positions twice, or by {len(divisors)} divisors")
        scaled = replace(config, rope_scaling={"rope_type": "divisors", "divisors": divisors})
        llama3 = {"rope_type": "llama3"} | dict(zip(LLAMA3, (2.0, 1.0, 4.0, 8192), strict=True))
        kept = 2 / replace(config, rope_scaling=llama3).rotary()[2][-1] - 1  # of the slowest pair
        if divisors[-1] > 1 > kept * divisors[-1]:
            found = (1 - kept) / (1 / divisors[-1] - kept)
            named = replace(config, rope_scaling=llama3 | {"factor": float(f"{found:.4g}")})
            if np.allclose(named.rotary()[2], divisors, rtol=3e-5, atol=0):
                return named
        return config if set(divisors) == {1} else scaled

    def read(self, name: str, config: TransformerConfig | None = None) -> np.ndarray:
        """One parameter, dequantised, in this model's order.   -> float32"""
        info, dequantize = self.tensors[name], self._gguf.quants.dequantize
        size = self.stored_bytes(info)
        raw = np.frombuffer(self._data, dtype=np.uint8, count=size, offset=info.start)
        rows, kind = raw.reshape(*info.shape[:-1], -1), self._gguf.GGMLQuantizationType[info.kind]
        weight = dequantize(rows, kind).reshape(info.shape)
        heads = config.rotated_heads(name) if config and self._kind != "llama" else None
        return weight if heads is None else rotate_neighbours(weight, heads)

    def stored_bytes(self, info: TensorInfo) -> int:
        """How many bytes of the file a tensor takes."""
        block, size = self._gguf.GGML_QUANT_SIZES[self._gguf.GGMLQuantizationType[info.kind]]
        return math.prod(info.shape) // block * size

    def _number(self, key: str, default: Any = None) -> Any:
        if (value := self.metadata.get(f"{self._kind}.{key}", default)) is None:
            raise self._damaged(f"it lacks {self._kind}.{key}")
        return value

    def _real(self, key: str, kind: str, default: float | None = None) -> float:
        value = real(self._number(key, default), kind, f"{self.path}: {self._kind}.{key}")
        short = np.float32(value)  # as it is stored: 1e-5 reads as 9.999999747378752e-06
        return float(str(short)) if short == value else value

    def _whole(self, key: str, default: int | None = None) -> int:
        return whole(self._number(key, default), f"{self.path}: {self._kind}.{key}")

    def _damaged(self, told: str) -> ValueError:
        return ValueError(f"{self.path} is damaged: {told}")

    # -- the tokenizer ---------------------------------------------------------------------------

    def tokenizer(self) -> TextTokenizer:
        """The file's tokenizer.   Raises ValueError for one that cannot be rebuilt exactly."""
        header = {key: self.metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre")}
        if header["model"] != "gpt2" or header["pre"] not in ("smollm", "gpt-2"):
            kind = f"{shown(header['model'])} ({shown(header['pre'])})"
            told = f"{self.path} has a tokenizer of kind {kind}, which is not rebuilt from GGUF"
            raise ValueError(f"{told}: put the model's tokenizer.json beside the file")
        check_keys(self.path, self.metadata, tokenizer=True)
        keys = "tokens", "token_type", "merges", "add_bos_token", "bos_token_id", "eos_token_id"
        found = (self.metadata.get(f"tokenizer.ggml.{key}") for key in keys)
        tokens, types, merges, add_bos, bos, eos = found
        with refusing(f"{self.path} holds a damaged tokenizer"):
            if len(tokens) != len(types) or not set(types) <= set(range(ORDINARY, UNUSED + 1)):
                raise ValueError("its tokens need a type each")
            if isinstance(eos, bool):
                raise ValueError(f"its EOS is {eos}")
            is_id = type(bos) is int and 0 <= bos < len(tokens)
            if add_bos not in (None, False) and not (add_bos is True and is_id):
                raise ValueError("texts should begin with a BOS that it does not name")
            of_type = list(zip(tokens, types, strict=True))
            special = [token for token, type_ in of_type if type_ in (UNKNOWN, CONTROL)]
            about = {"split_digits": header["pre"] == "smollm", "eos": eos}
            about["vocab_size"] = self.config().vocab_size
            built = byte_level_tokenizer(tokens, merges, special, **about)
            tokenizers = need("tokenizers")
            added = [token for token, type_ in of_type if type_ == USER_DEFINED]
            built.core.add_tokens([tokenizers.AddedToken(it, normalized=False) for it in added])
            if add_bos:
                start = {"id": "BOS", "ids": [bos], "tokens": [tokens[bos]]}
                processing = tokenizers.processors.TemplateProcessing
                built.core.post_processor = processing("BOS $A", special_tokens=[start])
            return self.with_header(built)

    def with_header(self, tokenizer: TextTokenizer) -> TextTokenizer:
        """A tokenizer with the header's chat template and special tokens.

        A completion also ends where a turn or a message does.  (llama.cpp ends it with any token of
        certain names, too; transformers does not, nor does this package.)
        """
        known = {i: token for token, i in tokenizer.core.get_vocab().items()}
        with refusing(f"{self.path} names special tokens that it has not"):
            ids = {key: self.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in TOKEN_IDS}
            more = [i for key, i in ids.items() if key in ("eot", "eom") and i is not None]
            if not all(type(i) is int and i in known for i in more):
                raise ValueError(f"EOT and EOM are {shown(more)}")
            tokens = {TOKEN_IDS[key]: known[i] for key, i in ids.items() if i in known}
        chat = ChatTemplate(self.metadata.get("tokenizer.chat_template"), tokens)
        return replace(tokenizer.ended_by([*tokenizer.ends, *more]), chat=chat)

    def check_tokenizer(self, other: TextTokenizer) -> None:
        """Raises ValueError where a tokenizer.json beside the file contradicts the header.

        Compared are ordinary tokens, EOS and BOS.
        """
        keys = "tokens", "token_type", "add_bos_token", "bos_token_id"
        tokens, types, add_bos, bos = (self.metadata.get(f"tokenizer.ggml.{key}") for key in keys)
        beside = f"the tokenizer.json beside {self.path}"
        with refusing(f"{beside} is not this model's, or one of them is damaged"):
            for token, i in other.core.get_vocab().items() if tokens is not None else ():
                ordinary = types is None or i >= len(tokens) or types[i] == ORDINARY
                if tokens[i : i + 1] != [token] and ordinary:
                    here = shown(tokens[i : i + 1])
                    raise ValueError(f"token {i} is {shown(token)} there and {here} here")
            if any(other.core.id_to_token(end) is None for end in other.ends):
                raise ValueError(f"it has no token {other.ends}, which ends a completion")
            first = other.encode("a")[:1].tolist()
            bare = other.core.encode("a", add_special_tokens=False).ids
            added = len(other.encode("a")) > len(bare)
            if add_bos is not None and (added != bool(add_bos) or (added and first != [bos])):
                told = f"a text begins with {first} there"
                raise ValueError(f"{told}; add_bos_token is {add_bos} here, and BOS {bos}")

    # -- the format ------------------------------------------------------------------------------

    def _take(self, n: int) -> bytes:
        if self._at + n > len(self._data):
            told = f"{self.path} is cut short or damaged"
            raise ValueError(f"{told}: its header asks for more bytes than the file has")
        self._at += n
        return self._data[self._at - n : self._at]

    def _unpack(self, letters: str) -> tuple:
        return struct.unpack("<" + letters, self._take(struct.calcsize("<" + letters)))

    def _string(self) -> str:
        return self._take(self._unpack("Q")[0]).decode("utf-8", errors="surrogateescape")

    def _value(self, type_: int) -> Any:
        if type_ == STRING:
            return self._string()
        item, n = self._unpack("IQ") if type_ == ARRAY else (type_, 1)
        if item == STRING:
            return [self._string() for _ in range(n)]
        if item not in SCALARS:
            raise self._damaged(f"its metadata has a value of unknown type {item}")
        raw = self._take(n * struct.calcsize("<" + SCALARS[item]))
        values = np.frombuffer(raw, dtype=np.dtype("<" + SCALARS[item])).tolist()
        return values if type_ == ARRAY else values[0]

    def _tensor(self) -> tuple[str, tuple[int, ...], str, int]:
        name, (n,) = self._string(), self._unpack("I")
        if not 1 <= n <= MAX_DIMENSIONS:
            raise self._damaged(f"tensor {shown(name)} has {n} dimensions")
        shape = self._unpack("Q" * n)[::-1]  # GGUF counts the innermost dimension first
        number, offset = self._unpack("IQ")
        kinds = {kind.value: kind.name for kind in self._gguf.GGMLQuantizationType}
        kind = kinds.get(number, f"number {number}")
        if kind not in QUANTISATIONS.split():
            told = f"{self.path}: tensor {shown(name)} has quantisation {kind}"
            raise ValueError(f"{told}: supported are {', '.join(QUANTISATIONS.split())}")
        block, _ = self._gguf.GGML_QUANT_SIZES[self._gguf.GGMLQuantizationType[kind]]
        if not all(shape) or shape[-1] % block:
            raise self._damaged(f"tensor {shown(name)} of shape {shape} cannot be stored as {kind}")
        return name, shape, kind, offset

    def _parameter(self, name: str) -> str:
        match = re.fullmatch(r"(?:blk\.([^.]*)\.)?([^.]*)\.(weight|bias)", name)
        layer, part, what = match.groups() if match else (None, "", "")
        if layer is None and part in TOP_NAMES:
            return f"{TOP_NAMES[part]}.{what}"
        if layer is not None and part in LAYER_NAMES:
            return f"model.layers.{layer}.{LAYER_NAMES[part]}.{what}"
        told = f"{self.path}: tensor {shown(name)} belongs to a kind of model"
        raise ValueError(f"{told} that is not supported")
