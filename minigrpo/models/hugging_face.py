"""Hugging Face folders of Llama models (config.json, model.safetensors or shards, tokenizer.json): read, and written.

A checkpoint rotates element j of a head together with j + E/2, this model rotates neighbours: rows of Q and K are permuted on the
way in and back on the way out (`parameters.rotate_neighbours`).  Weights are mapped into memory and converted one by one; what the
files claim is checked before anything is allocated, and what this model does not compute is refused.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from minigrpo.models.gguf_file import check_tensors
from minigrpo.models.packages import need
from minigrpo.models.text_tokenizer import TextTokenizer
from minigrpo.parameters import TransformerConfig, rotate_halves, rotate_neighbours
from minigrpo.runs import write_atomically
from minigrpo.transformer import Transformer

DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
REFUSED = {  # keys of config.json that change what is computed, with the values that leave it as it is here
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "rope_interleaved": (False, None),
    "quantization_config": (None,),
    "partial_rotary_factor": (1, 1.0, None),
    "sliding_window": (None,),
    "residual_multiplier": (1, 1.0, None),
}
SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "ffn_dim",
    "max_position_embeddings": "max_seq_len",
}


class HuggingFaceFolder:
    """An open folder.   Raises ValueError if a file is missing, damaged, or of a model that is not supported."""

    def __init__(self, path: str | Path) -> None:
        need("safetensors")
        self.path = Path(path)
        self.settings = _json(self.path / "config.json")
        index = self.path / "model.safetensors.index.json"
        if index.exists():
            names = sorted(set(_json(index).get("weight_map", {}).values()))
            if any(not isinstance(name, str) or Path(name).name != name for name in names):
                raise ValueError(f"{index} names a file outside its folder")
        else:
            names = ["model.safetensors"]
        self.tensors: dict[str, tuple[Path, str, tuple[int, ...], int]] = {}  # name -> file, dtype, shape, first byte
        for name in names:
            self.tensors |= _tensors(self.path / name)
        if self.settings.get("tie_word_embeddings"):
            self.tensors.pop("lm_head.weight", None)  # some checkpoints store the tied matrix twice

    def config(self, max_seq_len: int | None = None) -> TransformerConfig:
        """The model's shape.   Raises ValueError for another architecture than Llama, and for variants of it."""
        s, file = self.settings, self.path / "config.json"
        if s.get("model_type") != "llama":
            raise ValueError(f"{file} describes a model of type {s.get('model_type')!r}: only llama is supported")
        for key, allowed in REFUSED.items():
            if s.get(key, allowed[0]) not in allowed:
                raise ValueError(f"{file}: {key} is {s[key]!r}: not supported (this model needs {allowed[0]!r})")
        rope = s.get("rope_parameters") or {}
        scaling = s.get("rope_scaling") or {}
        for found in (rope, scaling):
            if not isinstance(found, dict) or found.get("rope_type", found.get("type", "default")) != "default":
                raise ValueError(f"{file} scales rotary positions ({found}): that is not supported")
        sizes = {ours: self._whole(theirs) for theirs, ours in SIZES.items()}
        if sizes["n_layers"] > len(self.tensors):
            raise ValueError(f"{file} asks for {sizes['n_layers']} layers, but the weights are {len(self.tensors)} tensors")
        sizes["max_seq_len"] = min(sizes["max_seq_len"], max_seq_len or sizes["max_seq_len"])
        config = TransformerConfig(
            **sizes,
            n_kv_heads=self._whole("num_key_value_heads", sizes["n_heads"]),
            head_dim=self._whole("head_dim", sizes["dim"] // sizes["n_heads"]),
            rope_base=self._real(rope.get("rope_theta", s.get("rope_theta", 10_000.0)), "rope_theta"),
            norm_eps=self._real(s.get("rms_norm_eps", 1e-6), "rms_norm_eps"),
            tie_embeddings=bool(s.get("tie_word_embeddings", False)),
        )
        check_tensors(self.path, {name: tensor[2] for name, tensor in self.tensors.items()}, config)
        return config

    def read(self, name: str, config: TransformerConfig) -> np.ndarray:
        """One parameter in this model's order.   -> float32 (float64 if the file has it so)"""
        file, dtype, shape, start = self.tensors[name]
        raw = np.memmap(file, dtype=DTYPES[dtype], mode="r", offset=start, shape=shape)
        if dtype == "BF16":  # the upper half of a float32
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        heads = _heads(name, config)
        return raw if heads is None else rotate_neighbours(raw, heads)

    def tokenizer(self) -> TextTokenizer:
        """The folder's tokenizer.json with the EOS of config.json (of several, the first)."""
        eos = self.settings.get("eos_token_id")
        eos = eos[0] if isinstance(eos, list) and eos else eos
        return TextTokenizer.from_file(
            self.path / "tokenizer.json", self._whole("vocab_size"), eos if isinstance(eos, int) else None
        )

    def _whole(self, key: str, default: int | None = None) -> int:
        value = self.settings.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{self.path / 'config.json'}: {key} is {value!r}, it should be a whole number above 0")
        return value

    def _real(self, value: Any, key: str) -> float:
        if not isinstance(value, int | float) or not np.isfinite(value):
            raise ValueError(f"{self.path / 'config.json'}: {key} is {value!r}, it should be a number")
        return float(value)


def save_hugging_face(model: Transformer, tokenizer: TextTokenizer | None, folder: str | Path) -> Path:
    """Write a folder that `transformers` loads: config.json, model.safetensors, tokenizer.json.   -> the folder

    Each file is written to a temporary one, synced and renamed.  Raises ValueError if the folder holds a model already.
    """
    need("safetensors")
    folder = Path(folder)
    if (folder / "config.json").exists():
        raise ValueError(f"{folder} holds a model already: give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    c, eos = model.config, None if tokenizer is None else tokenizer.eos
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
    config |= {theirs: getattr(c, ours) for theirs, ours in SIZES.items()}
    config |= {"num_key_value_heads": c.n_kv_heads, "head_dim": c.head_dim, "rms_norm_eps": c.norm_eps, "rope_theta": c.rope_base}
    config |= {"tie_word_embeddings": c.tie_embeddings, "attention_bias": False, "mlp_bias": False, "eos_token_id": eos}
    config |= {"bos_token_id": None, "dtype": str(model.dtype)}
    write_atomically(folder / "model.safetensors", list(_safetensors(model)))
    if tokenizer is not None:
        write_atomically(folder / "tokenizer.json", [tokenizer.to_json().encode()])
        names: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": c.max_seq_len}
        names |= {} if eos is None else {"eos_token": tokenizer.core.id_to_token(eos)}
        names |= {"clean_up_tokenization_spaces": False}
        write_atomically(folder / "tokenizer_config.json", [json.dumps(names, indent=2).encode()])
    write_atomically(folder / "config.json", [json.dumps(config, indent=2).encode()])  # last: a folder with it is whole
    return folder


def _safetensors(model: Transformer) -> Iterator[bytes | memoryview]:
    """The pieces of a .safetensors file: length of the header, header, each parameter's bytes.

    Written here since the package's own writer wants all tensors, Q and K permuted, in memory at once.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    kind, offset = {"float32": "F32", "float64": "F64"}[str(model.dtype)], 0
    for name, view in model.parameters.items():
        header[name] = {"dtype": kind, "shape": list(view.shape), "data_offsets": [offset, offset + view.nbytes]}
        offset += view.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name, view in model.parameters.items():
        array, heads = model.backend.to_host(view), _heads(name, model.config)
        yield memoryview(np.ascontiguousarray(array if heads is None else rotate_halves(array, heads))).cast("B")


def _tensors(file: Path) -> dict[str, tuple[Path, str, tuple[int, ...], int]]:
    """What a .safetensors file holds; its own library checks the header against the file's size."""
    safetensors = need("safetensors")
    if not file.exists():
        raise ValueError(f"{file} is missing (weights in other formats than safetensors are not read)")
    try:
        with safetensors.safe_open(str(file), framework="np"):
            pass
        with open(file, "rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(length))
    except (safetensors.SafetensorError, OSError, ValueError, struct.error) as error:
        raise ValueError(f"{file} is cut short or damaged ({error}): fetch it again") from error
    header.pop("__metadata__", None)
    for name, tensor in header.items():
        if tensor["dtype"] not in DTYPES:
            raise ValueError(f"{file}: tensor {name} is stored as {tensor['dtype']}: supported are {', '.join(DTYPES)}")
    return {n: (file, t["dtype"], tuple(t["shape"]), 8 + length + t["data_offsets"][0]) for n, t in header.items()}


def _heads(name: str, config: TransformerConfig) -> int | None:
    """How many heads a parameter is rotated in; None for the others."""
    return {"q_proj": config.n_heads, "k_proj": config.n_kv_heads}.get(name.split(".")[-2])


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file} is missing: give the folder of a Hugging Face model, or a .gguf file") from None
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} should hold a JSON object")
    return found
