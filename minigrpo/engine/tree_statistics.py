"""What is logged of a batch: rewards, and how much tree there is (the paper's section 3.2)."""

from __future__ import annotations

import numpy as np

from minigrpo.tree import Array, PrefixTree, Rollouts


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


def rollout_metrics(rollouts: Rollouts, rewards: np.ndarray) -> dict[str, float]:
    """Rewards, lengths and entropy of a batch under TRL's names, and how much tree there is."""
    tree = rollouts.tree
    grouped = [rewards[tree.completion_group == g] for g in range(tree.n_groups)]
    return {
        "reward": float(rewards.mean()),
        "reward_std": float(np.mean([r.std(ddof=min(1, len(r) - 1)) for r in grouped])),
        "frac_reward_zero_std": float(np.mean([r.min() == r.max() for r in grouped])),
        "entropy": float(tree.on_tokens(rollouts.entropy).sum() / max(int(tree.lengths.sum()), 1)),
        "completions/mean_length": float(tree.lengths.mean()),
        "completions/clipped_ratio": float(rollouts.truncated.mean()),
        **tree_metrics(tree),
    }


def process_metrics(
    tree: PrefixTree, rewards: np.ndarray, values: np.ndarray | None
) -> dict[str, float]:
    """Of a user's process rewards (N,): their mean over tokens, and the groups that need them.

    Those are groups of equal outcomes whose steps differ, which learn from their steps alone.
    """
    if values is None:
        return {}
    groups = range(tree.n_groups)
    steps = [len(set(values[tree.group == g].tolist())) for g in groups]
    outcomes = [len(set(rewards[tree.completion_group == g].tolist())) for g in groups]
    alone = [n == 1 < m for n, m in zip(outcomes, steps, strict=True)]
    total = tree.on_tokens(values).sum()
    return {
        "process_reward": float(total / max(int(tree.lengths.sum()), 1)),
        "frac_groups_steps_only": float(np.mean(alone)),
    }
