"""How much memory training takes, and how many nodes may go through the model at a time to stay within a limit."""

from __future__ import annotations

import numpy as np

from minigrpo.engine.parameters import TransformerConfig
from minigrpo.runs.settings import TrainSettings
from minigrpo.transformer import MAX_LOGITS

PROGRAM = 300e6  # bytes: Python, NumPy, BLAS buffers, a rollout's cache
KEYS = 256  # keys that a query is taken to see


def parameters_of(config: TransformerConfig) -> int:
    """How many parameters a model of this shape has."""
    return sum(int(np.prod(shape)) for shape in config.shapes().values())


def fixed_bytes(settings: TrainSettings, config: TransformerConfig) -> float:
    """Bytes that training takes whatever the batch: parameters, gradients, moments, reference, the largest temporary arrays."""
    size = np.dtype(settings.dtype).itemsize
    vectors = 2 + 2 * (settings.optimizer == "adamw") + (settings.make_objective().beta > 0)
    logits = 2 * max(
        min(MAX_LOGITS, settings.micro_batch_tokens * config.vocab_size), config.vocab_size
    )
    return PROGRAM + size * (
        vectors * parameters_of(config) + config.vocab_size * config.dim + logits
    )


def node_bytes(config: TransformerConfig, dtype: str) -> float:
    """Bytes of what a node's forward pass saves for its backward pass, layer by layer.

    Norms and the inputs of products 4·D, queries, keys and values with attention's copies 3·H·E + 4·K·E, attention's
    probabilities H·keys, SwiGLU 5·F.
    """
    c = config
    heads = (3 * c.n_heads + 4 * c.n_kv_heads) * c.head_dim + c.n_heads * KEYS
    return c.n_layers * np.dtype(dtype).itemsize * (4 * c.dim + heads + 5 * c.ffn_dim)


def micro_batch_within(settings: TrainSettings, config: TransformerConfig) -> int:
    """The settings' micro_batch_tokens, or fewer if memory_limit needs it.   Raises ValueError if not even one fits."""
    limit, fixed = settings.memory_limit * 1e9, fixed_bytes(settings, config)
    nodes = int(min((limit - fixed) / node_bytes(config, settings.dtype), 1e18))
    if nodes < 1:
        needed = (fixed + 64 * node_bytes(config, settings.dtype)) / 1e9
        raise ValueError(
            f"training this model takes {needed:.1f} GB: raise memory_limit (it is {settings.memory_limit:g} GB)"
        )
    return min(settings.micro_batch_tokens, nodes)
