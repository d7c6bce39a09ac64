"""How much tree there is in a batch: the statistics of the paper's section 3.2."""

from __future__ import annotations

import numpy as np

from minigrpo.tree import Array, PrefixTree


def path_depth(tree: PrefixTree) -> Array:
    """(B,) process sets between the root, the whole group, and the leaf of each completion."""
    is_root = tree.count == tree.group_sizes[tree.group]
    return tree.on_tokens(tree.is_step_head & _in_inner_step(tree) & ~is_root).sum(1)


def intermediate_proportion(tree: PrefixTree) -> Array:
    """(B,) share of each completion's tokens in steps that are not leaves; 0 if it is empty."""
    return tree.on_tokens(_in_inner_step(tree)).sum(1) / np.maximum(tree.lengths, 1)


def _in_inner_step(tree: PrefixTree) -> Array:
    """(N,) bool: another process step follows that of the node, so it is not a leaf."""
    step = np.where(tree.group >= 0, np.cumsum(tree.is_step_head), 0)  # 0 in the trunk
    before = tree.parent[tree.is_step_head]
    is_followed = np.zeros(tree.n_nodes + 1, dtype=bool)
    is_followed[step[before[before >= 0]]] = True
    is_followed[0] = False
    return is_followed[step]


def tree_metrics(tree: PrefixTree) -> dict[str, float]:
    """How much tree there is in a batch; mean_count is the completions per node."""
    flat, unique = int(tree.lengths.sum()), int(tree.scored.sum())
    return {
        "tree/unique_tokens": unique,
        "tree/flat_tokens": flat,
        "tree/mean_count": flat / max(unique, 1),
        "tree/shared_fraction": float((tree.on_tokens(tree.count) > 1).sum() / max(flat, 1)),
        "tree/path_depth": float(path_depth(tree).mean()),
        "tree/intermediate_proportion": float(intermediate_proportion(tree).mean()),
        "tree/flat_fraction": float(tree.is_flat.mean()),
    }
