"""From a tree to the index arrays a transformer needs to compute it: who attends to whom, where logits are wanted.

A node is computed once, however many completions pass through it.  Leaves are not computed at all: the last token of a
completion is predicted, but nothing is predicted from it.  The rows of the tree become rows of attention: the queries of a row
are the nodes that it adds, its keys are its whole path.  Rows of similar size are attended to together, in blocks.
All of this runs on the host; the arrays are carried to the device once for each tree.  A tree too large to compute at once is
split into parts first (micro-batches), which changes memory and speed but no number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minigrpo.backend import Backend
from minigrpo.ops import Array, AttentionBlock, SegmentSum, segment_sum_plan
from minigrpo.tree import PrefixTree

ONE_BLOCK = 40_000  # below this many (query, key) pairs, padding is cheaper than a second block


@dataclass(frozen=True, eq=False)
class TreePlan:
    """The M computed (inner) nodes of a tree, the P of them that predict, and the C scored nodes that are predicted.

    token, position   (M,) of the computed nodes
    blocks            attention among them
    token_sum         how the gradients of M nodes add up to rows of the embedding
    predictor         (P,) the computed nodes whose logits are needed
    child             (C,) scored nodes of the tree (host);  child_row (C,) their predictor, child_token (C,) their token
    row_of_child, pair_of_child   (C,) host: predictor and distinct (predictor, token) of each scored node
    pair_row, pair_token          (U,) the distinct pairs
    """

    token: Array
    position: Array
    blocks: tuple[AttentionBlock, ...]
    token_sum: SegmentSum
    predictor: Array
    child: np.ndarray
    child_row: Array
    child_token: Array
    row_of_child: np.ndarray
    pair_of_child: np.ndarray
    pair_row: Array
    pair_token: Array


def plan_tree(tree: PrefixTree, backend: Backend, dtype: np.dtype) -> TreePlan:
    """Plan the forward and backward pass over a tree.

    Raises ValueError if a completion has no token before it (every prompt needs at least one token to predict from).
    """
    child = np.flatnonzero(tree.scored)
    if (tree.parent[child] < 0).any():
        raise ValueError("a completion's first token has nothing to be predicted from: give every prompt at least one token")
    device = backend.to_device
    inner = np.zeros(tree.n_nodes, dtype=bool)
    inner[tree.parent[tree.parent >= 0]] = True
    number = np.cumsum(inner) - 1  # (N,) -> place among the computed nodes
    predictor, row_of_child = np.unique(number[tree.parent[child]], return_inverse=True)
    token = tree.token[child]
    stride = int(token.max()) + 1 if len(token) else 1  # children of different groups may be the same (predictor, token)
    pair, pair_of_child = np.unique(row_of_child * stride + token, return_inverse=True)
    return TreePlan(
        token=device(tree.token[inner]),
        position=device(tree.depth[inner]),
        blocks=_attention_blocks(tree, inner, number, backend, dtype),
        token_sum=segment_sum_plan(tree.token[inner], device),
        predictor=device(predictor),
        child=child,
        child_row=device(row_of_child),
        child_token=device(token),
        row_of_child=row_of_child,
        pair_of_child=pair_of_child,
        pair_row=device(pair // stride),
        pair_token=device(pair % stride),
    )


def _attention_blocks(
    tree: PrefixTree, inner: np.ndarray, number: np.ndarray, backend: Backend, dtype: np.dtype
) -> tuple[AttentionBlock, ...]:
    start, end = tree.row_start, tree.row_end.copy()
    adds = np.flatnonzero(end > start)
    end[adds] -= ~inner[tree.rows[adds, end[adds] - 1]]  # a leaf neither asks nor is asked
    rows = adds[end[adds] > start[adds]]
    if not len(rows):
        return ()
    n_queries = (end - start)[rows]
    if len(rows) * n_queries.max() * end[rows].max() <= ONE_BLOCK:
        return (_block(tree, rows, end, number, backend, dtype),)
    size_class = np.ceil(np.log2(n_queries)) * 64 + np.ceil(np.log2(end[rows]))
    return tuple(_block(tree, rows[size_class == c], end, number, backend, dtype) for c in np.unique(size_class))


def _block(
    tree: PrefixTree, rows: np.ndarray, end: np.ndarray, number: np.ndarray, backend: Backend, dtype: np.dtype
) -> AttentionBlock:
    start, end = tree.row_start[rows, None], end[rows, None]  # (R,1)
    asked = start + np.arange((end - start).max())  # (R,Q) positions of the queries
    column = np.arange(end.max())  # (S,)
    valid = asked < end
    query = np.where(valid, number[np.take_along_axis(tree.rows[rows], np.minimum(asked, end - 1), 1)], 0)
    key = np.where(column < end, number[tree.rows[rows, : len(column)]], -1)  # (R,S)
    distinct = asked[:1] if (start == start[0]).all() else asked
    mask = np.where(column <= distinct[:, None, None, :, None], 0, -np.inf)
    device = backend.to_device
    slots = np.flatnonzero(valid)
    return AttentionBlock(
        query=device(query),
        key=device(np.maximum(key, 0)),
        mask=device(mask, dtype=dtype),
        valid=None if valid.all() else device(valid[:, :, None, None], dtype=dtype),
        slots=device(slots),
        nodes=device(query.ravel()[slots]),
        key_sum=segment_sum_plan(key.ravel(), device),
    )


def decode_block(paths: np.ndarray, lengths: np.ndarray, backend: Backend, dtype: np.dtype) -> AttentionBlock:
    """One query a row: its newest node, the last of its path.   paths (R,S) nodes in the cache, lengths (R,)"""
    n_rows, n_keys = paths.shape
    same = (lengths == n_keys).all()
    mask = np.zeros((1, n_keys)) if same else np.where(np.arange(n_keys) < lengths[:, None], 0, -np.inf)
    every = backend.to_device(np.arange(n_rows))
    return AttentionBlock(
        query=every[:, None],
        key=backend.to_device(np.maximum(paths, 0)),
        mask=backend.to_device(mask[:, None, None, None, :], dtype=dtype),
        valid=None,
        slots=every,
        nodes=every,
        key_sum=None,
    )


def split_tree(tree: PrefixTree, max_nodes: int) -> list[tuple[PrefixTree, np.ndarray]]:
    """Micro-batches: parts of about max_nodes nodes, each a run of rows with the context they need.   -> [(part, nodes)]

    `nodes` maps a part's nodes to the tree's.  A completion's node is scored in exactly one part, so sums over scored nodes (and
    gradients) of the parts add up to those of the whole.  A single row is never cut.  Raises ValueError if max_nodes < 1.
    """
    if max_nodes < 1:
        raise ValueError(f"max_nodes is {max_nodes}: a part needs at least one node")
    if tree.n_nodes <= max_nodes:
        return [(tree, np.arange(tree.n_nodes))]
    added = tree.row_end - tree.row_start
    bounds, size = [0], 0
    for row, (shared, new) in enumerate(zip(tree.row_start.tolist(), added.tolist(), strict=True)):
        if size and new and size + new > max_nodes:
            bounds, size = [*bounds, row], 0
        size = size + new if size else shared + new
    first = np.append(0, np.cumsum(added))  # the first node that a row adds
    return [_part(tree, lo, hi, first) for lo, hi in zip(bounds, [*bounds[1:], len(tree.rows)], strict=True)]


def _part(tree: PrefixTree, lo: int, hi: int, first: np.ndarray) -> tuple[PrefixTree, np.ndarray]:
    context = tree.rows[lo, : tree.row_start[lo]]
    nodes = np.concatenate([context, np.arange(first[lo], first[hi])])
    renumber = np.full(tree.n_nodes + 1, -1, dtype=np.int64)  # the extra last entry serves index -1
    renumber[nodes] = np.arange(len(nodes))
    row_start = tree.row_start[lo:hi].copy()
    row_start[0] = 0  # its context is computed here too
    scored = tree.scored[nodes].copy()
    scored[: len(context)] = False
    part = PrefixTree(
        token=tree.token[nodes],
        parent=renumber[tree.parent[nodes]],
        depth=tree.depth[nodes],
        count=tree.count[nodes],
        group=tree.group[nodes],
        scored=scored,
        paths=renumber[tree.paths],
        completion_group=tree.completion_group,
        rows=renumber[tree.rows[lo:hi]],
        row_start=row_start,
        row_end=tree.row_end[lo:hi],
    )
    return part, nodes
