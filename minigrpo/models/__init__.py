"""Pretrained language models: Hugging Face folders and GGUF files, fetched by name, saved again.

They need the extra `lm` (safetensors, tokenizers, gguf, jinja2).  Read are Llama (with the linear
or the Llama-3 scaling of rotary positions), Mistral without a window, Qwen2 and Qwen3.  Left out:
other architectures and scalings, mixtures of experts, quantised training.  What is not supported is
refused with a sentence, never computed wrongly.  README.md beside this file says how much memory
training takes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from minigrpo.engine.backend import Backend
from minigrpo.engine.divergence import DivergenceError
from minigrpo.models.gguf_file import GGUFFile
from minigrpo.models.hugging_face import HuggingFaceFolder, save_hugging_face
from minigrpo.models.pull import KNOWN, cached, pull
from minigrpo.models.text_tokenizer import TextTokenizer
from minigrpo.transformer import Transformer
from minigrpo.tree import MAX_TOKEN

__all__ = ["KNOWN", "TextTokenizer", "cached", "load_model", "load_tokenizer", "pull"]
__all__ += ["save_hugging_face"]


def load_model(
    name: str | Path,
    backend: str | Backend = "numpy",
    dtype: str = "float32",
    max_seq_len: int | None = None,
) -> tuple[Transformer, TextTokenizer]:
    """A pretrained model and its tokenizer: a pulled name, a .gguf file or a Hugging Face folder.

    max_seq_len shortens the context.  Raises ValueError for what is missing, damaged, not supported
    or too large for the memory, and for weights that are not finite, or too large to compute with.
    >>> model, tokenizer = mg.load_model("my-model")  # or "smollm2", or "model.gguf"
    >>> prompts, rng = [tokenizer.encode("12 + 30 =")], np.random.default_rng(0)
    >>> rollouts = mg.sample(model, prompts, 2, rng, max_new_tokens=3, eos=tokenizer.eos)
    >>> texts = [tokenizer.decode(tokens) for tokens in rollouts.completions[0]]
    """
    source = _open(name)
    config = source.config(max_seq_len)
    tokenizer = _tokenizer(source, config.vocab_size)
    try:
        model = Transformer(config, seed=None, backend=backend, dtype=dtype)
    except MemoryError as error:
        raise ValueError(f"{name} does not fit into the memory: {error}") from error
    limit = np.sqrt(np.finfo(model.dtype).max)
    for parameter, view in model.parameters.items():
        with np.errstate(all="ignore"):
            array = np.asarray(source.read(parameter, config), dtype=model.dtype)
            fits = np.maximum(array.max(), -array.min()) < limit
        if not fits:
            told = f"{name} is damaged: {parameter} has a weight that is not finite"
            raise ValueError(f"{told}, or too large to be squared")
        view[...] = model.backend.to_device(array)
    try:
        with np.errstate(all="ignore"):
            model.check_weights()
    except DivergenceError as error:
        raise ValueError(f"{name} is damaged, or needs more than {dtype}: {error}") from error
    return model, tokenizer


def load_tokenizer(name: str | Path) -> TextTokenizer:
    """The tokenizer of a pretrained model alone, or of a tokenizer.json.   Raises ValueError"""
    path = Path(name).expanduser()
    if path.suffix in (".json", ".model"):
        return TextTokenizer.from_file(path, MAX_TOKEN + 1, None)
    source = _open(name)
    return _tokenizer(source, source.config().vocab_size)


def _tokenizer(source: GGUFFile | HuggingFaceFolder, vocab_size: int) -> TextTokenizer:
    beside = source.path.parent / "tokenizer.json"
    if not isinstance(source, GGUFFile) or not beside.exists():
        return source.tokenizer()
    eos = source.metadata.get("tokenizer.ggml.eos_token_id")
    found = TextTokenizer.from_file(beside, vocab_size, eos)
    source.check_tokenizer(found)
    return source.with_header(found)


def _open(name: str | Path) -> GGUFFile | HuggingFaceFolder:
    if str(name) in KNOWN:
        return GGUFFile(cached(str(name)))
    path = Path(name).expanduser()
    if path.is_dir():
        return HuggingFaceFolder(path)
    if path.is_file():
        return GGUFFile(path)
    known = f"give {', '.join(KNOWN)}, a .gguf file, or the folder of a Hugging Face model"
    raise ValueError(f"there is no model {str(name)!r}: {known}")
