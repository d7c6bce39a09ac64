"""The operations of a Llama-shaped transformer: each forward with its backward, by hand, side by side.

Shape letters, the same in every file:
    N nodes, D model width, H heads, K key/value heads, E head width (D/H), F ffn width, V vocabulary,
    R rows of attention, Q queries of a row, S keys of a row.
`dx` is d loss / d x.  A forward returns (y, cache); its backward takes (dy, cache).  The functions only use what NumPy and CuPy
both have, and no atomic additions: sums run in a fixed order, so the same input gives the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigrpo.backend import array_module

Array = Any  # numpy.ndarray or cupy.ndarray
Cache = tuple


# -- sums of scattered rows ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SegmentSum:
    """Which rows of an array add up to which target; made on the host by `segment_sum_plan`.

    order    rows of the input, equal targets side by side
    rounds   pairs (into, other): in every round each segment adds neighbours at twice the distance (pairwise summation)
    heads    where each segment starts, hence where its sum ends up
    targets  the target of each segment, ascending
    """

    order: Array
    rounds: tuple[tuple[Array, Array], ...]
    heads: Array
    targets: Array


def segment_sum_plan(target_of_row: np.ndarray, to_device: Any = np.asarray) -> SegmentSum:
    """Plan out[t] = Σ_{rows with target t} x[row]; rows with target -1 are left out.   (M,) int"""
    order = np.argsort(target_of_row, kind="stable")
    order = order[np.searchsorted(target_of_row[order], 0) :]
    targets = target_of_row[order]
    is_head = np.append(True, targets[1:] != targets[:-1])[: len(targets)]
    heads = np.flatnonzero(is_head)
    size = np.diff(np.append(heads, len(targets)))
    index = np.arange(len(targets)) - np.repeat(heads, size)  # place within the segment
    left = np.repeat(size, size) - index  # rows from here to the segment's end
    rounds = []
    step = 1
    while step < (size.max() if len(size) else 0):
        into = np.flatnonzero((index % (2 * step) == 0) & (left > step))
        rounds.append((to_device(into), to_device(into + step)))
        step *= 2
    return SegmentSum(to_device(order), tuple(rounds), to_device(heads), to_device(targets[heads]))


def segment_sum(x: Array, plan: SegmentSum, out: Array) -> Array:
    """out[t] += Σ_{rows with target t} x[row], pairwise and in a fixed order.   x (M,…), out (T,…)"""
    x = x[plan.order]
    for into, other in plan.rounds:
        x[into] += x[other]
    out[plan.targets] += x[plan.heads]
    return out


# -- embedding -----------------------------------------------------------------------------------------------------------


def embedding(token: Array, weight: Array) -> Array:
    """y = weight[token].   token (N,), weight (V,D) -> y (N,D)"""
    return weight[token]


def embedding_backward(dy: Array, plan: SegmentSum, dweight: Array) -> None:
    """dweight[v] += Σ_{nodes with token v} dy.   dy (N,D), dweight (V,D)"""
    segment_sum(dy, plan, dweight)


# -- linear --------------------------------------------------------------------------------------------------------------


def linear(x: Array, weight: Array) -> tuple[Array, Cache]:
    """y = x Wᵀ.   x (N,I), weight (O,I) -> y (N,O)"""
    return x @ weight.T, (x, weight)


def linear_backward(dy: Array, cache: Cache, dweight: Array) -> Array:
    """dx = dy W, and dweight += dyᵀ x.   dy (N,O) -> dx (N,I)"""
    x, weight = cache
    dweight += dy.T @ x
    return dy @ weight


# -- RMSNorm -------------------------------------------------------------------------------------------------------------


def rmsnorm(x: Array, weight: Array, eps: float) -> tuple[Array, Cache]:
    """y = x / rms(x) · weight, with rms over the last axis.   x (N,D), weight (D,) -> y (N,D)"""
    xp = array_module(x)
    inv_rms = 1 / xp.sqrt(_dot(x, x) / x.shape[-1] + eps)  # (N,1)
    unit = x * inv_rms  # (N,D)
    return unit * weight, (unit, inv_rms, weight)


def rmsnorm_backward(dy: Array, cache: Cache, dweight: Array) -> Array:
    """Scaling x does not change unit, so the part of dunit along unit drops out.   dy (N,D) -> dx (N,D)"""
    unit, inv_rms, weight = cache
    dweight += (dy * unit).sum(0)
    dunit = dy * weight  # (N,D)
    return inv_rms * (dunit - unit * (_dot(dunit, unit) / unit.shape[-1]))


def _dot(a: Array, b: Array) -> Array:
    """Row by row, without a temporary.   (N,D), (N,D) -> (N,1)"""
    return array_module(a).einsum("nd,nd->n", a, b)[:, None]


# -- rotary positions ----------------------------------------------------------------------------------------------------


def rotation(position: np.ndarray, head_dim: int, base: float) -> np.ndarray:
    """The turns e^{i·t·base^(-2j/E)} of pair j at position t.   position (N,) -> (N,E/2) complex128   (RoFormer, section 3.2.2)"""
    frequency = base ** (-np.arange(0, head_dim, 2) / head_dim)  # (E/2,)
    return np.exp(1j * position[:, None] * frequency)


def rope(x: Array, turn: Array) -> Array:
    """Rotate each pair (x[2j], x[2j+1]), read as one complex number, in place.   x (N,heads,E), turn (N,E/2) complex"""
    pairs = x.view(turn.dtype)  # (N,heads,E/2)
    pairs *= turn[:, None, :]
    return x


def rope_backward(dy: Array, turn: Array) -> Array:
    """A rotation's transpose turns back, in place.   dy (N,heads,E) -> dx"""
    return rope(dy, turn.conj())


# -- attention -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttentionBlock:
    """R rows that are attended to together.  Row r has the queries of Q nodes and the keys of the S nodes on their path.

    query       (R,Q) node of each query; padding repeats some node
    key         (R,S) node of each key; padding likewise
    mask        (R,1,1,Q,S) or (1,1,1,Q,S): 0 where a query sees a key, -inf where it does not
    valid       (R,Q,1,1) 1 for a query, 0 for padding; None where nothing is padded
    slots       (M,) places in the flattened (R·Q) that are no padding
    nodes       (M,) the node of each of these places
    key_sum     how the gradients of (R·S) keys add up to nodes; None for a block that is never differentiated
    """

    query: Array
    key: Array
    mask: Array
    valid: Array | None
    slots: Array
    nodes: Array
    key_sum: SegmentSum | None


def attention(q: Array, k: Array, v: Array, block: AttentionBlock, y: Array) -> Cache:
    """y[node] = softmax(q kᵀ/√E + mask) v for every query of the block; head h reads key/value head h // (H/K).

    q (N,H,E), k and v (N,K,E), y (N,H,E), written in place.  Returns the cache.
    """
    xp = array_module(q)
    heads, width = q.shape[1:]
    kv_heads = k.shape[1]
    rows, n_queries = block.query.shape
    q = q[block.query].reshape(rows, n_queries, kv_heads, heads // kv_heads, width).transpose(0, 2, 3, 1, 4)  # (R,K,H/K,Q,E)
    k = k[block.key].transpose(0, 2, 1, 3)[:, :, None]  # (R,K,1,S,E)
    v = v[block.key].transpose(0, 2, 1, 3)[:, :, None]  # (R,K,1,S,E)
    p = q @ k.swapaxes(-1, -2)  # (R,K,H/K,Q,S)
    p *= 1 / math.sqrt(width)
    p += block.mask
    p -= p.max(-1, keepdims=True)
    xp.exp(p, out=p)
    p /= p.sum(-1, keepdims=True)
    o = p @ v  # (R,K,H/K,Q,E)
    y[block.nodes] = o.transpose(0, 3, 1, 2, 4).reshape(rows * n_queries, heads, width)[block.slots]
    return q, k, v, p


def attention_backward(dy: Array, cache: Cache, block: AttentionBlock, dq: Array, dk: Array, dv: Array) -> None:
    """Adds to dq (N,H,E), dk and dv (N,K,E) in place.   dy (N,H,E)"""
    q, k, v, p = cache
    rows, kv_heads, per_kv, n_queries, width = q.shape
    n_keys = k.shape[3]
    do = dy[block.query].reshape(rows, n_queries, kv_heads, per_kv, width)  # (R,Q,K,H/K,E)
    if block.valid is not None:
        do *= block.valid[..., None]
    do = do.transpose(0, 2, 3, 1, 4)  # (R,K,H/K,Q,E)
    dv_rows = (p.swapaxes(-1, -2) @ do).sum(2)  # (R,K,S,E)
    ds = do @ v.swapaxes(-1, -2)  # (R,K,H/K,Q,S), d loss / d p
    ds -= (ds * p).sum(-1, keepdims=True)  # softmax: ds = p · (dp - Σ p·dp)
    ds *= p
    ds *= 1 / math.sqrt(width)
    dq_rows = ds @ k  # (R,K,H/K,Q,E)
    dk_rows = (ds.swapaxes(-1, -2) @ q).sum(2)  # (R,K,S,E)
    dq[block.nodes] += dq_rows.transpose(0, 3, 1, 2, 4).reshape(rows * n_queries, kv_heads * per_kv, width)[block.slots]
    segment_sum(dk_rows.transpose(0, 2, 1, 3).reshape(rows * n_keys, kv_heads, width), block.key_sum, dk)
    segment_sum(dv_rows.transpose(0, 2, 1, 3).reshape(rows * n_keys, kv_heads, width), block.key_sum, dv)


# -- SwiGLU --------------------------------------------------------------------------------------------------------------


def swiglu(gate: Array, up: Array) -> tuple[Array, Cache]:
    """y = gate · σ(gate) · up.   gate and up (N,F) -> y (N,F)   (Shazeer 2020; σ(x) = ½ + ½·tanh(x/2) cannot overflow)"""
    xp = array_module(gate)
    sigmoid = gate * 0.5
    xp.tanh(sigmoid, out=sigmoid)
    sigmoid *= 0.5
    sigmoid += 0.5
    silu = gate * sigmoid
    return silu * up, (gate, up, sigmoid, silu)


def swiglu_backward(dy: Array, cache: Cache, dgate: Array, dup: Array) -> None:
    """silu' = σ + silu·(1 - σ).   dy (N,F); writes dgate and dup (N,F)"""
    _, up, sigmoid, silu = cache
    xp = array_module(dy)
    xp.multiply(dy, silu, out=dup)
    xp.multiply(dy, up, out=dgate)
    dgate *= sigmoid + silu * (1 - sigmoid)


# -- log-softmax ---------------------------------------------------------------------------------------------------------


def log_softmax_gather(logits: Array, row: Array, token: Array) -> tuple[Array, Cache]:
    """logp[j] = log softmax(logits[row[j]])[token[j]].   logits (P,V), overwritten; row and token (M,) -> logp (M,)"""
    xp = array_module(logits)
    logits -= logits.max(-1, keepdims=True)
    chosen = logits[row, token]  # (M,)
    p = xp.exp(logits, out=logits)  # (P,V)
    total = p.sum(-1, keepdims=True)  # (P,1)
    p /= total
    return chosen - xp.log(total)[row, 0], (p,)


def log_softmax_gather_backward(row_sum: Array, pair_row: Array, pair_token: Array, pair_sum: Array, cache: Cache) -> Array:
    """dlogits[r] = Σ_{j in row r} dlogp[j] · (onehot(token[j]) - softmax(logits[r])).   -> (P,V), in place of the cache

    The sums over j come ready: row_sum (P,) = Σ_j dlogp[j] by row, pair_sum (U,) = the same by distinct (row, token).
    """
    (p,) = cache
    p *= -row_sum[:, None]
    p[pair_row, pair_token] += pair_sum
    return p
