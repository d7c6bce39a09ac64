"""The arrays of indices by which a transformer runs over a tree: who attends to whom, who predicts.

Rows of similar size are attended to together, in blocks.  All of this runs on the host; the arrays
are carried to the device once per tree.  A tree that is too large to compute at once is split into
parts, which changes memory and speed but no number.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from minigrpo.engine.backend import Array, Backend
from minigrpo.engine.blocks import AttentionBlock, block_attention
from minigrpo.engine.segments import SegmentSum, segment_sum_plan
from minigrpo.tree import PrefixTree

LANE_NODES = 768  # nodes that make a lane worth its overhead
ONE_BLOCK = 10_000  # below this many (query, key) pairs, padding is cheaper than a second block


@dataclass(frozen=True, eq=False)
class Predictions:
    """Some of the nodes that predict, and the C scored nodes (children) that they predict."""

    rows: slice  # which of `TreePlan.predictor` these are
    child: np.ndarray  # (C,) the children, on the host
    row_of_child: np.ndarray  # (C,) the predicting node of each, counted within `rows`, on the host
    pair_of_child: np.ndarray  # (C,) the distinct (row, token) of each, on the host
    child_row: Array  # (C,) row_of_child on the device
    child_token: Array  # (C,)
    pair_row: Array  # of the distinct pairs
    pair_token: Array

    def sums(self, dlogp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The sums of dlogp (N,) over the children per row, and per pair."""
        dlogp = dlogp[self.child]
        row_sum = np.bincount(self.row_of_child, dlogp, minlength=self.rows.stop - self.rows.start)
        return row_sum, np.bincount(self.pair_of_child, dlogp, minlength=len(self.pair_row))


@dataclass(frozen=True, eq=False)
class TreePlan:
    """The M computed (inner) nodes of a tree, and those of them that predict."""

    token: Array  # (M,)
    position: Array  # (M,)
    blocks: tuple[AttentionBlock, ...]  # attention among the M nodes
    token_sum: SegmentSum  # how the gradients of M nodes add up to rows of the embedding
    predictor: Array  # the computed nodes whose logits are needed
    predictions: tuple[Predictions, ...]  # what they predict, in slices of predictors

    def attend(self, layer: int, q: Array, k: Array, v: Array, y: Array) -> list:
        """Attention among the computed nodes, written to y (M,H,E).   -> a cache per block"""
        return [block_attention(q, k, v, block, y) for block in self.blocks]


def plan_tree(
    tree: PrefixTree, backend: Backend, dtype: np.dtype, max_predictors: int = 1 << 30
) -> TreePlan:
    """Plan the passes over a tree, with the logits of at most max_predictors nodes at a time.

    Raises ValueError if a completion has no token before it to be predicted from.
    """
    child = np.flatnonzero(tree.scored)
    if (tree.parent[child] < 0).any():
        told = "a completion's first token has nothing to be predicted from"
        raise ValueError(f"{told}: give every prompt at least one token")
    device = backend.to_device
    inner, number = _computed(tree)
    predicts = np.zeros(tree.n_nodes, dtype=bool)
    predicts[tree.parent[child]] = True
    row_of_child = (np.cumsum(predicts) - 1)[tree.parent[child]]
    n_predictors = int(predicts.sum())
    predictions = []
    for start in range(0, n_predictors, max_predictors):
        rows = slice(start, min(start + max_predictors, n_predictors))
        inside = np.flatnonzero((row_of_child >= rows.start) & (row_of_child < rows.stop))
        row, token = row_of_child[inside] - rows.start, tree.token[child[inside]]
        stride = int(token.max()) + 1
        pair, pair_of_child = np.unique(row * stride + token, return_inverse=True)
        on_device = map(device, (row, token, pair // stride, pair % stride))
        predictions.append(Predictions(rows, child[inside], row, pair_of_child, *on_device))
    return TreePlan(
        token=device(tree.token[inner]),
        position=device(tree.depth[inner]),
        blocks=plan_attention(tree, backend, dtype),
        token_sum=segment_sum_plan(tree.token[inner], device),
        predictor=device(number[predicts]),
        predictions=tuple(predictions),
    )


def _computed(tree: PrefixTree) -> tuple[np.ndarray, np.ndarray]:
    """Which nodes are computed, and the place of each among them.   -> (N,) bool, (N,) int"""
    inner = np.zeros(tree.n_nodes, dtype=bool)
    inner[tree.parent[tree.parent >= 0]] = True
    return inner, np.cumsum(inner) - 1


def plan_attention(
    tree: PrefixTree, backend: Backend, dtype: np.dtype
) -> tuple[AttentionBlock, ...]:
    """Attention among the computed nodes, in blocks of forks of similar size."""
    inner, number = _computed(tree)
    start, end = tree.row_start, tree.row_end.copy()
    adds = np.flatnonzero(end > start)
    end[adds] -= ~inner[tree.rows[adds, end[adds] - 1]]  # a leaf is not computed
    rows = adds[end[adds] > start[adds]]
    if not len(rows):
        return ()
    start, end = start[rows], end[rows]
    n_queries = end - start
    before = np.where(start > 0, tree.rows[rows, start - 1], -1)  # the node before each row's own

    def n_pairs(chosen: np.ndarray) -> int:
        """How many (query, key) pairs these rows make as one block, with its padding."""
        per_fork = np.unique(fork[chosen], return_counts=True)[1]
        queries, prefix = n_queries[chosen].max(), start[chosen].max()
        return len(per_fork) * per_fork.max() * queries * (prefix + queries)

    fork = before + 1
    blocks = [np.arange(len(rows))]
    if n_pairs(blocks[0]) > ONE_BLOCK:
        blocks = []
        length_class = _log2(n_queries)
        key = before * 64 + length_class
        _, fork, n_rows = np.unique(key, return_inverse=True, return_counts=True)
        size_class = (length_class * 64 + _log2(n_rows)[fork]) * 64 + _log2(start + 1)
        for c in np.unique(size_class):
            alike = np.flatnonzero(size_class == c)
            together = np.concatenate([blocks[-1], alike]) if blocks else alike
            if blocks and n_pairs(together) <= ONE_BLOCK:
                blocks[-1] = together
            else:
                blocks.append(alike)

    nodes = number[tree.rows]  # (B,T); what stands past a row's end is not read
    return tuple(_block(nodes[rows[b]], fork[b], start[b], end[b], backend, dtype) for b in blocks)


def _log2(n: np.ndarray) -> np.ndarray:
    return np.ceil(np.log2(n)).astype(np.int64)


def _block(
    nodes: np.ndarray,
    fork: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    backend: Backend,
    dtype: np.dtype,
) -> AttentionBlock:
    """Rows with the fork of each, and the positions of their queries, start ≤ t < end."""
    order = np.argsort(fork, kind="stable")
    count = np.unique(fork, return_counts=True)[1]
    present = np.arange(count.max()) < count[:, None]  # (S,R)
    row = np.zeros(present.shape, dtype=np.int64)
    row[present] = order
    start, end = start[row], np.where(present, end[row], 0)  # (S,R)
    asked = start[..., None] + np.arange((end - start).max())  # (S,R,Q) positions of the queries
    valid = asked < end[..., None]
    query = np.where(valid, nodes[row[..., None], np.minimum(asked, nodes.shape[1] - 1)], 0)
    column = np.arange(start[:, 0].max())  # (P,)
    shared = column < start[:, :1]
    prefix = np.where(shared, nodes[row[:, 0], : len(column)], -1)  # (S,P)
    place = np.arange(asked.shape[-1])
    slots = np.flatnonzero(valid)
    device = backend.to_device
    mask, causal = np.where(shared, 0, -np.inf), np.where(place <= place[:, None], 0, -np.inf)
    return AttentionBlock(
        query=device(query),
        prefix=device(np.maximum(prefix, 0)),
        causal=device(causal, dtype=dtype),
        mask=None if shared.all() else device(mask[:, None, None, None, None], dtype=dtype),
        valid=None if valid.all() else device(valid[..., None, None], dtype=dtype),
        slots=device(slots),
        nodes=device(query.ravel()[slots]),
        prefix_sum=segment_sum_plan(prefix.ravel(), device),
    )


def split_tree(
    tree: PrefixTree, max_nodes: int, lanes: int = 1
) -> list[tuple[PrefixTree, np.ndarray]]:
    """Parts of about max_nodes nodes (micro-batches), each a run of rows with the nodes they read.

    Returns [(part, nodes)], where `nodes` maps a part's nodes to the tree's.  A node of a
    completion is scored in exactly one part, so sums over scored nodes, and gradients, add up to
    those of the whole tree.  No row is cut.  With several lanes, a tree that is worth it has an
    even number of parts of like size.  Raises ValueError if max_nodes < 1.
    """
    if max_nodes < 1:
        raise ValueError(f"max_nodes is {max_nodes}: a part needs at least one node")
    n_parts = max(-(-tree.n_nodes // max_nodes), min(lanes, tree.n_nodes // LANE_NODES))
    if n_parts < 2:
        return [(tree, np.arange(tree.n_nodes))]
    added = tree.row_end - tree.row_start
    first = np.append(0, np.cumsum(added))  # the first node that a row adds
    bounds = [0]
    if lanes > 1:
        n_parts += n_parts % 2
        cuts = first[np.searchsorted(first[:-1], tree.n_nodes * np.arange(1, n_parts) // n_parts)]
        cuts = np.unique(cuts[(cuts > 0) & (cuts < tree.n_nodes)])
        bounds += list(np.searchsorted(first[:-1], cuts, side="right") - 1)
    else:
        size = 0
        for row, new in enumerate(added.tolist()):
            if size and new and size + new > max_nodes:
                bounds, size = [*bounds, row], 0
            size += new if size else tree.row_end[row]
    parts = []
    for low, high in zip(bounds, [*bounds[1:], len(tree.rows)], strict=True):
        context = tree.rows[low, : tree.row_start[low]]  # computed in this part too, but not scored
        nodes = np.concatenate([context, np.arange(first[low], first[high])])
        row_start = tree.row_start[low:high].copy()
        row_start[0] = 0
        part = _restrict(tree, nodes, slice(low, high), row_start, tree.row_end[low:high])
        part.scored[: len(context)] = False
        parts.append((part, nodes))
    return parts


def prune_tree(tree: PrefixTree, wanted: np.ndarray) -> tuple[PrefixTree | None, np.ndarray]:
    """The tree with the nodes that are wanted, or lead to one that is; None if none is wanted.

    wanted (N,) bool -> part, nodes as in `split_tree`
    """
    leads = wanted[tree.rows] & (tree.rows >= 0)
    leads = np.logical_or.accumulate(leads[:, ::-1], axis=1)[:, ::-1]  # (B,T)
    kept = np.zeros(tree.n_nodes, dtype=bool)
    kept[tree.rows[leads]] = True
    if kept.all():
        return tree, np.arange(tree.n_nodes)
    adding_row = np.repeat(np.arange(len(tree.rows)), tree.row_end - tree.row_start)  # (N,)
    n_kept = np.bincount(adding_row[kept], minlength=len(tree.rows))  # the first that a row adds
    rows, nodes = np.flatnonzero(n_kept), np.flatnonzero(kept)
    if not len(rows):
        return None, nodes
    row_start = tree.row_start[rows]
    return _restrict(tree, nodes, rows, row_start, row_start + n_kept[rows]), nodes


def _restrict(
    tree: PrefixTree,
    nodes: np.ndarray,
    rows: np.ndarray | slice,
    row_start: np.ndarray,
    row_end: np.ndarray,
) -> PrefixTree:
    """The tree of these nodes, in which each of these rows adds row_start ≤ t < row_end."""
    number = np.full(tree.n_nodes + 1, -1, dtype=np.int64)  # the last entry serves index -1
    number[nodes] = np.arange(len(nodes))
    kept = {n: getattr(tree, n)[nodes] for n in ("token", "depth", "count", "group", "scored")}
    kept |= {"row_start": row_start, "row_end": row_end, "rows": number[tree.rows[rows]]}
    kept |= {"parent": number[tree.parent[nodes]], "paths": number[tree.paths]}
    return replace(tree, **kept)
