"""Hugging Face folders of the Llama family: config.json, safetensors, tokenizer.json.

A checkpoint rotates element j of a head together with j + E/2, this model rotates neighbours: rows
of Q and K, and their biases and norms, are permuted on the way in and back on the way out.  Weights
are mapped into memory and converted one by one; what the files claim is checked before anything is
allocated, and what this model does not compute is refused.
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
OFF = "attention_bias mlp_bias rope_interleaved use_sliding_window use_mrope is_encoder_decoder"
ONE = "partial_rotary_factor logits_scaling residual_multiplier embedding_multiplier"
NEUTRAL: dict[str, tuple] = (  # what other keys may say, besides null, without changing a logit
    {"hidden_act": ("silu", "swish"), "tie_word_embeddings": (False, True), "pruned_heads": ({},)}
    | dict.fromkeys([*OFF.split(), "add_cross_attention"], (False,))
    | dict.fromkeys(ONE.split(), (1,))
)
# The types of models that are read, with what transformers takes where config.json says nothing.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131_072, "sliding_window": 4096},
    "qwen2": {"max_position_embeddings": 32_768, "eos_token_id": None},
    "qwen3": {"max_position_embeddings": 32_768, "eos_token_id": None, "head_dim": 128},
}
SPECIAL = [f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]
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
        self.settings = DEFAULTS.get(str(self.settings.get("model_type")), {}) | self.settings
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
        """The model's shape, by its type's defaults.   Raises ValueError for another type."""
        s, file = self.settings, self.path / "config.json"
        if s.get("model_type") not in tuple(DEFAULTS):
            told = f"{file} describes a model of type {shown(s.get('model_type'))}"
            raise ValueError(f"{told}: only {', '.join(DEFAULTS)} are supported")
        sizes = {ours: self._whole(key) for key, ours in SIZES.items()}
        if sizes["n_layers"] > len(self.tensors):
            told = f"{file} asks for {sizes['n_layers']} layers"
            raise ValueError(f"{told}, but the weights are {len(self.tensors)} tensors")
        sizes["max_seq_len"] = min(sizes["max_seq_len"], max_seq_len or sizes["max_seq_len"])
        without_window = self._without_window(sizes["n_layers"], sizes["max_seq_len"])
        for key, value in s.items():
            neutral = value is None or value in NEUTRAL.get(key, ()) or key in without_window
            if not neutral and not HARMLESS.fullmatch(key):
                told = f"{file}: {shown(key, False)} is {shown(value)}"
                raise ValueError(f"{told}: not supported, it may change what is computed")
        base, scaling = self._rotary()
        rest = {
            "n_kv_heads": self._whole("num_key_value_heads", sizes["n_heads"]),
            "head_dim": self._whole("head_dim", sizes["dim"] // sizes["n_heads"]),
            "rope_base": base,
            "norm_eps": real(s.get("rms_norm_eps", 1e-6), "norm_eps", f"{file}: rms_norm_eps"),
            "tie_embeddings": bool(s.get("tie_word_embeddings")),
            "model_type": s["model_type"],
            "rope_scaling": scaling,
        }
        with refusing(str(file)):
            config = TransformerConfig(**sizes, **rest)
        check_tensors(self.path, {name: it.shape for name, it in self.tensors.items()}, config)
        return config

    def read(self, name: str, config: TransformerConfig) -> np.ndarray:
        """One parameter in this model's order, float16 to 64.

        Raises ValueError if a stored head differs from the embedding that it is tied to.
        """
        weight, heads = self.tensors[name].read(), config.rotated_heads(name)
        if name == EMBEDDING and self._head and not np.array_equal(self._head.read(), weight):
            told = f"{self.path} ties its output matrix to the embedding"
            told += f", but {HEAD} differs from it"
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

    def _without_window(self, n_layers: int, context: int) -> set[str]:
        """The keys about sliding windows that say of this model that it has none."""
        s, window = self.settings, self.settings.get("sliding_window")
        full = s.get("layer_types") == ["full_attention"] * n_layers
        keys = {"layer_types"} if full else set()
        if s["model_type"].startswith("qwen") and not s.get("use_sliding_window"):
            keys |= {"sliding_window", "max_window_layers"}
        if s["model_type"] == "mistral" and type(window) is int and window >= context:
            keys |= {"sliding_window"}  # no query has more keys
        return keys

    def _rotary(self) -> tuple[float, dict[str, Any] | None]:
        """Base and scaling of the rotary positions, from their older or newer places."""
        file, places, found = self.path / "config.json", [self.settings], []
        for key in ("rope_parameters", "rope_scaling"):
            if rope := self.settings.get(key):
                with refusing(f"{file} scales rotary positions ({key} is {shown(rope)})"):
                    rope = rope if isinstance(rope, dict) else {"type": rope}
                    found.append(_scaling(rope, self.settings["max_position_embeddings"]))
                places.append(rope)
        given = [place["rope_theta"] for place in places if "rope_theta" in place]
        bases = {real(base, "rope_base", f"{file}: rope_theta") for base in given} or {10_000.0}
        for what, several in (("rope_theta", sorted(bases)), ("scalings", found)):
            if several[1:] != several[:-1]:
                raise ValueError(f"{file} gives several {what}: {several}")
        return bases.pop(), next(iter(found), None)

    def _whole(self, key: str, default: int | None = None) -> int:
        value = self.settings.get(key)
        return whole(default if value is None else value, f"{self.path / 'config.json'}: {key}")


def save_hugging_face(
    model: Transformer, tokenizer: TextTokenizer | None, folder: str | Path
) -> Path:
    """Write a folder that `transformers` loads: config, weights, tokenizer.json.   -> the folder

    Each file is written to a temporary one, synced and renamed.  Raises ValueError if the folder
    holds a model already, and for a model with `n_drawable` or divisors of its rotary frequencies,
    which such a folder has no word for.
    """
    need("safetensors")
    folder, c = Path(folder), model.config
    if (folder / "config.json").exists():
        raise ValueError(f"{folder} holds a model already: give another folder")
    is_divided = "divisors" in (c.rope_scaling or {})
    own = "divides rotary frequencies in a way of its own" if is_divided else ""
    own = own if c.n_drawable is None else f"draws its first {c.n_drawable} tokens only"
    if own:
        raise ValueError(f"the model {own}, which a folder of this kind cannot say")
    folder.mkdir(parents=True, exist_ok=True)
    ends = [] if tokenizer is None else tokenizer.ends
    kind = {"model_type": c.model_type, "architectures": [f"{c.model_type.title()}ForCausalLM"]}
    config: dict[str, Any] = kind | {"hidden_act": "silu"}
    config |= {theirs: getattr(c, ours) for theirs, ours in SIZES.items()}
    config |= {"num_key_value_heads": c.n_kv_heads, "head_dim": c.head_dim}
    config |= {"rms_norm_eps": c.norm_eps, "rope_theta": c.rope_base}
    config |= {"rope_scaling": c.rope_scaling, "tie_word_embeddings": c.tie_embeddings}
    config |= {"eos_token_id": ends if len(ends) > 1 else next(iter(ends), None)}
    config |= {"bos_token_id": None, "sliding_window": None, "dtype": str(model.dtype)}
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
    c, header = model.config, {"__metadata__": {"format": "pt"}}
    kind, end = {"float32": "F32", "float64": "F64"}[str(model.dtype)], 0
    for name, view in model.parameters.items():
        start, end = end, end + view.nbytes
        header[name] = {"dtype": kind, "shape": list(view.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name, view in model.parameters.items():
        array, heads = model.backend.to_host(view), c.rotated_heads(name)
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


def _scaling(rope: dict[str, Any], context: int) -> dict[str, Any] | None:
    """What is said of rotary positions, for a TransformerConfig; None: they are not scaled."""
    rest = {k: v for k, v in rope.items() if (k, v) != ("partial_rotary_factor", 1)}
    rest.pop("rope_theta", None)
    kind, *other = [rest.pop(k) for k in ("rope_type", "type") if k in rest] or ["default"]
    rest = {"factor": 1} | rest if kind == "default" else rest
    by_1 = kind in ("default", "linear") and rest == {"factor": 1}
    if other not in ([], [kind]) or not (by_1 or kind in ("linear", "llama3")):
        raise ValueError("supported are linear and llama3")
    defaults = {"original_max_position_embeddings": context} if kind == "llama3" else {}
    return None if by_1 else {"rope_type": kind} | defaults | rest


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
