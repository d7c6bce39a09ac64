"""Hugging Face folders of Llama models (config.json, safetensors, tokenizer.json): read, written.

A checkpoint rotates element j of a head together with j + E/2, this model rotates neighbours: rows
of Q and K are permuted on the way in and back on the way out.  Weights are mapped into memory and
converted one by one; what the files claim is checked before anything is allocated, and what this
model does not compute is refused.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minigrpo.engine.parameters import TransformerConfig, rotate_halves, rotate_neighbours
from minigrpo.models.checks import check_tensors, need, real, refusing, shown, whole
from minigrpo.models.text_tokenizer import ChatTemplate, TextTokenizer
from minigrpo.system.files import write_atomically
from minigrpo.transformer import Transformer

DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
HARMLESS = re.compile(  # keys of config.json that change no logit, or are read below
    r"_.*|unsloth_.*|transformers(_version|\.js_config)|(vocab|hidden|intermediate)_size"
    r"|num_(hidden_layers|labels)|num_(attention|key_value)_heads|head_dim|max_position_embeddings"
    r"|rms_norm_eps|rope_(theta|parameters|scaling)|model_type|architectures|(torch_)?dtype"
    r"|name_or_path|tokenizer_class|prefix|problem_type|id2label|label2id|finetuning_task"
    r"|task_specific_params|((forced_)?[be]os|pad|sep|decoder_start)_token_id|initializer_range"
    r"|pretraining_tp|attention_dropout|(attn|experts)_implementation"
    r"|use_(cache|bfloat16|flash_attention)|is_(llama_config|decoder)|return_dict\w*"
    r"|output_(hidden_states|attentions|scores)|torchscript|tf_legacy_loss"
    r"|chunk_size_feed_forward|cross_attention_hidden_size|tie_encoder_decoder|(max|min)_length"
    r"|max_sequence_length|do_sample|early_stopping|num_beam\w*|num_return_sequences|temperature"
    r"|top_[kp]|typical_p|bad_words_ids|\w+_penalty|(encoder_)?no_repeat_ngram_size"
    r"|remove_invalid_values|(begin_)?suppress_tokens"
)
OFF = "attention_bias mlp_bias rope_interleaved use_sliding_window is_encoder_decoder"
ONE = "partial_rotary_factor logits_scaling residual_multiplier embedding_multiplier"
NEUTRAL: dict[str, tuple] = (  # what other keys may say, besides null, without changing a logit
    {"hidden_act": ("silu", "swish"), "tie_word_embeddings": (False, True), "pruned_heads": ({},)}
    | dict.fromkeys([*OFF.split(), "add_cross_attention"], (False,))
    | dict.fromkeys(ONE.split(), (1,))
)
TYPES = ("rope_type", "type")
SPECIAL = [f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]
UNSCALED = {"rope_type": "default", "type": "default", "factor": 1, "partial_rotary_factor": 1}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SIZES = {"vocab_size": "vocab_size", "hidden_size": "dim", "num_hidden_layers": "n_layers"}
SIZES |= {"num_attention_heads": "n_heads", "intermediate_size": "ffn_dim"}
SIZES |= {"max_position_embeddings": "max_seq_len"}


class Stored(NamedTuple):
    """Where a tensor lies."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int  # first byte

    def read(self) -> np.ndarray:
        """The tensor, mapped into memory.  (bfloat16 is copied: the upper half of a float32.)"""
        dtype = DTYPES[self.dtype]
        raw = np.memmap(self.file, dtype=dtype, mode="r", offset=self.start, shape=self.shape)
        return (raw.astype(np.uint32) << 16).view(np.float32) if self.dtype == "BF16" else raw


class HuggingFaceFolder:
    """An open folder.   Raises ValueError if a file is missing, damaged or not supported."""

    def __init__(self, path: str | Path) -> None:
        need("safetensors")
        self.path = Path(path)
        self.settings = _json(self.path / "config.json")
        index, names = self.path / "model.safetensors.index.json", ["model.safetensors"]
        if index.exists() and not (self.path / names[0]).exists():  # a whole file wins
            found = _json(index).get("weight_map")
            names = list(found.values()) if isinstance(found, dict) else [None]
            if not all(isinstance(name, str) and _is_plain(name) for name in names):
                told = f"{index} does not map tensors to files"
                raise ValueError(f"{told}, or names a file outside its folder")
        self.tensors: dict[str, Stored] = {}
        for name in sorted(set(names)):
            shard = _tensors(self.path / name)
            for twice in sorted(shard.keys() & self.tensors.keys()):
                first = self.tensors[twice].file.name
                told = f"{shown(twice)} is in {self.path / name} and in {first}"
                raise ValueError(f"{told}: remove one of them")
            self.tensors |= shard
        tied = self.settings.get("tie_word_embeddings")
        self._head = self.tensors.pop(HEAD, None) if tied else None  # stored twice

    def config(self, max_seq_len: int | None = None) -> TransformerConfig:
        """The model's shape, by LlamaConfig's defaults.   Raises ValueError for no plain Llama."""
        s, file = self.settings, self.path / "config.json"
        if s.get("model_type") != "llama":
            told = f"{file} describes a model of type {shown(s.get('model_type'))}"
            raise ValueError(f"{told}: only llama is supported")
        for key, value in s.items():
            neutral = value is None or value in NEUTRAL.get(key, ())
            if not neutral and not HARMLESS.fullmatch(key):
                told = f"{file}: {shown(key, False)} is {shown(value)}"
                raise ValueError(f"{told}: not supported, it may change what is computed")
        defaults = {"max_seq_len": 2048}
        sizes = {ours: self._whole(key, defaults.get(ours)) for key, ours in SIZES.items()}
        if sizes["n_layers"] > len(self.tensors):
            told = f"{file} asks for {sizes['n_layers']} layers"
            raise ValueError(f"{told}, but the weights are {len(self.tensors)} tensors")
        sizes["max_seq_len"] = min(sizes["max_seq_len"], max_seq_len or sizes["max_seq_len"])
        rest = {
            "n_kv_heads": self._whole("num_key_value_heads", sizes["n_heads"]),
            "head_dim": self._whole("head_dim", sizes["dim"] // sizes["n_heads"]),
            "rope_base": self._rope_base(),
            "norm_eps": real(s.get("rms_norm_eps", 1e-6), "norm_eps", f"{file}: rms_norm_eps"),
            "tie_embeddings": bool(s.get("tie_word_embeddings")),
        }
        with refusing(str(file)):
            config = TransformerConfig(**sizes, **rest)
        check_tensors(self.path, {name: it.shape for name, it in self.tensors.items()}, config)
        return config

    def read(self, name: str, config: TransformerConfig) -> np.ndarray:
        """One parameter in this model's order, float16 to 64.

        Raises ValueError if a stored head differs from the embedding that it is tied to.
        """
        weight, heads = self.tensors[name].read(), _heads(name, config)
        if name == EMBEDDING and self._head and not np.array_equal(self._head.read(), weight):
            told = (
                f"{self.path} ties its output matrix to the embedding, but {HEAD} differs from it"
            )
            advice = f'say "tie_word_embeddings": false in config.json, or remove {HEAD}'
            raise ValueError(f"{told}: {advice}")  # versions of transformers disagree
        return weight if heads is None else rotate_neighbours(weight, heads)

    def tokenizer(self) -> TextTokenizer:
        """The folder's tokenizer.json, special tokens and chat template, as transformers has them.

        The ids of generation_config.json end a completion, as in transformers, and those of
        config.json too: they end a text for the model.
        """
        more = _json(self.path / "generation_config.json", False).get("eos_token_id")
        eos = self.settings.get("eos_token_id", 2 if more is None else None)
        if more is not None:
            both = [it if isinstance(it, list) else [it] for it in (eos, more) if it is not None]
            eos = [end for it in both for end in it]
        file, size = self.path / "tokenizer.json", self._whole("vocab_size")
        found = TextTokenizer.from_file(file, size, eos)
        about = _json(self.path / "tokenizer_config.json", False)
        source, file = about.get("chat_template"), self.path / "chat_template.jinja"
        with refusing(f"{self.path} holds damaged special tokens, or a damaged chat template"):
            if file.exists():
                source = file.read_text(encoding="utf-8")
            elif isinstance(source, list):
                source = {it["name"]: it["template"] for it in source}.get("default")
            named = {name: about[name] for name in SPECIAL if about.get(name) is not None}
            named = {n: it["content"] if isinstance(it, dict) else it for n, it in named.items()}
        return replace(found, chat=ChatTemplate(source, named))

    def _rope_base(self) -> float:
        """The base of the rotary positions, from its older or newer place.

        Raises ValueError if they are scaled.
        """
        file, places = self.path / "config.json", [self.settings]
        for key in ("rope_parameters", "rope_scaling"):
            rope = given = self.settings.get(key) or {}
            if isinstance(rope, dict) and rope.get("factor") == 1:  # linear scaling by 1 is none
                rope = {k: v for k, v in rope.items() if k not in TYPES or v != "linear"}
            plain = isinstance(rope, dict) and all(
                rope[k] == UNSCALED.get(k) for k in rope.keys() - {"rope_theta"}
            )
            if not plain:
                told = f"{file} scales rotary positions ({key} is {shown(given)})"
                raise ValueError(f"{told}: that is not supported")
            places.append(rope)
        given = [place["rope_theta"] for place in places if "rope_theta" in place]
        bases = {real(base, "rope_base", f"{file}: rope_theta") for base in given} or {10_000.0}
        if len(bases) > 1:
            raise ValueError(f"{file} gives several rope_theta: {sorted(bases)}")
        return bases.pop()

    def _whole(self, key: str, default: int | None = None) -> int:
        value = self.settings.get(key)
        return whole(default if value is None else value, f"{self.path / 'config.json'}: {key}")


def save_hugging_face(
    model: Transformer, tokenizer: TextTokenizer | None, folder: str | Path
) -> Path:
    """Write a folder that `transformers` loads: config, weights, tokenizer.json.   -> the folder

    Each file is written to a temporary one, synced and renamed.  Raises ValueError if the folder
    holds a model already, and for a model with `n_drawable`, which such a folder has no word for.
    """
    need("safetensors")
    folder, c = Path(folder), model.config
    if (folder / "config.json").exists():
        raise ValueError(f"{folder} holds a model already: give another folder")
    if c.n_drawable is not None:
        told = f"the model draws its first {c.n_drawable} tokens only"
        raise ValueError(f"{told}, which a folder of this kind cannot say")
    folder.mkdir(parents=True, exist_ok=True)
    ends = [] if tokenizer is None else tokenizer.ends
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
    config |= {theirs: getattr(c, ours) for theirs, ours in SIZES.items()}
    config |= {"num_key_value_heads": c.n_kv_heads, "head_dim": c.head_dim}
    config |= {"rms_norm_eps": c.norm_eps, "rope_theta": c.rope_base}
    config |= {"tie_word_embeddings": c.tie_embeddings, "attention_bias": False, "mlp_bias": False}
    config |= {"eos_token_id": ends if len(ends) > 1 else next(iter(ends), None)}
    config |= {"bos_token_id": None, "dtype": str(model.dtype)}
    write_atomically(folder / "model.safetensors", list(_safetensors(model)))
    if tokenizer is not None:
        write_atomically(folder / "tokenizer.json", [tokenizer.to_json().encode()])
        about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": c.max_seq_len}
        about |= {"clean_up_tokenization_spaces": False}
        about |= {"eos_token": tokenizer.core.id_to_token(ends[0])} if ends else {}
        about |= tokenizer.chat.tokens | {"chat_template": tokenizer.chat.source}
        write_atomically(folder / "tokenizer_config.json", [json.dumps(about, indent=2).encode()])
    if len(ends) > 1:
        text = json.dumps({"eos_token_id": ends})
        write_atomically(folder / "generation_config.json", [text.encode()])
    text = json.dumps(config, indent=2, allow_nan=False)
    write_atomically(folder / "config.json", [text.encode()])  # last: a folder with it is whole
    return folder


def _safetensors(model: Transformer) -> Iterator[bytes | memoryview]:
    """The pieces of a .safetensors file: length of the header, header, each parameter's bytes.

    The package's own writer wants all tensors, Q and K permuted, in memory at once.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    kind, end = {"float32": "F32", "float64": "F64"}[str(model.dtype)], 0
    for name, view in model.parameters.items():
        start, end = end, end + view.nbytes
        header[name] = {"dtype": kind, "shape": list(view.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name, view in model.parameters.items():
        array, heads = model.backend.to_host(view), _heads(name, model.config)
        array = array if heads is None else rotate_halves(array, heads)
        yield memoryview(np.ascontiguousarray(array)).cast("B")


def _tensors(file: Path) -> dict[str, Stored]:
    """What a .safetensors file holds; its library checks the header against the file's size."""
    if not file.exists():
        told = f"{file} is missing"
        raise ValueError(f"{told} (weights in other formats than safetensors are not read)")
    with refusing(f"{file} is cut short or damaged"), open(file, "rb") as opened:
        need("safetensors").safe_open(str(file), framework="np").keys()
        (length,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(length))
    tensors = {}
    for name, tensor in header.items():
        if name == "__metadata__" or name.endswith("rotary_emb.inv_freq"):  # no parameters
            continue
        if tensor["dtype"] not in DTYPES:
            told = f"{file}: tensor {shown(name)} is stored as {tensor['dtype']}"
            raise ValueError(f"{told}: supported are {', '.join(DTYPES)}")
        start = 8 + length + tensor["data_offsets"][0]
        tensors[name] = Stored(file, tensor["dtype"], tuple(tensor["shape"]), start)
    return tensors


def _heads(name: str, config: TransformerConfig) -> int | None:
    """How many heads a parameter is rotated in; None for the others."""
    return {"q_proj": config.n_heads, "k_proj": config.n_kv_heads}.get(name.split(".")[-2])


def _is_plain(name: str) -> bool:
    """Whether a file of this name can only lie in the folder itself."""
    return Path(name).name == name != ".." and name.isprintable()


def _json(file: Path, needed: bool = True) -> dict[str, Any]:
    if not needed and not file.exists():
        return {}
    if not file.exists():
        advice = "give the folder of a Hugging Face model, or a .gguf file"
        raise ValueError(f"{file} is missing: {advice}")
    with refusing(f"{file} is not JSON that can be read"):
        found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{file} should hold a JSON object")
    return found
