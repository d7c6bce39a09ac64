"""Policies for many runs of the tree walk at once: R of them side by side, each with parameters of its own.

All that a policy can say on a binary tree of depth D fits in one array: log p of every move after every prefix, (R,N) with
N = 2 + 4 + … + 2**D, level after level, each level in lexicographic order.  Move j follows the inner node j // 2 and leads to
the inner node j + 1, where inner node 0 is the root.

    Tabular        a softmax of its own for every prefix: nothing is shared, so all targets are alike
    Transformers   R small transformers of the package's shape, computed by batched products; the same numbers as
                   `minigrpo.Transformer`, which would spend most of a step so small on Python
    OneModel       one `minigrpo.Transformer` of any size: R = 1

All have `flat`, the parameters of all runs in one vector, (R·P,), `logp()` -> (R,N), and `gradients(dlogp)` -> (R·P,).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np

from minigrpo.engine.lanes import one_blas_thread
from minigrpo.engine.parameters import TransformerConfig
from minigrpo.ops import rotation, swiglu, swiglu_backward
from minigrpo.transformer import Transformer
from minigrpo.tree import PrefixTree

BOS = 2  # the root's token: no move, and masked


def n_moves(depth: int) -> int:
    """N: the moves of a whole binary tree."""
    return 2 ** (depth + 1) - 2


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """log p of the two moves after each inner node.   (R,N/2,2) -> (R,N) float64"""
    logits = np.asarray(logits, dtype=np.float64)
    logp = logits - np.logaddexp(logits[..., :1], logits[..., 1:])
    return logp.reshape(len(logits), -1)


def log_softmax_backward(dlogp: np.ndarray, logp: np.ndarray) -> np.ndarray:
    """dlogits = dlogp - p · (sum of dlogp over the two moves).   (R,N), (R,N) -> (R,N/2,2)"""
    pairs = dlogp.reshape(len(dlogp), -1, 2)
    return pairs - np.exp(logp).reshape(pairs.shape) * pairs.sum(-1, keepdims=True)


class Tabular:
    """A softmax for every prefix.   start (R,N) logits, or the number of runs: then all start at 0, the uniform policy"""

    def __init__(self, runs: int, depth: int, start: np.ndarray | None = None) -> None:
        logits = (
            np.zeros((runs, n_moves(depth))) if start is None else np.array(start, dtype=np.float64)
        )
        self.flat = logits.reshape(-1)
        self._shape = runs, -1, 2

    def logp(self) -> np.ndarray:
        """-> (R,N)"""
        self._logp = log_softmax(self.flat.reshape(self._shape))
        return self._logp

    def gradients(self, dlogp: np.ndarray) -> np.ndarray:
        """d loss / d parameters of the last `logp`.   dlogp (R,N) -> (R·P,)"""
        return log_softmax_backward(dlogp, self._logp).reshape(-1)


class Transformers:
    """One transformer a seed, each as `Transformer(config, seed)` starts.

    config needs a vocabulary of three tokens (L, R, root), tied embeddings, and as many key heads as heads; the head reads
    the rows of L and R alone.   Raises ValueError for another shape.
    """

    def __init__(
        self, config: TransformerConfig, seeds: Sequence[int], depth: int, dtype: str = "float32"
    ) -> None:
        if (
            config.vocab_size != BOS + 1
            or not config.tie_embeddings
            or config.n_kv_heads != config.n_heads
        ):
            raise ValueError(
                "the walk's transformers have a vocabulary of 3, tied embeddings and plain attention"
            )
        self.config, self.dtype = config, np.dtype(dtype)
        start = [Transformer(config, seed, dtype=dtype).parameters.flat for seed in seeds]
        self.flat = np.concatenate(start)
        self._views = self._split(self.flat)
        self._flat_gradients = np.zeros_like(self.flat)
        self._gradients = self._split(self._flat_gradients)
        n = 2**depth - 1  # inner nodes, the root first
        node = np.arange(n)
        self._token = np.where(node == 0, BOS, (node - 1) % 2)
        level = np.log2(node + 1).astype(np.int64)
        turns = rotation(level, config.head_dim, config.rope_base)[:, None]
        self._turn = turns.astype(
            np.complex64 if self.dtype == np.float32 else np.complex128
        )  # (N',1,E/2)
        sees = np.eye(n, dtype=bool)
        for child in node[1:]:
            sees[child] |= sees[(child - 1) // 2]
        self._mask = np.where(sees, 0, -np.inf).astype(self.dtype)  # (N',N')

    def _split(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """Views of one vector by name.   -> (R, …) each; vectors as (R,1,D)"""
        shapes = self.config.shapes()
        rows = flat.reshape(-1, sum(math.prod(shape) for shape in shapes.values()))
        views, offset = {}, 0
        for name, shape in shapes.items():
            size = math.prod(shape)
            whole = (1, *shape) if len(shape) == 1 else shape
            views[name] = rows[:, offset : offset + size].reshape(-1, *whole)
            offset += size
        return views

    @one_blas_thread()
    def logp(self) -> np.ndarray:
        """-> (R,N)"""
        w, eps = self._views, self.config.norm_eps
        self._saved = []
        x = w["model.embed_tokens.weight"][:, self._token]  # (R,N',D)
        for i in range(self.config.n_layers):
            at = f"model.layers.{i}."
            h, norm1 = rmsnorm(x, w[at + "input_layernorm.weight"], eps)
            q, k, v = (
                self._heads(h @ turned(w[f"{at}self_attn.{name}_proj.weight"])) for name in "qkv"
            )  # (R,H,N',E)
            q, k = self._rotate(q, self._turn), self._rotate(k, self._turn)
            s = q @ turned(k) / math.sqrt(self.config.head_dim) + self._mask  # (R,H,N',N')
            p = np.exp(s - s.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
            y = (p @ v).swapaxes(1, 2).reshape(*x.shape[:2], -1)  # (R,N',H·E)
            x = x + y @ turned(w[at + "self_attn.o_proj.weight"])
            h2, norm2 = rmsnorm(x, w[at + "post_attention_layernorm.weight"], eps)
            gate, up = (
                h2 @ turned(w[at + "mlp.gate_proj.weight"]),
                h2 @ turned(w[at + "mlp.up_proj.weight"]),
            )
            a, activated = swiglu(gate, up)  # (R,N',F)
            x = x + a @ turned(w[at + "mlp.down_proj.weight"])
            self._saved.append((h, norm1, q, k, v, p, y, h2, norm2, activated, a))
        self._h, self._norm = rmsnorm(x, w["model.norm.weight"], eps)
        logits = self._h @ turned(w["model.embed_tokens.weight"][:, :BOS])  # (R,N',2)
        self._logp = log_softmax(logits)
        return self._logp

    @one_blas_thread()
    def gradients(self, dlogp: np.ndarray) -> np.ndarray:
        """d loss / d parameters of the last `logp`.   dlogp (R,N) -> (R·P,), the same memory each time"""
        w, g = self._views, self._gradients
        dlogits = log_softmax_backward(dlogp, self._logp).astype(self.dtype)  # (R,N',2)
        head = w["model.embed_tokens.weight"][:, :BOS]
        embed = g["model.embed_tokens.weight"]
        embed[...] = 0
        embed[:, :BOS] = turned(dlogits) @ self._h
        dx = rmsnorm_backward(dlogits @ head, self._norm, g["model.norm.weight"])
        for i in reversed(range(self.config.n_layers)):
            at = f"model.layers.{i}."
            h, norm1, q, k, v, p, y, h2, norm2, activated, a = self._saved[i]
            da = linear_backward(
                dx, a, w[at + "mlp.down_proj.weight"], g[at + "mlp.down_proj.weight"]
            )
            dgate, dup = np.empty_like(da), np.empty_like(da)
            swiglu_backward(da, activated, dgate, dup)
            dh = linear_backward(
                dgate, h2, w[at + "mlp.gate_proj.weight"], g[at + "mlp.gate_proj.weight"]
            )
            dh += linear_backward(
                dup, h2, w[at + "mlp.up_proj.weight"], g[at + "mlp.up_proj.weight"]
            )
            dx = dx + rmsnorm_backward(dh, norm2, g[at + "post_attention_layernorm.weight"])
            dy = self._heads(
                linear_backward(
                    dx, y, w[at + "self_attn.o_proj.weight"], g[at + "self_attn.o_proj.weight"]
                )
            )
            dp = dy @ turned(v)
            ds = p * (dp - (dp * p).sum(-1, keepdims=True)) / math.sqrt(self.config.head_dim)
            turn_back = self._turn.conj()
            dqkv = (
                self._rotate(ds @ k, turn_back),
                self._rotate(turned(ds) @ q, turn_back),
                turned(p) @ dy,
            )
            dh = 0
            for name, d in zip("qkv", dqkv, strict=True):
                name = f"{at}self_attn.{name}_proj.weight"
                dh = dh + linear_backward(d.swapaxes(1, 2).reshape(y.shape), h, w[name], g[name])
            dx = dx + rmsnorm_backward(dh, norm1, g[at + "input_layernorm.weight"])
        for token in range(BOS + 1):
            embed[:, token] += dx[:, self._token == token].sum(1)
        return self._flat_gradients

    def _heads(self, x: np.ndarray) -> np.ndarray:
        """(R,N',H·E) -> (R,H,N',E)"""
        return x.reshape(*x.shape[:2], self.config.n_heads, -1).swapaxes(1, 2)

    @staticmethod
    def _rotate(x: np.ndarray, turn: np.ndarray) -> np.ndarray:
        """Rotate the pairs of each head by its node's position.   (R,H,N',E)"""
        return (np.ascontiguousarray(x).view(turn.dtype) * turn[:, 0]).view(x.dtype)


class OneModel:
    """A model that draws two tokens, over all that it can say after a prompt: one forward and one backward pass a step."""

    def __init__(self, model: Transformer, prompt: np.ndarray, depth: int) -> None:
        paths = list(product(range(2), repeat=depth))
        self.model, self.flat = model, model.parameters.flat
        self._tree = PrefixTree.from_groups([prompt], [paths])
        level = np.arange(depth)
        move = (
            2 ** (level + 1) - 2 + (np.arange(2**depth)[:, None] >> (depth - 1 - level))
        )  # (2**depth,depth)
        self._node = np.zeros(n_moves(depth), dtype=np.int64)
        self._node[move] = self._tree.paths

    def logp(self) -> np.ndarray:
        """-> (1,N)"""
        return self.model.forward(self._tree)[None, self._node].astype(np.float64)

    def gradients(self, dlogp: np.ndarray) -> np.ndarray:
        """d loss / d parameters of the last `logp`, for which there is one call.   dlogp (1,N) -> (P,)"""
        on_nodes = np.zeros(self._tree.n_nodes)
        on_nodes[self._node] = dlogp[0]
        return self.model.backward(on_nodes, add=False).flat


def turned(x: np.ndarray) -> np.ndarray:
    """The transpose of every matrix."""
    return x.swapaxes(-1, -2)


def linear_backward(
    dy: np.ndarray, x: np.ndarray, weight: np.ndarray, dweight: np.ndarray
) -> np.ndarray:
    """dweight = dyᵀ x, dx = dy W, as `ops.linear_backward` for every run.   dy (R,N',O) -> (R,N',I)"""
    np.matmul(turned(dy), x, out=dweight)
    return dy @ weight


def rmsnorm(x: np.ndarray, weight: np.ndarray, eps: float) -> tuple[np.ndarray, tuple]:
    """As `ops.rmsnorm` for every run.   x (R,N',D), weight (R,1,D)"""
    inv_rms = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    unit = x * inv_rms
    return unit * weight, (unit, inv_rms, weight)


def rmsnorm_backward(dy: np.ndarray, cache: tuple, dweight: np.ndarray) -> np.ndarray:
    """As `ops.rmsnorm_backward`, dweight (R,1,D) overwritten."""
    unit, inv_rms, weight = cache
    dweight[...] = (dy * unit).sum(1, keepdims=True)
    dunit = dy * weight
    return inv_rms * (dunit - unit * (dunit * unit).mean(-1, keepdims=True))
