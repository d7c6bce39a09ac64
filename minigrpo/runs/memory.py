"""How much memory training takes, and how many nodes may be in the model at a time to limit it."""

from __future__ import annotations

import numpy as np

from minigrpo.engine.parameters import TransformerConfig
from minigrpo.runs.own_objective import is_own
from minigrpo.runs.settings import TrainSettings
from minigrpo.transformer import MAX_LOGITS

PROGRAM = 300e6  # bytes: Python, NumPy, BLAS buffers, a rollout's cache
KEYS = 256  # keys that a query is taken to see


def parameters_of(config: TransformerConfig) -> int:
    """How many parameters a model of this shape has."""
    return sum(int(np.prod(shape)) for shape in config.shapes().values())


def fixed_bytes(settings: TrainSettings, config: TransformerConfig) -> float:
    """Bytes that training takes whatever the batch.

    Parameters, gradients, moments and reference, and the largest temporary arrays.
    """
    vocabulary = config.vocab_size
    may_have_kl = is_own(settings.objective) or settings.make_objective().beta > 0
    vectors = 2 + 2 * (settings.optimizer == "adamw") + may_have_kl
    logits = max(min(MAX_LOGITS, settings.micro_batch_tokens * vocabulary), vocabulary)
    elements = vectors * parameters_of(config) + vocabulary * config.dim + 2 * logits
    return PROGRAM + np.dtype(settings.dtype).itemsize * elements


def node_bytes(config: TransformerConfig, dtype: str) -> float:
    """Bytes of what a node's forward pass saves for its backward pass, layer by layer.

    Norms and the inputs of products 4·D, queries, keys and values with attention's copies
    3·H·E + 4·K·E (and H·E + K·E if they are normed), attention's probabilities H·keys, SwiGLU 5·F.
    """
    c, normed = config, config.model_type == "qwen3"
    heads = ((3 + normed) * c.n_heads + (4 + normed) * c.n_kv_heads) * c.head_dim
    heads += c.n_heads * KEYS
    return c.n_layers * np.dtype(dtype).itemsize * (4 * c.dim + heads + 5 * c.ffn_dim)


def micro_batch_within(settings: TrainSettings, config: TransformerConfig) -> int:
    """micro_batch_tokens, or fewer if memory_limit needs it.   Raises ValueError if none fits."""
    fixed, of_node = fixed_bytes(settings, config), node_bytes(config, settings.dtype)
    nodes = int(min((settings.memory_limit * 1e9 - fixed) / of_node, 1e18))
    if nodes < 1:
        needed = f"training this model takes {(fixed + 64 * of_node) / 1e9:.1f} GB"
        raise ValueError(f"{needed}: raise memory_limit (it is {settings.memory_limit:g} GB)")
    return min(settings.micro_batch_tokens, nodes)
