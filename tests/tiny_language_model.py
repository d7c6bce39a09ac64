"""A language model of a few thousand weights, in the formats that real ones come in."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import tokenizers

from minigrpo import Transformer, TransformerConfig
from minigrpo.engine.parameters import rotate_halves
from minigrpo.models.text_tokenizer import TextTokenizer, byte_level_tokenizer

BYTES = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
MERGES = ["Ġ +", "a b", "ab c", "Ċ Ċ"]
TOKENS = [*BYTES, *(merge.replace(" ", "") for merge in MERGES), "<end>"]
EOS = len(TOKENS) - 1
VOCABULARY = 288  # larger than the tokenizer's, and a multiple of 32 as quantisation needs it
SHAPES = {
    "mha_tied": {"dim": 32, "n_heads": 4, "n_kv_heads": 4, "ffn_dim": 64},
    "gqa_untied": {
        "dim": 64,
        "n_heads": 4,
        "n_kv_heads": 2,
        "ffn_dim": 96,
        "tie_embeddings": False,
    },
    "wide_heads": {"dim": 32, "n_heads": 2, "n_kv_heads": 1, "ffn_dim": 64, "head_dim": 32},
}
SMALL = {"dim": 32, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 64}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3["original_max_position_embeddings"] = 8192
KINDS = {  # what is not a plain Llama
    "qwen2": SMALL | {"model_type": "qwen2"},
    "qwen3": SMALL | {"model_type": "qwen3", "head_dim": 16, "tie_embeddings": False},
    "llama3": SMALL | {"rope_scaling": LLAMA3},
    "linear": SMALL | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "mistral": SMALL | {"model_type": "mistral", "tie_embeddings": False},
}


def make(shape: str = "mha_tied", seed: int = 0, **changes) -> tuple[Transformer, TextTokenizer]:
    """A random model; norms are not 1, so that forgetting one shows."""
    settings = (
        {"n_layers": 2, "max_seq_len": 96, "rope_base": 5_000.0, "norm_eps": 1e-6}
        | (SHAPES | KINDS)[shape]
        | changes
    )
    model = Transformer(TransformerConfig(VOCABULARY, **settings), seed=seed)
    rng = np.random.default_rng(seed + 1)
    for name, view in model.parameters.items():
        if "norm" in name:
            view[...] = rng.uniform(0.5, 1.5, view.shape)
        if name.endswith("bias"):
            view[...] = rng.standard_normal(view.shape)
    return model, byte_level_tokenizer(
        TOKENS, MERGES, ["<end>"], eos=EOS, vocab_size=VOCABULARY, split_digits=True
    )


def half_split(model: Transformer) -> dict[str, np.ndarray]:
    """The weights in the order of a Hugging Face checkpoint."""
    c = model.config
    heads = {"q_proj": c.n_heads, "k_proj": c.n_kv_heads, "q_norm": 1, "k_norm": 1}
    found = {}
    for name, view in model.parameters.items():
        n = heads.get(name.split(".")[-2])
        found[name] = view.copy() if n is None else rotate_halves(view, n)
    return found


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def permute(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """What llama.cpp's converter does to the rows of Q and K of a Hugging Face checkpoint."""
    return (
        weight.reshape(n_heads, 2, weight.shape[0] // n_heads // 2, *weight.shape[1:])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


def rope_freqs(base: float, width: int, factor: float = 8.0) -> np.ndarray:
    """What llama.cpp's converter writes beside a model with Llama-3 scaling, in float32."""
    factors = []
    for frequency in 1.0 / base ** (np.arange(0, width, 2, dtype=np.float32) / width):
        wavelength = 2 * np.pi / frequency
        smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
        between = 1 / ((1 - smooth) / factor + smooth)
        factors.append(1 if wavelength < 2048 else factor if wavelength > 8192 else between)
    return np.array(factors, dtype=np.float32)


def write_gguf(
    path: Path,
    model: Transformer,
    kind: str = "F32",
    metadata: dict | None = None,
    extra: dict | None = None,
) -> Path:
    """A GGUF file as llama.cpp's converter writes it.   metadata:
    values to add or, if None, to leave out.
    """
    c = model.config
    scaling = c.rope_scaling or {}
    kind_of_model = c.model_type.replace("mistral", "llama")
    values = {
        "llama.block_count": c.n_layers,
        "llama.context_length": c.max_seq_len,
        "llama.embedding_length": c.dim,
        "llama.feed_forward_length": c.ffn_dim,
        "llama.attention.head_count": c.n_heads,
        "llama.attention.head_count_kv": c.n_kv_heads,
        "llama.attention.key_length": c.head_dim,
        "llama.rope.dimension_count": c.head_dim,
        "llama.rope.freq_base": c.rope_base,
        "llama.attention.layer_norm_rms_epsilon": c.norm_eps,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [1] * (len(TOKENS) - 1) + [3],
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.eos_token_id": EOS,
    }
    if scaling.get("rope_type") == "linear":
        values["llama.rope.scaling.type"] = "linear"
        values["llama.rope.scaling.factor"] = scaling["factor"]
    if scaling.get("rope_type") == "llama3":
        extra = {"rope_freqs.weight": rope_freqs(c.rope_base, c.head_dim)} | (extra or {})
    values = {key.replace("llama.", f"{kind_of_model}."): v for key, v in values.items()}
    values |= metadata or {}
    architecture = values.pop("general.architecture", kind_of_model)
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in values.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    quantisation = gguf.GGMLQuantizationType[kind]
    heads = {"q_proj": c.n_heads, "k_proj": c.n_kv_heads}
    for name, weight in (half_split(model) | (extra or {})).items():
        n = heads.get(name.split(".")[-2])
        weight = weight if n is None or kind_of_model != "llama" else permute(weight, n)
        stem, _, what = name.rpartition(".")
        layer = f"blk.{stem.split('.')[2]}." if ".layers." in stem else ""
        target = (
            f"{layer}{GGUF_NAMES[stem.split('.', 3)[3] if layer else stem]}.{what}"
            if name in model.parameters
            else name
        )
        if weight.ndim == 1 or kind == "F32":
            writer.add_tensor(target, weight.astype(np.float32))
        else:
            writer.add_tensor(
                target,
                gguf.quants.quantize(weight.astype(np.float32), quantisation),
                raw_dtype=quantisation,
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rewrite_config(folder: Path, **changes) -> None:
    """Change keys of a folder's config.json; None removes one."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
