"""The shape of a transformer, and its parameters: named views into one flat vector.

As everything is one vector, the optimiser, gradient clipping and checkpoints need no loop over tensors.  Parameters carry the
names and shapes of a Hugging Face Llama checkpoint.  One thing differs: such a checkpoint rotates element j of a head together
with element j + E/2, this model rotates neighbours 2j and 2j+1 (one complex number), so the rows of Q and K are permuted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from minigrpo.ops import Array

SWAPPED = 1 << 20  # parameters that change places at a time


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of a model.  Raises ValueError if the numbers do not fit together."""

    vocab_size: int  # V
    dim: int = 128  # D
    n_layers: int = 4
    n_heads: int = 4  # H
    n_kv_heads: int | None = None  # K; None: as many as heads
    ffn_dim: int | None = None  # F; None: 8/3 of dim, rounded up to a multiple of 8
    max_seq_len: int = 1024
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    head_dim: int | None = None  # E, the width of a head; None: D / H
    n_drawable: int | None = (
        None  # tokens below it have a logit, the others may only stand in prompts; None: all have
    )

    def __post_init__(self) -> None:
        if self.n_kv_heads is None:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        if self.ffn_dim is None:
            object.__setattr__(self, "ffn_dim", -(-8 * self.dim // 24) * 8)
        for name in (
            "vocab_size",
            "dim",
            "n_layers",
            "n_heads",
            "n_kv_heads",
            "ffn_dim",
            "max_seq_len",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.head_dim is None:
            if self.dim % self.n_heads:
                raise ValueError(
                    f"dim {self.dim} must divide into {self.n_heads} heads of an even width"
                )
            object.__setattr__(self, "head_dim", self.dim // self.n_heads)
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(
                f"dim {self.dim} must divide into {self.n_heads} heads of an even width, not {self.head_dim}"
            )
        if not (self.rope_base > 0 and self.norm_eps >= 0):
            raise ValueError(
                f"rope_base ({self.rope_base}) must be above 0, norm_eps ({self.norm_eps}) at least 0"
            )
        if self.n_drawable is not None and (
            type(self.n_drawable) is not int or not 1 <= self.n_drawable <= self.vocab_size
        ):
            raise ValueError(
                f"n_drawable is {self.n_drawable!r}: it must be a whole number from 1 to {self.vocab_size}, the vocabulary"
            )
        if self.n_drawable == self.vocab_size:
            object.__setattr__(self, "n_drawable", None)
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"{self.n_heads} heads cannot share {self.n_kv_heads} key/value heads: take a divisor"
            )

    @property
    def n_logits(self) -> int:
        """How many rows of the head are used, the first ones: only their tokens can be drawn and scored."""
        return self.vocab_size if self.n_drawable is None else self.n_drawable

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter, in the order of the flat vector; matrices are (outputs, inputs)."""
        d, f, q, kv = (
            self.dim,
            self.ffn_dim,
            self.n_heads * self.head_dim,
            self.n_kv_heads * self.head_dim,
        )
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, d)}
        for i in range(self.n_layers):
            layer = f"model.layers.{i}."
            shapes |= {
                layer + "input_layernorm.weight": (d,),
                layer + "self_attn.q_proj.weight": (q, d),
                layer + "self_attn.k_proj.weight": (kv, d),
                layer + "self_attn.v_proj.weight": (kv, d),
                layer + "self_attn.o_proj.weight": (d, q),
                layer + "post_attention_layernorm.weight": (d,),
                layer + "mlp.gate_proj.weight": (f, d),
                layer + "mlp.up_proj.weight": (f, d),
                layer + "mlp.down_proj.weight": (d, f),
            }
        shapes["model.norm.weight"] = (d,)
        if not self.tie_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, d)
        return shapes


class Parameters(Mapping):
    """Named arrays that are views into one vector, `flat`.  Write into a view or into `flat`; both are the same memory."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], xp: Any, dtype: Any) -> None:
        self.flat = xp.zeros(sum(math.prod(shape) for shape in shapes.values()), dtype=dtype)
        self._views, self._offset = {}, {}
        offset = 0
        for name, shape in shapes.items():
            size = math.prod(shape)
            self._offset[name] = offset
            self._views[name] = self.flat[offset : offset + size].reshape(shape)
            offset += size

    def __getitem__(self, name: str) -> Array:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def joined(self, *names: str) -> Array:
        """Matrices that stand one after the other in `flat`, as one taller matrix."""
        start, rows = self._offset[names[0]], sum(len(self[name]) for name in names)
        columns = self[names[0]].shape[1]
        return self.flat[start : start + rows * columns].reshape(rows, columns)


@contextmanager
def with_parameters(model: Any, flat: Array) -> Iterator[None]:
    """Give a model other parameters for a while; `flat` holds its own meanwhile, so none is copied."""
    _swap(model.parameters.flat, flat)
    try:
        yield
    finally:
        _swap(model.parameters.flat, flat)


def _swap(a: Array, b: Array) -> None:
    for start in range(0, len(a), SWAPPED):
        part = slice(start, start + SWAPPED)
        kept = a[part].copy()
        a[part], b[part] = b[part], kept


class Layer(NamedTuple):
    """Views of one layer's parameters (or gradients); matrices that read the same input are joined."""

    attention_norm: Array  # (D,)
    qkv: Array  # (H·E + 2·K·E, D)
    o: Array  # (D, H·E)
    ffn_norm: Array  # (D,)
    gate_up: Array  # (2·F, D)
    down: Array  # (D, F)

    @classmethod
    def of(cls, parameters: Parameters, i: int) -> Layer:
        """The views of layer i."""
        name = f"model.layers.{i}."
        return cls(
            parameters[name + "input_layernorm.weight"],
            parameters.joined(*(f"{name}self_attn.{x}_proj.weight" for x in "qkv")),
            parameters[name + "self_attn.o_proj.weight"],
            parameters[name + "post_attention_layernorm.weight"],
            parameters.joined(name + "mlp.gate_proj.weight", name + "mlp.up_proj.weight"),
            parameters[name + "mlp.down_proj.weight"],
        )


def rotate_neighbours(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of a Hugging Face Q or K projection, put in this model's order: j and j + E/2 become 2j and 2j+1.   (heads·E, D)"""
    heads = weight.reshape(n_heads, 2, -1, weight.shape[1])  # (heads, 2, E/2, D)
    return heads.swapaxes(1, 2).reshape(weight.shape)


def rotate_halves(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """The inverse of `rotate_neighbours`, for writing a Hugging Face checkpoint."""
    heads = weight.reshape(n_heads, -1, 2, weight.shape[1])  # (heads, E/2, 2, D)
    return heads.swapaxes(1, 2).reshape(weight.shape)
