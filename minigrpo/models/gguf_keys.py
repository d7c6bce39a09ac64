"""The keys of a GGUF header that are let through: those that change no number, or are read.

All others are refused by name.  "llama." stands for the architecture of the file, whichever it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minigrpo.models.checks import shown

HARMLESS = re.compile(  # keys that change no number, or are read below
    r"general\.(?!type$|quantization_version$)|quantize\.|mradermacher\.|split\.tensors\.count$"
    r"|tokenizer\.(chat_template|huggingface\.json$)"
    r"|tokenizer\.ggml\.(\w+_token_id|model|pre|tokens|token_type|scores|merges|add_bos_token)$"
    r"|llama\.(vocab_size|context_length|embedding_length|block_count|feed_forward_length)$"
    r"|llama\.rope\.(dimension_count|freq_base|scaling\.(original_context_length|finetuned))$"
    r"|llama\.attention\.(head_count|head_count_kv|key_length|value_length)$"
    r"|llama\.attention\.layer_norm(_rms)?_epsilon$"
)
NEUTRAL = (  # what other keys may say without changing a number
    {"general.type": ("model",), "general.quantization_version": (2,)}
    | {"split.count": (0, 1), "split.no": (0,)}
    | {"llama.rope.scaling.type": ("none", "", "linear"), "llama.rope.scaling.attn_factor": (1,)}
    | {"llama.rope.scaling.factor": (0, 1), "llama.rope.scale_linear": (0, 1)}
    | {"llama.expert_count": (0,), "llama.expert_used_count": (0,)}
    | {"llama.attention.causal": (True,), "llama.use_parallel_residual": (False,)}
    | {"llama.tensor_data_layout": ("Meta AI original pth",)}
    | {"tokenizer.ggml.remove_extra_whitespaces": (False,)}
    | {f"tokenizer.ggml.add_{it}": (False,) for it in ("eos_token", "sep_token", "space_prefix")}
)
REASONS = {"split.": "is one of several parts", ".rope.": "scales rotary positions"}
REASONS |= {".expert_": "is a mixture of experts"}
SCALES = "llama.rope.scaling.factor", "llama.rope.scale_linear"  # read if the type is linear


def check_keys(path: Path, metadata: Mapping[str, Any], tokenizer: bool) -> None:
    """Raises ValueError for a key, of the tokenizer or the rest, that may change a number."""
    ours = ("general.", "llama.", "tokenizer.")
    architecture = metadata.get("general.architecture")
    linear = metadata.get(f"{architecture}.rope.scaling.type", "linear") == "linear"
    for key, value in metadata.items():
        first, _, rest = key.partition(".")
        name = f"llama.{rest}" if first == architecture else key
        foreign = isinstance(value, str) and not name.startswith(ours)
        known = HARMLESS.match(name) or foreign or (linear and name in SCALES)
        known = known or value in NEUTRAL.get(name, ())
        if key.startswith("tokenizer.") == tokenizer and not known:
            unknown = "has a key that may change what is computed"
            reason = next((text for part, text in REASONS.items() if part in key), unknown)
            value = shown(value, quotes=not isinstance(value, str))
            told = f"{path} {reason} ({value})"
            raise ValueError(f"{told}: {shown(key)} of its header is not supported")
