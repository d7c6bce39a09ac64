"""The shape of a transformer, and its parameters: named views into one flat vector.

As everything is one vector, the optimiser, gradient clipping and checkpoints need no loop over
tensors. Parameters carry the names and shapes of a Hugging Face Llama checkpoint.  One thing
differs: such a checkpoint rotates element j of a head together with element j + E/2, this model
rotates neighbours 2j and 2j+1 (one complex number), so the rows of Q and K are permuted.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from minigrpo.engine.backend import Array, Backend

EMBEDDING = "model.embed_tokens.weight"
SIZES = "vocab_size", "dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim", "max_seq_len"

SWAPPED = 1 << 20  # parameters that change places at a time


DERIVED: Any = None  # a size that follows from others: the config has it as a number
# Qwen2 adds biases to Q, K and V; Qwen3 norms each head of Q and K; Mistral is a Llama.
MODEL_TYPES = "llama", "mistral", "qwen2", "qwen3"
LLAMA3 = "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"
SCALINGS = {"linear": ("factor",), "llama3": LLAMA3, "divisors": ("divisors",)}  # by "rope_type"


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of a model.  Raises ValueError if the numbers do not fit together.

    None takes what follows from the others: n_kv_heads is then n_heads, and so on.
    >>> mg.TransformerConfig(vocab_size=100, dim=64, n_layers=2, n_heads=4, n_kv_heads=2).head_dim
    16
    """

    vocab_size: int  # V
    dim: int = 128  # D
    n_layers: int = 4  # L
    n_heads: int = 4  # H
    n_kv_heads: int = DERIVED  # K; None: as many as heads
    ffn_dim: int = DERIVED  # F; None: 8/3 of dim, rounded up to a multiple of 8
    max_seq_len: int = 1024
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    head_dim: int = DERIVED  # E; None: D / H
    n_drawable: int | None = None  # only tokens below it can be drawn; None: all
    model_type: str = "llama"  # of MODEL_TYPES
    rope_scaling: dict[str, Any] | None = None  # of the rotary positions, as in SCALINGS

    def __post_init__(self) -> None:
        def default(name: str, value: int | None, unset: int | None = None) -> None:
            if getattr(self, name) == unset:
                object.__setattr__(self, name, value)

        default("n_kv_heads", self.n_heads)
        default("ffn_dim", -(-8 * self.dim // 24) * 8)
        default("n_drawable", None, unset=self.vocab_size)
        for name in SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        wide = f"dim {self.dim} must divide into {self.n_heads} heads of an even width"
        if self.head_dim is None and self.dim % self.n_heads:
            raise ValueError(wide)
        default("head_dim", self.dim // self.n_heads)
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"{wide}, not {self.head_dim}")
        if self.n_heads % self.n_kv_heads:
            heads = f"{self.n_heads} heads cannot share {self.n_kv_heads} key/value heads"
            raise ValueError(f"{heads}: take a divisor")
        if not (self.rope_base > 0 and self.norm_eps >= 0):
            found = f"rope_base is {self.rope_base} and norm_eps {self.norm_eps}"
            raise ValueError(f"{found}: they must be above 0 and at least 0")
        n = self.n_drawable
        if n is not None and (type(n) is not int or not 1 <= n < self.vocab_size):
            allowed = f"a whole number from 1 to {self.vocab_size}, the vocabulary"
            raise ValueError(f"n_drawable is {n!r}: it must be {allowed}")
        if self.model_type not in MODEL_TYPES:
            raise ValueError(f"model_type is {self.model_type!r}: choose {', '.join(MODEL_TYPES)}")
        if not (self.rope_scaling is None or _is_scaling(self.rope_scaling, self.head_dim // 2)):
            told = f"rope_scaling scales rotary positions by {reprlib.repr(self.rope_scaling)}"
            raise ValueError(f"{told}: give linear a factor, or llama3 {', '.join(LLAMA3)}")

    def check(self, token: np.ndarray, length: int, drawn: np.ndarray | tuple = ()) -> None:
        """Raise ValueError for tokens that it lacks or cannot draw, and for a sequence too long."""
        last, last_drawn = np.max(token, initial=-1), np.max(drawn, initial=-1)
        if last >= self.vocab_size:
            outside = f"outside the model's vocabulary of {self.vocab_size}"
            raise ValueError(f"token id {last} is {outside}")
        if length > self.max_seq_len:
            raise ValueError(
                f"a prompt with its completion takes {length} tokens, the model's context "
                f"(max_seq_len) holds {self.max_seq_len}: shorten the prompt or max_new_tokens"
            )
        if last_drawn >= self.n_logits:
            found = f"token id {last_drawn} of a completion cannot be drawn"
            raise ValueError(f"{found}: the model draws those below {self.n_logits}")

    @property
    def n_logits(self) -> int:
        """How many rows of the head are used: only tokens below it can be drawn and scored."""
        return self.vocab_size if self.n_drawable is None else self.n_drawable

    @property
    def head(self) -> str:
        """The name of the matrix that makes logits."""
        return EMBEDDING if self.tie_embeddings else "lm_head.weight"

    def rotary(self) -> tuple[int, float, Any]:
        """Head width, base, and what each pair's frequency is divided by: for `ops.rotation`.

        "llama3" leaves pairs that turn often within the original context, divides those that hardly
        turn by the factor, and goes from one to the other in between (as `transformers` does).
        """
        rope, width, base = self.rope_scaling or {}, self.head_dim, self.rope_base
        if rope.get("rope_type") != "llama3":
            return width, base, np.asarray(rope.get("divisors", rope.get("factor", 1.0)))
        factor, low, high, context = (rope[key] for key in LLAMA3)
        turns = context * base ** (-np.arange(0, width, 2) / width) / (2 * np.pi)  # (E/2,)
        kept = np.clip((turns - low) / (high - low), 0, 1)
        return width, base, 1 / (kept + (1 - kept) / factor)

    def rotated_heads(self, name: str) -> int | None:
        """How many heads a parameter's elements are rotated in, if they are."""
        heads = {"q_proj": self.n_heads, "k_proj": self.n_kv_heads, "q_norm": 1, "k_norm": 1}
        return heads.get(name.split(".")[-2])

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter in the order of `flat`; matrices (outputs, inputs)."""
        d, f = self.dim, self.ffn_dim
        q, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (self.vocab_size, d)}
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
            if self.model_type == "qwen2":
                widths = {"q": q, "k": kv, "v": kv}
                shapes |= {f"{layer}self_attn.{x}_proj.bias": (n,) for x, n in widths.items()}
            if self.model_type == "qwen3":
                shapes |= {f"{layer}self_attn.{x}_norm.weight": (self.head_dim,) for x in "qk"}
        shapes["model.norm.weight"] = (d,)
        return shapes if self.tie_embeddings else shapes | {self.head: (self.vocab_size, d)}


class Parameters(Mapping):
    """Named arrays that are views into one vector, `flat`: writing into either changes both."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], xp: Any, dtype: Any) -> None:
        self.flat = xp.zeros(sum(map(math.prod, shapes.values())), dtype=dtype)
        self._views, self._offset, offset = {}, {}, 0
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

    def start(self, config: TransformerConfig, rng: np.random.Generator, backend: Backend) -> None:
        """Embeddings start as N(0, 0.02²), norms as 1, biases as 0, matrices as N(0, 1/inputs).

        Matrices that write into the residual stream start as N(0, 1/(2·layers·inputs)).  With tied
        embeddings the policy is then nearly the uniform one.
        """
        for name, view in self.items():
            if view.ndim == 1:
                view[...] = not name.endswith("bias")
                continue
            writes = name.endswith(("o_proj.weight", "down_proj.weight"))
            inputs = view.shape[1] * (2 * config.n_layers if writes else 1)
            scale = 0.02 if "embed" in name else 1 / math.sqrt(inputs)
            view[...] = backend.to_device(rng.standard_normal(view.shape) * scale, self.flat.dtype)

    def clear(self, config: TransformerConfig, matrices: bool) -> None:
        """Set gradients to 0; matrices=False leaves out those that a product will overwrite."""
        for name, gradient in self.items():
            if matrices or gradient.ndim == 1 or name == EMBEDDING != config.head:
                gradient[...] = 0
        self[config.head][config.n_logits :] = 0

    def joined(self, *names: str) -> Array:
        """Matrices (or vectors) that stand one after the other in `flat`, as one taller matrix."""
        start, size = self._offset[names[0]], sum(self[name].size for name in names)
        return self.flat[start : start + size].reshape(-1, *self[names[0]].shape[1:])

    @cached_property
    def layers(self) -> list[Layer]:
        """The views of every layer, the first layer first."""
        layers = []
        for i in range(sum(name.endswith("o_proj.weight") for name in self)):
            name = f"model.layers.{i}."
            biases = [f"{name}self_attn.{x}_proj.bias" for x in "qkv"]
            norms = [f"{name}self_attn.{x}_norm.weight" for x in "qk"]
            layers.append(
                Layer(
                    attention_norm=self[name + "input_layernorm.weight"],
                    qkv=self.joined(*(f"{name}self_attn.{x}_proj.weight" for x in "qkv")),
                    o=self[name + "self_attn.o_proj.weight"],
                    ffn_norm=self[name + "post_attention_layernorm.weight"],
                    gate_up=self.joined(name + "mlp.gate_proj.weight", name + "mlp.up_proj.weight"),
                    down=self[name + "mlp.down_proj.weight"],
                    qkv_bias=self.joined(*biases) if biases[0] in self else None,
                    head_norms=tuple(self[norm] for norm in norms if norm in self),
                )
            )
        return layers


@contextmanager
def with_parameters(model: Any, flat: Array) -> Iterator[None]:
    """Give a model other parameters for a while; `flat` holds its own, so none is copied."""
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
    """Views of one layer's parameters (or gradients); matrices with the same input are joined."""

    attention_norm: Array  # (D,)
    qkv: Array  # (H·E + 2·K·E, D)
    o: Array  # (D, H·E)
    ffn_norm: Array  # (D,)
    gate_up: Array  # (2·F, D)
    down: Array  # (D, F)
    qkv_bias: Array | None  # (H·E + 2·K·E,)
    head_norms: tuple[Array, ...]  # of Q and of K, (E,) each, or none


def rotate_neighbours(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows j and j + E/2 of each head of a Hugging Face Q or K projection become 2j and 2j+1."""
    heads = weight.reshape(n_heads, 2, -1, *weight.shape[1:])  # (H,2,E/2,D), of a bias (H,2,E/2)
    return heads.swapaxes(1, 2).reshape(weight.shape)


def rotate_halves(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """The inverse of `rotate_neighbours`, for writing a Hugging Face checkpoint."""
    heads = weight.reshape(n_heads, -1, 2, *weight.shape[1:])  # (H,E/2,2,D)
    return heads.swapaxes(1, 2).reshape(weight.shape)


def _is_scaling(rope: Any, n_pairs: int) -> bool:
    """Whether it has what its type of scaling needs, nothing else, and numbers that make sense."""
    keys = SCALINGS.get(str(rope.get("rope_type"))) if isinstance(rope, dict) else None
    if keys is None or rope.keys() != {"rope_type", *keys}:
        return False
    numbers = rope.get("divisors", [rope[key] for key in keys])
    if not isinstance(numbers, list) or {type(x) for x in numbers} - {int, float}:
        return False
    fits = {"divisors": len(numbers) == n_pairs, "llama3": numbers[1:2] < numbers[2:3]}
    return fits.get(rope["rope_type"], True) and all(1e-6 < x < 1e10 for x in numbers)
