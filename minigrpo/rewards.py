"""Outcome rewards, process rewards, and the advantages that are made of either.

An outcome reward model (ORM) gives one number to a completion; a process reward model (PRM) gives
one to every step.  GRPO hides a PRM: it reads the value of a step off the group's own outcomes.
(`experiments/monte_carlo.py` has another, which spends extra rollouts from the end of each step.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from minigrpo.engine.group_statistics import shift_and_mean, std_of_groups
from minigrpo.system.user_code import check_choice, numbers
from minigrpo.tree import Array, PrefixTree

LARGEST = 1e100  # of a reward: the squares of much larger ones overflow, and nothing is learned
BASELINES = ("group_mean", "leave_one_out", "none")
SCALES = ("group_std", "batch_std", "none")


def step_rewards(tree: PrefixTree, rewards: ArrayLike) -> Array:
    """R̂(λ) = mean of rᵢ over members i ∈ λ: GRPO's hidden process reward.   (B,) -> (N,)

    It is a Monte-Carlo estimate of the value of the node's prefix.  Prompt nodes belong to no
    process step and get 0.  Raises ValueError as `check_rewards` does.  (Paper, section 3.)
    >>> tree = mg.PrefixTree.from_sequences([[1, 2, 3], [1, 2, 4], [1, 5]])
    >>> mg.step_rewards(tree, [1, 0, 0])[tree.paths[0]].round(2)  # along completion 0
    array([0.33, 0.5 , 1.  ])
    """
    mean = tree.sum_over_members(check_rewards(rewards, tree)) / tree.count
    return np.where(tree.group >= 0, mean, 0.0)


def check_rewards(rewards: ArrayLike, tree: PrefixTree | Array) -> Array:
    """The outcome rewards (B,) in float64.   tree: theirs, or the group of each completion (B,)

    Raises ValueError if there is not one for each completion, or if one is not finite or above
    1e100 in size (naming it).
    """
    group = tree.completion_group if isinstance(tree, PrefixTree) else tree
    rewards = numbers(rewards, len(group), "rewards")
    bad = np.flatnonzero(~(np.abs(rewards) <= LARGEST))
    if len(bad):
        place = (group[: bad[0]] == group[bad[0]]).sum()
        raise ValueError(
            f"the reward of completion {place} of prompt {group[bad[0]]} is {rewards[bad[0]]}: "
            f"rewards must be finite numbers, up to {LARGEST:g} in size"
        )
    return rewards


def check_process_rewards(values: ArrayLike, tree: PrefixTree) -> Array:
    """A user's process rewards (N,) in float64; those of prompt nodes are not looked at.

    Raises ValueError if there is not one for each node, or as `check_rewards` does.
    """
    values = numbers(values, tree.n_nodes, "process rewards", "nodes")
    bad = np.flatnonzero((tree.group >= 0) & ~(np.abs(values) <= LARGEST))
    if len(bad):
        found = f"the process reward of node {bad[0]} is {values[bad[0]]}"
        raise ValueError(f"{found}: it must be a finite number up to {LARGEST:g}")
    return values


def advantages(
    rewards: ArrayLike,
    group: ArrayLike,
    baseline: str = "group_mean",
    scale: str = "group_std",
    ddof: int = 1,
    eps: float = 1e-4,
) -> Array:
    """aᵢ = (rᵢ - baseline) / (std + eps).   rewards (B,), group of each completion (B,) -> (B,)

    baseline: "group_mean"; "leave_one_out", the mean of the others in the group (RLOO); "none".
    scale: "group_std" or "batch_std", with ddof 1 (of a sample, the paper's) or 0; "none".
    Equal rewards have no std to divide by, so aᵢ = rᵢ - baseline: exactly 0 if there is a baseline.
    Without one take scale "none", since nearly equal rewards are divided by nearly 0.
    Raises ValueError for an unknown choice, a reward that is not finite, and a group of one that
    needs a baseline or std.  (Paper, section 2.)
    >>> mg.advantages([1, 0, 0, 0], group=[0, 0, 1, 1]).round(2)
    array([ 0.71, -0.71,  0.  ,  0.  ])
    """
    check_choice("baseline", baseline, BASELINES)
    check_choice("scale", scale, SCALES)
    rewards = check_rewards(rewards, np.asarray(group))
    _, group, size = np.unique(group, return_inverse=True, return_counts=True)
    if size.min(initial=2) < 2 and (baseline != "none" or scale == "group_std"):
        found = "a group of one completion has nothing to be compared with"
        raise ValueError(f"{found}: take a group size of at least 2")
    count = np.ones(len(rewards))  # each reward counts once
    shifted, mean = shift_and_mean(rewards, group, count)
    out = rewards if baseline == "none" else shifted - mean[group]
    if baseline == "leave_one_out":
        out = out * (size / (size - 1))[group]  # = rᵢ - mean of the others
    return out / _std_plus_eps(rewards, group, count, scale, ddof, eps)[group]


def step_advantages(
    tree: PrefixTree,
    rewards: ArrayLike,
    values: ArrayLike | None = None,
    scale: str = "group_std",
    ddof: int = 1,
    eps: float = 1e-4,
) -> Array:
    """Â(λ) = (R̂(λ) - mean r) / (std r + eps), 0 in the trunk.   rewards (B,) -> (N,)

    values (N,), process rewards of one's own, stand in for R̂.  As they need not be on the scale of
    outcomes, these then play no part: mean and std are those of the values over all tokens of all
    members, m = Σ |λ|·v / Σ |λ| and so on.  Equal values give exactly 0.  (Paper, section 3.)
    Raises ValueError as `advantages` does, and for values that are missing or not finite.
    >>> tree = mg.PrefixTree.from_sequences([[1, 2, 3], [1, 2, 4], [1, 5]])
    >>> mg.step_advantages(tree, [1, 0, 0])[tree.paths[0]].round(2)
    array([0.  , 0.29, 1.15])
    """
    x, group = check_rewards(rewards, tree), tree.completion_group
    advantages(x, group, scale=scale)  # refuses what cannot work
    nodes, out = np.flatnonzero(tree.group >= 0), np.zeros(tree.n_nodes)
    owner, count = tree.group[nodes], np.ones(len(group))
    if values is None:
        shifted, mean = shift_and_mean(x, group, count)
        step = step_rewards(tree, shifted)[nodes]
    else:
        x = check_process_rewards(values, tree)[nodes]
        group, count = owner, tree.count[nodes]  # all members of a node have its value
        step, mean = shift_and_mean(x, group, count)
    out[nodes] = (step - mean[owner]) / _std_plus_eps(x, group, count, scale, ddof, eps)[owner]
    return out


def _std_plus_eps(x: Array, group: Array, count: Array, scale: str, ddof: int, eps: float) -> Array:
    """std + eps of each group, or 1 if there is no std to divide by.   -> (G,)"""
    n_groups = group.max(initial=-1) + 1
    if scale == "none":
        return np.ones(n_groups)
    std = std_of_groups(x, group if scale == "group_std" else np.zeros_like(group), count, ddof)
    return np.broadcast_to(np.where(std > 0, std + eps, 1.0), n_groups)
