"""Policies for many runs of the tree walk at once, side by side, each with its own parameters.

All that a policy can say on a binary tree fits in one array, (runs,moves): log p of each of the
2 + 4 + … + 2**depth moves, level after level, each level in lexicographic order.  Move j follows
the inner node j // 2 and leads to the inner node j + 1; inner node 0 is the root.

    Tabular        a softmax of its own for every prefix: nothing is shared, all targets are alike
    Transformers   small transformers of the package's shape, computed by batched products; the
                   same numbers as `minigrpo.Transformer`, which would spend most of a step so small
                   on Python
    OneModel       one `minigrpo.Transformer` of any size: one run

All have `flat`, the parameters of all runs in one vector, `logp()` -> (runs,moves), and
`gradients(dlogp)`, a vector like `flat`.  In shapes, `inner` is the number of inner nodes.
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
DEPTH = 4  # of the paper's tree


def n_moves(depth: int) -> int:
    """N: the moves of a whole binary tree."""
    return 2 ** (depth + 1) - 2


def moves_to(leaf: np.ndarray, depth: int = DEPTH) -> np.ndarray:
    """The moves on the way to each leaf, as numbers among those of the tree.   (…,) -> (…,depth)"""
    level = np.arange(1, depth + 1)
    return 2**level - 2 + (np.asarray(leaf)[..., None] >> (depth - level))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """log p of the two moves after each inner node.   (runs,inner,2) -> (runs,moves) float64"""
    logits = np.asarray(logits, dtype=np.float64)
    logp = logits - np.logaddexp(logits[..., :1], logits[..., 1:])
    return logp.reshape(len(logits), -1)


def log_softmax_backward(dlogp: np.ndarray, logp: np.ndarray) -> np.ndarray:
    """dlogits = dlogp - p · (sum of dlogp over the two moves).   -> (runs,inner,2)"""
    pairs = dlogp.reshape(len(dlogp), -1, 2)
    return pairs - np.exp(logp).reshape(pairs.shape) * pairs.sum(-1, keepdims=True)


class Tabular:
    """A softmax for every prefix.   start (runs,moves) logits; None: 0, the uniform policy"""

    def __init__(self, runs: int, depth: int, start: np.ndarray | None = None) -> None:
        self.flat = np.zeros(runs * n_moves(depth))
        if start is not None:
            self.flat[:] = start.reshape(-1)
        self._shape = runs, -1, 2

    def logp(self) -> np.ndarray:
        """-> (runs,moves)"""
        self._logp = log_softmax(self.flat.reshape(self._shape))
        return self._logp

    def gradients(self, dlogp: np.ndarray) -> np.ndarray:
        """d loss / d parameters of the last `logp`.   dlogp (runs,moves) -> (runs·moves,)"""
        return log_softmax_backward(dlogp, self._logp).reshape(-1)


LAYER = {  # short names of a layer's weights
    "norm1": "input_layernorm",
    **{name: f"self_attn.{name}_proj" for name in "qkvo"},
    "norm2": "post_attention_layernorm",
    **{name: f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}


class Transformers:
    """One transformer per seed, each as `Transformer(config, seed)` starts.

    config needs a vocabulary of three tokens (L, R, root), tied embeddings, and as many key heads
    as heads; the head reads the rows of L and R alone.   Raises ValueError for another shape.
    """

    def __init__(
        self, config: TransformerConfig, seeds: Sequence[int], depth: int, dtype: str = "float32"
    ) -> None:
        plain = config.tie_embeddings and config.n_kv_heads == config.n_heads
        if config.vocab_size != BOS + 1 or not plain:
            needs = "a vocabulary of 3, tied embeddings and plain attention"
            raise ValueError(f"the walk's transformers have {needs}")
        self.config, self.dtype = config, np.dtype(dtype)
        start = [Transformer(config, seed, dtype=dtype).parameters.flat for seed in seeds]
        self.flat = np.concatenate(start)
        self._flat_gradients = np.zeros_like(self.flat)
        self._weights, self._gradients = self._split(self.flat), self._split(self._flat_gradients)
        node = np.arange(2**depth - 1)  # inner nodes, the root first
        self._token = np.where(node == 0, BOS, (node - 1) % 2)
        level = np.log2(node + 1).astype(np.int64)
        turns = rotation(level, config.head_dim, config.rope_base)
        self._turn = turns.astype(np.complex64 if self.dtype == np.float32 else np.complex128)
        sees = np.eye(len(node), dtype=bool)
        for child in node[1:]:
            sees[child] |= sees[(child - 1) // 2]
        self._mask = np.where(sees, 0, -np.inf).astype(self.dtype)  # (inner,inner)

    def _split(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[dict]]:
        """Views of one vector: embedding (runs,V,D), last norm (runs,1,D), each layer's weights."""
        shapes = self.config.shapes()
        sizes = [math.prod(shape) for shape in shapes.values()]
        rows = flat.reshape(-1, sum(sizes))
        parts = np.split(rows, np.cumsum(sizes)[:-1], axis=1)
        views = {
            name: part.reshape(-1, *((1, *shape) if len(shape) == 1 else shape))
            for part, (name, shape) in zip(parts, shapes.items(), strict=True)
        }
        layers = [
            {short: views[f"model.layers.{i}.{name}.weight"] for short, name in LAYER.items()}
            for i in range(self.config.n_layers)
        ]
        return views["model.embed_tokens.weight"], views["model.norm.weight"], layers

    @one_blas_thread()
    def logp(self) -> np.ndarray:
        """-> (runs,moves)"""
        (embed, last, layers), eps = self._weights, self.config.norm_eps
        self._saved = []
        x = embed[:, self._token]  # (runs,inner,D)
        for w in layers:
            h, norm1 = rmsnorm(x, w["norm1"], eps)
            q, k, v = (self._heads(h @ w[name].mT) for name in "qkv")  # (runs,H,inner,E)
            q, k = self._rotate(q, self._turn), self._rotate(k, self._turn)
            s = q @ k.mT / math.sqrt(self.config.head_dim) + self._mask  # (runs,H,inner,inner)
            p = np.exp(s - s.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
            y = (p @ v).swapaxes(1, 2).reshape(*x.shape[:2], -1)  # (runs,inner,H·E)
            x = x + y @ w["o"].mT
            h2, norm2 = rmsnorm(x, w["norm2"], eps)
            a, activated = swiglu(h2 @ w["gate"].mT, h2 @ w["up"].mT)  # (runs,inner,F)
            x = x + a @ w["down"].mT
            self._saved.append((h, norm1, q, k, v, p, y, h2, norm2, activated, a))
        self._h, self._norm = rmsnorm(x, last, eps)
        self._logp = log_softmax(self._h @ embed[:, :BOS].mT)
        return self._logp

    @one_blas_thread()
    def gradients(self, dlogp: np.ndarray) -> np.ndarray:
        """d loss / d parameters of the last `logp`.

        dlogp (runs,moves) -> (runs·parameters,), the same memory each time
        """
        (embed, _, layers), (dembed, dlast, dlayers) = self._weights, self._gradients
        dlogits = log_softmax_backward(dlogp, self._logp).astype(self.dtype)  # (runs,inner,2)
        dembed[...] = 0
        dembed[:, :BOS] = dlogits.mT @ self._h
        dx = rmsnorm_backward(dlogits @ embed[:, :BOS], self._norm, dlast)
        for w, g, saved in zip(layers[::-1], dlayers[::-1], self._saved[::-1], strict=True):
            h, norm1, q, k, v, p, y, h2, norm2, activated, a = saved
            da = linear_backward(dx, a, w["down"], g["down"])
            dgate, dup = np.empty_like(da), np.empty_like(da)
            swiglu_backward(da, activated, dgate, dup)
            dh = linear_backward(dgate, h2, w["gate"], g["gate"])
            dh += linear_backward(dup, h2, w["up"], g["up"])
            dx = dx + rmsnorm_backward(dh, norm2, g["norm2"])
            dy = self._heads(linear_backward(dx, y, w["o"], g["o"]))
            dp = dy @ v.mT
            ds = p * (dp - (dp * p).sum(-1, keepdims=True)) / math.sqrt(self.config.head_dim)
            back = self._turn.conj()
            dq, dk = self._rotate(ds @ k, back), self._rotate(ds.mT @ q, back)
            dh = 0
            for name, d in (("q", dq), ("k", dk), ("v", p.mT @ dy)):
                d = d.swapaxes(1, 2).reshape(y.shape)
                dh = dh + linear_backward(d, h, w[name], g[name])
            dx = dx + rmsnorm_backward(dh, norm1, g["norm1"])
        for token in range(BOS + 1):
            dembed[:, token] += dx[:, self._token == token].sum(1)
        return self._flat_gradients

    def _heads(self, x: np.ndarray) -> np.ndarray:
        """(runs,inner,H·E) -> (runs,H,inner,E)"""
        return x.reshape(*x.shape[:2], self.config.n_heads, -1).swapaxes(1, 2)

    @staticmethod
    def _rotate(x: np.ndarray, turn: np.ndarray) -> np.ndarray:
        """Rotate the pairs of each head by its node's position.   (runs,H,inner,E), (inner,E/2)"""
        return (np.ascontiguousarray(x).view(turn.dtype) * turn).view(x.dtype)


class OneModel:
    """A model that draws two tokens, over all that it can say after a prompt, in one pass."""

    def __init__(self, model: Transformer, prompt: np.ndarray, depth: int) -> None:
        self.model, self.flat = model, model.parameters.flat
        self._tree = PrefixTree.from_groups([prompt], [list(product(range(2), repeat=depth))])
        self._node = np.zeros(n_moves(depth), dtype=np.int64)
        self._node[moves_to(np.arange(2**depth), depth)] = self._tree.paths

    def logp(self) -> np.ndarray:
        """-> (1,N)"""
        return self.model.forward(self._tree)[None, self._node].astype(np.float64)

    def gradients(self, dlogp: np.ndarray) -> np.ndarray:
        """d loss / d parameters of the last `logp`, for which there is one call.   dlogp (1,N)"""
        on_nodes = np.zeros(self._tree.n_nodes)
        on_nodes[self._node] = dlogp[0]
        return self.model.backward(on_nodes, add=False).flat


def linear_backward(
    dy: np.ndarray, x: np.ndarray, weight: np.ndarray, dweight: np.ndarray
) -> np.ndarray:
    """dweight = dyᵀ x, dx = dy W, as `ops.linear_backward` for every run."""
    np.matmul(dy.mT, x, out=dweight)
    return dy @ weight


def rmsnorm(x: np.ndarray, weight: np.ndarray, eps: float) -> tuple[np.ndarray, tuple]:
    """As `ops.rmsnorm` for every run.   x (runs,inner,D), weight (runs,1,D)"""
    inv_rms = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    unit = x * inv_rms
    return unit * weight, (unit, inv_rms, weight)


def rmsnorm_backward(dy: np.ndarray, cache: tuple, dweight: np.ndarray) -> np.ndarray:
    """As `ops.rmsnorm_backward`, dweight (runs,1,D) overwritten."""
    unit, inv_rms, weight = cache
    dweight[...] = (dy * unit).sum(1, keepdims=True)
    dunit = dy * weight
    return inv_rms * (dunit - unit * (dunit * unit).mean(-1, keepdims=True))
