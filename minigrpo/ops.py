"""The operations of a Llama-shaped transformer: each forward with its backward, by hand, side by side.

Shape letters, the same in every file:
    N nodes, D model width, H heads, K key/value heads, E head width (D/H), F ffn width, V vocabulary,
    F forks, R rows of attention, Q queries of a row, P keys of a prefix or prompt, S keys of a row's own.
`dx` is d loss / d x.  A forward returns (y, cache); its backward takes (dy, cache).  The functions only use what NumPy and CuPy
both have, and no atomic additions: sums run in a fixed order, so the same input gives the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigrpo.engine.backend import array_module
from minigrpo.engine.segments import Array, SegmentSum, segment_sum

Cache = tuple


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


def linear_backward(dy: Array, cache: Cache, dweight: Array, add: bool = True) -> Array:
    """dx = dy W, and dweight += dyᵀ x (add=False: dweight = dyᵀ x, whatever it was).   dy (N,O) -> dx (N,I)"""
    x, weight = cache
    if add:
        dweight += dy.T @ x
    else:
        array_module(dy).matmul(dy.T, x, out=dweight)
    return dy @ weight


# -- RMSNorm -------------------------------------------------------------------------------------------------------------


def rmsnorm(x: Array, weight: Array, eps: float) -> tuple[Array, Cache]:
    """y = x / rms(x) · weight, with rms over the last axis.   x (N,D), weight (D,) -> y (N,D)"""
    xp = array_module(x)
    inv_rms = 1 / xp.sqrt(_dot(xp, x, x) / x.shape[-1] + eps)  # (N,1)
    unit = x * inv_rms  # (N,D)
    return unit * weight, (unit, inv_rms, weight)


def rmsnorm_backward(dy: Array, cache: Cache, dweight: Array) -> Array:
    """Scaling x does not change unit, so the part of dunit along unit drops out.   dy (N,D) -> dx (N,D)"""
    unit, inv_rms, weight = cache
    dweight += (dy * unit).sum(0)
    dx = dy * weight  # (N,D), as yet d loss / d unit
    dx -= unit * (_dot(array_module(dy), dx, unit) / unit.shape[-1])
    dx *= inv_rms
    return dx


def _dot(xp: Any, a: Array, b: Array) -> Array:
    """Row by row, without a temporary.   (N,D), (N,D) -> (N,1)"""
    return xp.einsum("nd,nd->n", a, b)[:, None]


# -- rotary positions ----------------------------------------------------------------------------------------------------


def rotation(position: np.ndarray, head_dim: int, base: float) -> np.ndarray:
    """The turns e^{i·t·base^(-2j/E)} of pair j at position t.   position (N,) -> (N,E/2) complex128   (RoFormer, section 3.2.2)"""
    frequency = base ** (-np.arange(0, head_dim, 2) / head_dim)  # (E/2,)
    return np.exp(1j * position[:, None] * frequency)


def rope(x: Array, turn: Array) -> Array:
    """Rotate each pair (x[2j], x[2j+1]), read as one complex number, in place.   x (N,heads,E)

    turn (N,E/2) complex, or (N,heads,E/2), the same for every head: NumPy multiplies much faster when it need not broadcast.
    """
    pairs = x.view(turn.dtype)  # (N,heads,E/2)
    pairs *= turn if turn.ndim == 3 else turn[:, None]
    return x


def rope_backward(dy: Array, turn: Array) -> Array:
    """A rotation's transpose turns back, in place.   dy (N,heads,E) -> dx"""
    return rope(dy, turn.conj())


# -- attention -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttentionBlock:
    """F forks, each with R rows that continue the same prefix.  The Q queries of a row see the prefix and, causally, their own row.

    query       (F,R,Q) node of each query, which is also a key of its row; padding repeats some node
    prefix      (F,P) nodes on the path to each fork, whose keys all its rows see; padding likewise; P may be 0
    causal      (Q,Q) 0 where a query sees a key of its own row, -inf where that comes later
    mask        (F,1,1,1,1,P) 0 for a node of the prefix, -inf for padding; None where nothing is padded
    valid       (F,R,Q,1,1) 1 for a query, 0 for padding; None where nothing is padded
    slots       (M,) places in the flattened (F·R·Q) that are no padding
    nodes       (M,) the node of each of these places
    prefix_sum  how the gradients of (F·P) keys add up to nodes; None for a block that is never differentiated
    """

    query: Array
    prefix: Array
    causal: Array
    mask: Array | None
    valid: Array | None
    slots: Array
    nodes: Array
    prefix_sum: SegmentSum | None


def attention(q: Array, k: Array, v: Array, block: AttentionBlock, y: Array) -> Cache:
    """y[node] = softmax(q kᵀ/√E) v for every query of the block; head h reads key/value head h // (H/K).

    q (N,H,E), k and v (N,K,E), y (N,H,E), written in place.  Returns the cache.
    """
    xp = array_module(q)
    heads, width = q.shape[1:]
    kv_heads = k.shape[1]
    forks, rows, n_queries = block.query.shape
    n_prefix = block.prefix.shape[1]
    grouped = (forks, rows, n_queries, kv_heads, heads // kv_heads, width)
    q = xp.ascontiguousarray(
        q[block.query].reshape(grouped).transpose(0, 3, 4, 1, 2, 5)
    )  # (F,K,H/K,R,Q,E)
    q *= 1 / math.sqrt(width)
    k_own, v_own = (
        x[block.query].transpose(0, 3, 1, 2, 4)[:, :, None] for x in (k, v)
    )  # (F,K,1,R,Q,E)
    k_prefix, v_prefix = (x[block.prefix].transpose(0, 2, 1, 3) for x in (k, v))  # (F,K,P,E)
    together = (
        forks,
        kv_heads,
        heads // kv_heads * rows * n_queries,
    )  # they read the keys of their prefix in one product
    p = xp.empty((*q.shape[:5], n_prefix + n_queries), dtype=q.dtype)  # (F,K,H/K,R,Q,P+Q)
    xp.matmul(q, k_own.swapaxes(-1, -2), out=p[..., n_prefix:])
    p[..., n_prefix:] += block.causal
    if n_prefix:
        p[..., :n_prefix] = (q.reshape(*together, width) @ k_prefix.swapaxes(-1, -2)).reshape(
            *q.shape[:5], n_prefix
        )
        if block.mask is not None:
            p[..., :n_prefix] += block.mask
    p -= p.max(-1, keepdims=True)
    xp.exp(p, out=p)
    p /= p.sum(-1, keepdims=True)
    p_own, p_prefix = p[..., n_prefix:], p[..., :n_prefix].reshape(*together, n_prefix)
    o = p_own @ v_own  # (F,K,H/K,R,Q,E)
    if n_prefix:
        o += (p_prefix @ v_prefix).reshape(o.shape)
    y[block.nodes] = o.transpose(0, 3, 4, 1, 2, 5).reshape(-1, heads, width)[block.slots]
    return q, k_own, v_own, k_prefix, v_prefix, p_own, p_prefix


def attention_backward(
    dy: Array, cache: Cache, block: AttentionBlock, dq: Array, dk: Array, dv: Array
) -> None:
    """Adds to dq (N,H,E), dk and dv (N,K,E) in place.   dy (N,H,E)"""
    q, k_own, v_own, k_prefix, v_prefix, p_own, p_prefix = cache
    forks, kv_heads, per_kv, rows, n_queries, width = q.shape
    n_prefix = block.prefix.shape[1]
    together = forks, kv_heads, per_kv * rows * n_queries
    do = dy[block.query].reshape(forks, rows, n_queries, kv_heads, per_kv, width)
    if block.valid is not None:
        do *= block.valid[..., None]
    do = array_module(do).ascontiguousarray(do.transpose(0, 3, 4, 1, 2, 5))  # (F,K,H/K,R,Q,E)
    # softmax: ds = p · (dp - Σ p·dp), where the sum runs over the keys of the prefix and of the row
    ds_own = do @ v_own.swapaxes(-1, -2)  # (F,K,H/K,R,Q,Q), as yet d loss / d p
    total = (ds_own * p_own).sum(-1, keepdims=True)
    if n_prefix:
        ds_prefix = do.reshape(*together, width) @ v_prefix.swapaxes(-1, -2)  # (F,K,H/K·R·Q,P)
        total += (ds_prefix * p_prefix).sum(-1).reshape(total.shape)
        ds_prefix -= total.reshape(*together, 1)
        ds_prefix *= p_prefix
    ds_own -= total
    ds_own *= p_own
    dq_rows = ds_own @ k_own  # (F,K,H/K,R,Q,E)

    def to_nodes(x: Array, heads: int) -> Array:
        """(F,…,R,Q,E) -> (M,heads,E)"""
        x = x.transpose(0, 3, 4, 1, 2, 5) if x.ndim == 6 else x.transpose(0, 2, 3, 1, 4)
        return x.reshape(-1, heads, width)[block.slots]

    def to_keys(x: Array) -> Array:
        """Σ over the query heads of a key head.   (F,K,H/K,R,Q,E) -> (M,K,E)"""
        return to_nodes(x.sum(2) if per_kv > 1 else x[:, :, 0], kv_heads)

    dk[block.nodes] += to_keys(ds_own.swapaxes(-1, -2) @ q)
    dv[block.nodes] += to_keys(p_own.swapaxes(-1, -2) @ do)
    if n_prefix:
        dq_rows += (ds_prefix @ k_prefix).reshape(q.shape)
        dk_prefix = ds_prefix.swapaxes(-1, -2) @ q.reshape(*together, width)  # (F,K,P,E)
        dv_prefix = p_prefix.swapaxes(-1, -2) @ do.reshape(*together, width)
        for d, d_prefix in ((dk, dk_prefix), (dv, dv_prefix)):
            segment_sum(
                d_prefix.transpose(0, 2, 1, 3).reshape(forks * n_prefix, kv_heads, width),
                block.prefix_sum,
                d,
            )
    dq_rows *= 1 / math.sqrt(width)
    dq[block.nodes] += to_nodes(dq_rows, kv_heads * per_kv)


@dataclass(frozen=True)
class CachedRows:
    """Which of R rows of queries read the keys of which of G prompts; the most that one prompt has is Q.

    row      (G,Q) rows of each prompt; padding repeats row 0
    place    (R,) place of each row in the flattened (G·Q)
    mask     (R,1,1,P) 0 where a row's prompt has a key, -inf where it is padded; None where all prompts are equally long
    """

    row: Array
    place: Array
    mask: Array | None


def attention_to_cache(
    q: Array,
    prompt_k: Array,
    prompt_v: Array,
    own_k: Array,
    own_v: Array,
    rows: CachedRows,
    y: Array,
) -> None:
    """y[row] = softmax(q kᵀ/√E) v, over the keys of the row's prompt and over its own.   No backward: it serves sampling.

    q and y (R,H,E), prompt_k and prompt_v (G,K,P,E), own_k and own_v (R,K,S,E)
    """
    xp = array_module(q)
    (n, heads, width), (n_prompts, kv_heads, n_keys, _), each = (
        q.shape,
        prompt_k.shape,
        rows.row.shape[1],
    )
    per_kv = heads // kv_heads

    def by_prompt(x: Array) -> Array:
        """(R,K,H/K,…) -> (G, K, H/K·Q, …)"""
        return x[rows.row].transpose(0, 2, 3, 1, 4).reshape(n_prompts, kv_heads, per_kv * each, -1)

    def by_row(x: Array) -> Array:
        """(G, K, H/K·Q, …) -> (R,K,H/K,…)"""
        x = x.reshape(n_prompts, kv_heads, per_kv, each, -1).transpose(0, 3, 1, 2, 4)
        return x.reshape(n_prompts * each, kv_heads, per_kv, -1)[rows.place]

    q = q.reshape(n, kv_heads, per_kv, width) * (1 / math.sqrt(width))
    p = xp.empty((n, kv_heads, per_kv, n_keys + own_k.shape[2]), dtype=q.dtype)  # (R,K,H/K,P+S)
    to_prompt, to_own = p[..., :n_keys], p[..., n_keys:]
    to_prompt[...] = by_row(by_prompt(q) @ prompt_k.swapaxes(-1, -2))
    if rows.mask is not None:
        to_prompt += rows.mask
    xp.matmul(q, own_k.swapaxes(-1, -2), out=to_own)
    p -= p.max(-1, keepdims=True)
    xp.exp(p, out=p)
    p /= p.sum(-1, keepdims=True)
    o = to_own @ own_v  # (R,K,H/K,E)
    o += by_row(by_prompt(to_prompt) @ prompt_v)
    y[...] = o.reshape(n, heads, width)


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
    slope = 1 - sigmoid
    slope *= silu
    slope += sigmoid
    dgate *= slope


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


def log_softmax_gather_backward(
    row_sum: Array, pair_row: Array, pair_token: Array, pair_sum: Array, cache: Cache
) -> Array:
    """dlogits[r] = Σ_{j in row r} dlogp[j] · (onehot(token[j]) - softmax(logits[r])).   -> (P,V), in place of the cache

    The sums over j come ready: row_sum (P,) = Σ_j dlogp[j] by row, pair_sum (U,) = the same by distinct (row, token).
    """
    (p,) = cache
    p *= -row_sum[:, None]
    p[pair_row, pair_token] += pair_sum
    return p
