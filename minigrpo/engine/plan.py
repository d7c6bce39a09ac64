"""From a tree to the index arrays a transformer needs to compute it: who attends to whom, where logits are wanted.

A node is computed once, however many completions pass through it.  Leaves are not computed at all: the last token of a
completion is predicted, but nothing is predicted from it.  The rows of the tree become rows of attention: the queries of a row
are the nodes that it adds, its keys are its whole path.  Rows of similar size are attended to together, in blocks.
All of this runs on the host; the arrays are carried to the device once for each tree.  A tree too large to compute at once is
split into parts first (micro-batches), which changes memory and speed but no number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from minigrpo.engine.backend import Backend
from minigrpo.engine.segments import SegmentSum, segment_sum_plan
from minigrpo.ops import Array, AttentionBlock
from minigrpo.tree import PrefixTree

LANE_NODES = 768  # nodes that make a lane worth its overhead
ONE_BLOCK = 10_000  # below this many (query, key) pairs, padding is cheaper than a second block


@dataclass(frozen=True, eq=False)
class Predictions:
    """Some of the P predictors, and the C scored nodes that they predict.

    rows                          of the predictors
    child                         (C,) scored nodes of the tree (host)
    child_row, child_token        (C,) their predictor among these, and their token
    row_of_child, pair_of_child   (C,) host: predictor and distinct (predictor, token) of each scored node
    pair_row, pair_token          (U,) the distinct pairs
    """

    rows: slice
    child: np.ndarray
    child_row: Array
    child_token: Array
    row_of_child: np.ndarray
    pair_of_child: np.ndarray
    pair_row: Array
    pair_token: Array


@dataclass(frozen=True, eq=False)
class TreePlan:
    """The M computed (inner) nodes of a tree, and the P of them that predict.

    token, position   (M,) of the computed nodes
    blocks            attention among them
    token_sum         how the gradients of M nodes add up to rows of the embedding
    predictor         (P,) the computed nodes whose logits are needed
    predictions       what they predict, in blocks of predictors
    """

    token: Array
    position: Array
    blocks: tuple[AttentionBlock, ...]
    token_sum: SegmentSum
    predictor: Array
    predictions: tuple[Predictions, ...]


def plan_tree(
    tree: PrefixTree, backend: Backend, dtype: np.dtype, max_predictors: int = 1 << 30
) -> TreePlan:
    """Plan the forward and backward pass over a tree, with the logits of at most max_predictors nodes at a time.

    Raises ValueError if a completion has no token before it (every prompt needs at least one token to predict from).
    """
    child = np.flatnonzero(tree.scored)
    if (tree.parent[child] < 0).any():
        raise ValueError(
            "a completion's first token has nothing to be predicted from: give every prompt at least one token"
        )
    device = backend.to_device
    inner, number = _computed(tree)
    predicts = np.zeros(tree.n_nodes, dtype=bool)
    predicts[tree.parent[child]] = True
    row_of_child = (np.cumsum(predicts) - 1)[tree.parent[child]]
    n_predictors = int(predicts.sum())
    blocks = [
        slice(lo, min(lo + max_predictors, n_predictors))
        for lo in range(0, n_predictors, max_predictors)
    ]
    return TreePlan(
        token=device(tree.token[inner]),
        position=device(tree.depth[inner]),
        blocks=plan_attention(tree, backend, dtype),
        token_sum=segment_sum_plan(tree.token[inner], device),
        predictor=device(number[predicts]),
        predictions=tuple(_predictions(tree, rows, child, row_of_child, device) for rows in blocks),
    )


def _predictions(
    tree: PrefixTree, rows: slice, child: np.ndarray, row_of_child: np.ndarray, device: Any
) -> Predictions:
    if rows.start or rows.stop <= row_of_child.max():
        inside = (row_of_child >= rows.start) & (row_of_child < rows.stop)
        child, row_of_child = child[inside], row_of_child[inside] - rows.start
    token = tree.token[child]
    stride = int(token.max()) + 1  # children of different groups may be the same (predictor, token)
    pair, pair_of_child = np.unique(row_of_child * stride + token, return_inverse=True)
    return Predictions(
        rows=rows,
        child=child,
        child_row=device(row_of_child),
        child_token=device(token),
        row_of_child=row_of_child,
        pair_of_child=pair_of_child,
        pair_row=device(pair // stride),
        pair_token=device(pair % stride),
    )


def _computed(tree: PrefixTree) -> tuple[np.ndarray, np.ndarray]:
    """Which nodes are computed, and each one's place among them.   -> (N,) bool, (N,) int"""
    inner = np.zeros(tree.n_nodes, dtype=bool)
    inner[tree.parent[tree.parent >= 0]] = True
    return inner, np.cumsum(inner) - 1


def plan_attention(
    tree: PrefixTree, backend: Backend, dtype: np.dtype, differentiable: bool = True
) -> tuple[AttentionBlock, ...]:
    """Attention among the computed nodes, forks of similar size together.   differentiable=False leaves out the way back"""
    inner, number = _computed(tree)
    start, end = tree.row_start, tree.row_end.copy()
    adds = np.flatnonzero(end > start)
    end[adds] -= ~inner[tree.rows[adds, end[adds] - 1]]  # a leaf neither asks nor is asked
    rows = adds[end[adds] > start[adds]]
    if not len(rows):
        return ()
    n_queries, n_prefix = (end - start)[rows], start[rows]
    before = np.where(
        n_prefix > 0, tree.rows[rows, n_prefix - 1], -1
    )  # the node that a row forks from
    at = np.flatnonzero(np.bincount(before + 1)) - 1  # the distinct ones
    fork = np.searchsorted(at, before)
    n_rows = np.bincount(fork)
    if (
        len(n_rows) * n_rows.max() * n_queries.max() * (n_prefix.max() + n_queries.max())
        <= ONE_BLOCK
    ):
        return (_block(tree, rows, fork, end, number, backend, dtype, differentiable),)
    length_class = _log2(n_queries)
    _, fork, n_rows = np.unique(before * 64 + length_class, return_inverse=True, return_counts=True)
    size_class = (length_class * 64 + _log2(n_rows)[fork]) * 64 + _log2(n_prefix + 1)

    def padded(chosen: np.ndarray) -> int:
        """How many (query, key) pairs they make as one block."""
        count = np.unique(fork[chosen], return_counts=True)[1]
        return (
            len(count)
            * count.max()
            * n_queries[chosen].max()
            * (n_prefix[chosen].max() + n_queries[chosen].max())
        )

    blocks: list[np.ndarray] = []
    for c in np.unique(size_class):
        alike = np.flatnonzero(size_class == c)
        together = np.concatenate([blocks[-1], alike]) if blocks else alike
        if blocks and padded(together) <= ONE_BLOCK:
            blocks[-1] = together
        else:
            blocks.append(alike)
    return tuple(
        _block(tree, rows[b], fork[b], end, number, backend, dtype, differentiable) for b in blocks
    )


def _log2(n: np.ndarray) -> np.ndarray:
    return np.ceil(np.log2(n)).astype(np.int64)


def _block(
    tree: PrefixTree,
    rows: np.ndarray,
    fork: np.ndarray,
    end: np.ndarray,
    number: np.ndarray,
    backend: Backend,
    dtype: np.dtype,
    differentiable: bool,
) -> AttentionBlock:
    order = np.argsort(fork, kind="stable")
    count = np.bincount(fork)
    count = count[count > 0]
    present = np.arange(count.max()) < count[:, None]  # (F,R)
    row = np.zeros(present.shape, dtype=np.int64)
    row[present] = rows[order]
    start, end = tree.row_start[row], np.where(present, end[row], 0)  # (F,R)
    asked = start[..., None] + np.arange((end - start).max())  # (F,R,Q) positions of the queries
    valid = asked < end[..., None]
    last = tree.rows.shape[1] - 1
    query = np.where(valid, number[tree.rows[row[..., None], np.minimum(asked, last)]], 0)
    column = np.arange(start[:, 0].max())  # (P,)
    shared = column < start[:, :1]
    prefix = np.where(shared, number[tree.rows[row[:, 0], : len(column)]], -1)  # (F,P)
    place = np.arange(asked.shape[-1])
    device = backend.to_device
    slots = np.flatnonzero(valid)
    return AttentionBlock(
        query=device(query),
        prefix=device(np.maximum(prefix, 0)),
        causal=device(np.where(place <= place[:, None], 0, -np.inf), dtype=dtype),
        mask=None
        if shared.all()
        else device(np.where(shared, 0, -np.inf)[:, None, None, None, None], dtype=dtype),
        valid=None if valid.all() else device(valid[..., None, None], dtype=dtype),
        slots=device(slots),
        nodes=device(query.ravel()[slots]),
        prefix_sum=segment_sum_plan(prefix.ravel(), device) if differentiable else None,
    )


def split_tree(
    tree: PrefixTree, max_nodes: int, lanes: int = 1
) -> list[tuple[PrefixTree, np.ndarray]]:
    """Micro-batches: parts of about max_nodes nodes, each a run of rows with the context they need.   -> [(part, nodes)]

    With more than one lane, a tree that is worth it is split into smaller parts, an even number of them and of like size.

    `nodes` maps a part's nodes to the tree's.  A completion's node is scored in exactly one part, so sums over scored nodes (and
    gradients) of the parts add up to those of the whole.  A single row is never cut.  Raises ValueError if max_nodes < 1.
    """
    if max_nodes < 1:
        raise ValueError(f"max_nodes is {max_nodes}: a part needs at least one node")
    n_parts = max(-(-tree.n_nodes // max_nodes), min(lanes, tree.n_nodes // LANE_NODES))
    if n_parts < 2:
        return [(tree, np.arange(tree.n_nodes))]
    added = tree.row_end - tree.row_start
    first = np.append(0, np.cumsum(added))  # the first node that a row adds
    bounds, size = [0], 0
    if lanes > 1:
        n_parts += n_parts % 2
        cuts = first[np.searchsorted(first[:-1], tree.n_nodes * np.arange(1, n_parts) // n_parts)]
        cuts = np.unique(cuts[(cuts > 0) & (cuts < tree.n_nodes)])
        bounds += (
            np.searchsorted(first[:-1], cuts, side="right") - 1
        ).tolist()  # rows that add something
    else:
        for row, (shared, new) in enumerate(
            zip(tree.row_start.tolist(), added.tolist(), strict=True)
        ):
            if size and new and size + new > max_nodes:
                bounds, size = [*bounds, row], 0
            size = size + new if size else shared + new
    return [
        _part(tree, lo, hi, first)
        for lo, hi in zip(bounds, [*bounds[1:], len(tree.rows)], strict=True)
    ]


def _part(tree: PrefixTree, lo: int, hi: int, first: np.ndarray) -> tuple[PrefixTree, np.ndarray]:
    context = tree.rows[lo, : tree.row_start[lo]]
    nodes = np.concatenate([context, np.arange(first[lo], first[hi])])
    row_start = tree.row_start[lo:hi].copy()
    row_start[0] = 0  # its context is computed here too
    scored = tree.scored[nodes].copy()
    scored[: len(context)] = False
    return _restrict(tree, nodes, np.arange(lo, hi), row_start, tree.row_end[lo:hi], scored), nodes


def prune_tree(tree: PrefixTree, wanted: np.ndarray) -> tuple[PrefixTree | None, np.ndarray]:
    """The tree without the nodes that are not wanted and lead to none that is (None if none is).   wanted (N,) bool -> part, nodes

    `nodes` maps its nodes to the tree's, as in `split_tree`.
    """
    present = tree.rows >= 0
    leads = np.logical_or.accumulate((wanted[tree.rows] & present)[:, ::-1], axis=1)[
        :, ::-1
    ]  # (B,L) to a wanted node of the row
    kept = np.zeros(tree.n_nodes, dtype=bool)
    kept[tree.rows[leads]] = True
    if kept.all():
        return tree, np.arange(tree.n_nodes)
    column = np.arange(tree.rows.shape[1])
    own = (column >= tree.row_start[:, None]) & (column < tree.row_end[:, None])
    n_kept = (kept[tree.rows] & own).sum(1)  # what is kept of a row's own nodes are the first ones
    rows, nodes = np.flatnonzero(n_kept), np.flatnonzero(kept)
    if not len(rows):
        return None, nodes
    row_start = tree.row_start[rows]
    return _restrict(
        tree, nodes, rows, row_start, row_start + n_kept[rows], tree.scored[nodes]
    ), nodes


def _restrict(
    tree: PrefixTree,
    nodes: np.ndarray,
    rows: np.ndarray,
    row_start: np.ndarray,
    row_end: np.ndarray,
    scored: np.ndarray,
) -> PrefixTree:
    renumber = np.full(tree.n_nodes + 1, -1, dtype=np.int64)  # the extra last entry serves index -1
    renumber[nodes] = np.arange(len(nodes))
    return PrefixTree(
        token=tree.token[nodes],
        parent=renumber[tree.parent[nodes]],
        depth=tree.depth[nodes],
        count=tree.count[nodes],
        group=tree.group[nodes],
        scored=scored,
        paths=renumber[tree.paths],
        completion_group=tree.completion_group,
        rows=renumber[tree.rows[rows]],
        row_start=row_start,
        row_end=row_end,
    )
