"""Attention of many rows of a tree at once: the numbers of `ops.attention` on every path alone.

Rows that continue the same prefix read its keys in one product; each then reads its own keys
causally. The softmax runs over both together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from minigrpo.engine.backend import Array, array_module
from minigrpo.engine.segments import SegmentSum, segment_sum


@dataclass(frozen=True)
class AttentionBlock:
    """S forks, each with R rows that continue one prefix of P keys; each row asks Q queries."""

    query: Array  # (S,R,Q) the node of each query, also a key of its row; padding repeats a node
    prefix: Array  # (S,P) the nodes on the path to each fork, whose keys all its rows see; padded
    causal: Array  # (Q,Q) 0 where a query sees a key of its row, -inf where that key comes later
    mask: Array | None  # (S,1,1,1,1,P) 0 for a node of the prefix, -inf for padding, if any
    valid: Array | None  # (S,R,Q,1,1) 1 for a query, 0 for padding, if there is any
    slots: Array  # the places in the flattened (S·R·Q) that are not padding
    nodes: Array  # the node of each of these places
    prefix_sum: SegmentSum  # how the gradients of the (S·P) keys add up to nodes


def block_attention(q: Array, k: Array, v: Array, block: AttentionBlock, y: Array) -> tuple:
    """y[node] = softmax(q kᵀ/√E) v for every query of the block, in place.   -> cache

    q and y (M,H,E), k and v (M,K,E); query head h reads key/value head h // (H/K).
    """
    xp = array_module(q)
    (heads, width), kv_heads = q.shape[1:], k.shape[1]
    forks, rows, n_queries = block.query.shape
    n_prefix = block.prefix.shape[1]
    q = q[block.query].reshape(forks, rows, n_queries, kv_heads, heads // kv_heads, width)
    q = xp.ascontiguousarray(q.transpose(0, 3, 4, 1, 2, 5))  # (S,K,H/K,R,Q,E)
    q *= 1 / math.sqrt(width)
    k_own, v_own = (x[block.query].transpose(0, 3, 1, 2, 4)[:, :, None] for x in (k, v))
    k_prefix, v_prefix = (x[block.prefix].transpose(0, 2, 1, 3) for x in (k, v))  # (S,K,P,E)
    flat = forks, kv_heads, heads // kv_heads * rows * n_queries  # all that read the same keys
    p = xp.empty((*q.shape[:5], n_prefix + n_queries), dtype=q.dtype)  # (S,K,H/K,R,Q,P+Q)
    p_prefix, p_own = p[..., :n_prefix], p[..., n_prefix:]
    xp.matmul(q, k_own.swapaxes(-1, -2), out=p_own)
    p_own += block.causal
    if n_prefix:
        scores = q.reshape(*flat, width) @ k_prefix.swapaxes(-1, -2)  # (S,K,H/K·R·Q,P)
        p_prefix[...] = scores.reshape(p_prefix.shape)
        if block.mask is not None:
            p_prefix += block.mask
    p -= p.max(-1, keepdims=True)
    xp.exp(p, out=p)
    p /= p.sum(-1, keepdims=True)
    p_prefix = p_prefix.reshape(*flat, n_prefix)
    o = p_own @ v_own  # (S,K,H/K,R,Q,E)
    if n_prefix:
        o += (p_prefix @ v_prefix).reshape(o.shape)
    y[block.nodes] = o.transpose(0, 3, 4, 1, 2, 5).reshape(-1, heads, width)[block.slots]
    return q, k_own, v_own, k_prefix, v_prefix, p_own, p_prefix


def block_attention_backward(
    dy: Array, cache: tuple, block: AttentionBlock, dq: Array, dk: Array, dv: Array
) -> None:
    """Add to dq (M,H,E), dk and dv (M,K,E) in place.   dy (M,H,E)"""
    q, k_own, v_own, k_prefix, v_prefix, p_own, p_prefix = cache
    forks, kv_heads, per_kv, rows, n_queries, width = q.shape
    n_prefix = block.prefix.shape[1]
    flat = forks, kv_heads, per_kv * rows * n_queries
    do = dy[block.query].reshape(forks, rows, n_queries, kv_heads, per_kv, width)
    if block.valid is not None:
        do *= block.valid[..., None]
    do = array_module(do).ascontiguousarray(do.transpose(0, 3, 4, 1, 2, 5))  # (S,K,H/K,R,Q,E)
    # ds = p · (dp - Σ p·dp), where the sum runs over the keys of the prefix and of the row.
    ds_own = do @ v_own.swapaxes(-1, -2)  # (S,K,H/K,R,Q,Q), so far d loss / d p
    total, ds_prefix = (ds_own * p_own).sum(-1, keepdims=True), p_prefix
    if n_prefix:
        ds_prefix = do.reshape(*flat, width) @ v_prefix.swapaxes(-1, -2)  # (S,K,H/K·R·Q,P)
        total += (ds_prefix * p_prefix).sum(-1).reshape(total.shape)
        ds_prefix -= total.reshape(*flat, 1)
        ds_prefix *= p_prefix
    ds_own -= total
    ds_own *= p_own
    dq_rows = ds_own @ k_own  # (S,K,H/K,R,Q,E)
    for d, p, x in ((dk, ds_own, q), (dv, p_own, do)):
        per_head = p.swapaxes(-1, -2) @ x  # (S,K,H/K,R,Q,E)
        rows_of_d = (per_head.sum(2) if per_kv > 1 else per_head[:, :, 0]).transpose(0, 2, 3, 1, 4)
        d[block.nodes] += rows_of_d.reshape(-1, kv_heads, width)[block.slots]
    if n_prefix:
        dq_rows += (ds_prefix @ k_prefix).reshape(q.shape)
        for d, p, x in ((dk, ds_prefix, q), (dv, p_prefix, do)):
            d_prefix = p.swapaxes(-1, -2) @ x.reshape(*flat, width)  # (S,K,P,E)
            d_prefix = d_prefix.transpose(0, 2, 1, 3).reshape(-1, kv_heads, width)  # (S·P,K,E)
            segment_sum(d_prefix, block.prefix_sum, d)
    dq_rows *= 1 / math.sqrt(width)
    dq_rows = dq_rows.transpose(0, 3, 4, 1, 2, 5).reshape(-1, kv_heads * per_kv, width)
    dq[block.nodes] += dq_rows[block.slots]
