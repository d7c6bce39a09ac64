"""The operations of a Llama-shaped transformer, each forward side by side with its backward.

A forward returns y, with a cache if its backward needs one; the backward takes dy and the cache.
`dx` is d loss / d x.  All functions are ones that NumPy and CuPy both have, and sums run in a fixed
order: equal inputs give equal bits.

Shape letters, each with one meaning in the code of the whole package:
    B rollouts (completions), k of them per group; G groups, each with one prompt; T time
    W the longest prompt with its completion
    N nodes, M of them computed; C scored children
    V vocabulary, L layers, D model width, H heads, K key/value heads, E head width, F ffn width
    S forks, R rows per fork, Q queries per row, P keys of the prefix (see `engine/blocks.py`)
"""

from __future__ import annotations

import math

import numpy as np

from minigrpo.engine.backend import Array, array_module
from minigrpo.engine.segments import SegmentSum, segment_sum

Cache = tuple

# -- attention -------------------------------------------------------------------------------------


def attention(q: Array, k: Array, v: Array) -> tuple[Array, Cache]:
    """y[t] = Σ_{s≤t} p[t,s] v[s] with p[t] = softmax_s(q[t]·k[s] / √E), over one sequence.

    Query head h reads key/value head h // (H/K).   q (T,H,E), k and v (T,K,E) -> y (T,H,E)
    This is the definition; `engine/blocks.py` computes the same for every path of a tree at once.
    """
    xp, (length, _, width) = array_module(q), q.shape
    k, v = (x.swapaxes(0, 1)[:, None] for x in (k, v))  # (K,1,T,E)
    q = q.reshape(length, len(k), -1, width).transpose(1, 2, 0, 3)  # (K,H/K,T,E)
    scores = q @ k.swapaxes(2, 3) / math.sqrt(width)  # (K,H/K,T,T)
    scores = xp.where(xp.tri(length, dtype=bool), scores, -np.inf)
    p = xp.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    y = (p @ v).transpose(2, 0, 1, 3)  # (T,K,H/K,E)
    return y.reshape(length, -1, width), (q, k, v, p)


def attention_backward(dy: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """The softmax gives ds = p·(dp - Σ p·dp).   dy (T,H,E) -> dq (T,H,E), dk and dv (T,K,E)"""
    q, k, v, p = cache
    do = dy.reshape(len(dy), *q.shape[:2], -1).transpose(1, 2, 0, 3)  # (K,H/K,T,E)
    dp = do @ v.swapaxes(2, 3)  # (K,H/K,T,T)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) / math.sqrt(q.shape[-1])
    dq = (ds @ k).transpose(2, 0, 1, 3).reshape(dy.shape)
    dk, dv = ((x.swapaxes(2, 3) @ y).sum(1) for x, y in ((ds, q), (p, do)))  # (K,T,E)
    return dq, dk.swapaxes(0, 1), dv.swapaxes(0, 1)


# -- embedding -------------------------------------------------------------------------------------


def embedding(token: Array, weight: Array) -> Array:
    """y = weight[token].   token (N,), weight (V,D) -> y (N,D)"""
    return weight[token]


def embedding_backward(dy: Array, plan: SegmentSum, dweight: Array) -> None:
    """dweight[v] += Σ_{nodes with token v} dy.   dy (N,D), dweight (V,D)"""
    segment_sum(dy, plan, dweight)


# -- linear ----------------------------------------------------------------------------------------


def linear(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, Cache]:
    """y = x Wᵀ + b.   x (N,inputs), weight (outputs,inputs), bias (outputs,) -> y (N,outputs)"""
    y = x @ weight.T
    if bias is not None:
        y += bias
    return y, (x, weight)


def linear_backward(
    dy: Array, cache: Cache, dweight: Array, add: bool = True, dbias: Array | None = None
) -> Array:
    """dx = dy W, dweight += dyᵀ x (add=False: dweight = dyᵀ x), dbias += Σ_n dy[n].   -> dx"""
    x, weight = cache
    if dbias is not None:
        dbias += dy.sum(0)
    if add:
        dweight += dy.T @ x
    else:
        array_module(dy).matmul(dy.T, x, out=dweight)
    return dy @ weight


# -- RMSNorm ---------------------------------------------------------------------------------------


def rmsnorm(x: Array, weight: Array, eps: float) -> tuple[Array, Cache]:
    """y = x / rms(x) · weight, with rms over the last axis.   x (…,D), weight (D,) -> y (…,D)"""
    inv_rms = 1 / array_module(x).sqrt(_dot(x, x) / x.shape[-1] + eps)  # (…,1)
    unit = x * inv_rms  # (…,D)
    return unit * weight, (unit, inv_rms, weight)


def rmsnorm_backward(dy: Array, cache: Cache, dweight: Array) -> Array:
    """Scaling x does not change unit, so dunit loses its part along unit.   dy (…,D) -> dx (…,D)"""
    unit, inv_rms, weight = cache
    dweight += (dy * unit).reshape(-1, len(weight)).sum(0)
    dx = dy * weight  # (…,D), so far d loss / d unit
    dx -= unit * (_dot(dx, unit) / unit.shape[-1])
    dx *= inv_rms
    return dx


def _dot(a: Array, b: Array) -> Array:
    """The inner product of each row of a with that of b.   (…,D), (…,D) -> (…,1)"""
    return array_module(a).einsum("...d,...d->...", a, b)[..., None]


# -- rotary positions ------------------------------------------------------------------------------


def rotation(position: np.ndarray, head_dim: int, base: float, divisor: float | Array = 1) -> Array:
    """The turn e^{i·t·base^(-2j/E)/divisor[j]} of pair j at position t.   (N,) -> (N,E/2) complex

    Source: Su et al., RoFormer, section 3.2.2.
    """
    frequency = base ** (-np.arange(0, head_dim, 2) / head_dim) / divisor  # (E/2,)
    return np.exp(1j * position[:, None] * frequency)


def rope(x: Array, turn: Array) -> Array:
    """Rotate each pair (x[2j], x[2j+1]), read as one complex number, in place.   x (N,H,E)

    turn is (N,E/2) or, already repeated for every head and so much faster in NumPy, (N,H,E/2).
    """
    pairs = x.view(turn.dtype)  # (N,H,E/2)
    pairs *= turn if turn.ndim == 3 else turn[:, None]
    return x


def rope_backward(dy: Array, turn: Array) -> Array:
    """The transpose of a rotation turns back, in place.   dy (N,H,E) -> dx"""
    return rope(dy, turn.conj())


# -- SwiGLU ----------------------------------------------------------------------------------------


def swiglu(gate: Array, up: Array) -> tuple[Array, Cache]:
    """y = gate · σ(gate) · up, with σ(x) = ½ + ½·tanh(x/2).   (N,F) -> y (N,F)   (Shazeer 2020)"""
    sigmoid = gate * 0.5
    array_module(gate).tanh(sigmoid, out=sigmoid)
    sigmoid *= 0.5
    sigmoid += 0.5
    silu = gate * sigmoid
    return silu * up, (up, sigmoid, silu)


def swiglu_backward(dy: Array, cache: Cache, dgate: Array, dup: Array) -> None:
    """silu' = σ + silu·(1 - σ).   dy (N,F); writes dgate and dup (N,F)"""
    up, sigmoid, silu = cache
    xp = array_module(dy)
    xp.multiply(dy, silu, out=dup)
    xp.multiply(dy, up, out=dgate)
    slope = 1 - sigmoid
    slope *= silu
    slope += sigmoid
    dgate *= slope


# -- log-softmax -----------------------------------------------------------------------------------


def log_softmax_gather(logits: Array, row: Array, token: Array) -> tuple[Array, Cache]:
    """logp[c] = log softmax(logits[row[c]])[token[c]].   row and token (C,) -> logp (C,)

    logits (N,V) are overwritten.
    """
    xp = array_module(logits)
    logits -= logits.max(-1, keepdims=True)
    chosen = logits[row, token]  # (C,)
    p = xp.exp(logits, out=logits)  # (N,V)
    total = p.sum(-1, keepdims=True)  # (N,1)
    p /= total
    return chosen - xp.log(total)[row, 0], (p,)


def log_softmax_gather_backward(
    row_sum: Array, pair_row: Array, pair_token: Array, pair_sum: Array, cache: Cache
) -> Array:
    """dlogits[n] = Σ_{c of row n} dlogp[c]·(onehot(token[c]) - p[n]).   -> (N,V), in the cache's p

    The sums over c are given: row_sum (N,) per row, pair_sum per distinct (row, token).
    """
    (p,) = cache
    p *= -row_sum[:, None]
    p[pair_row, pair_token] += pair_sum
    return p
