"""Outcome rewards and process rewards.

An outcome reward model (ORM) gives one number to a completion; a process reward model (PRM) gives
one to every step.  GRPO hides a PRM: it reads the value of a step off the group's own outcomes.
(`experiments/monte_carlo.py` has another, which spends extra rollouts from the end of each step.)
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from minigrpo.tree import Array, PrefixTree

LARGEST = 1e100  # of a reward: the squares of much larger ones overflow, and nothing is learned


def step_rewards(tree: PrefixTree, rewards: ArrayLike) -> Array:
    """R̂(λ) = mean of rᵢ over members i ∈ λ: GRPO's hidden process reward.   (B,) -> (N,)

    It is a Monte-Carlo estimate of the value of the node's prefix.  Prompt nodes belong to no
    process step and get 0.  Raises ValueError as `check_rewards` does.  (Paper, section 3.)
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


def numbers(found: Any, n: int, what: str, owners: str = "completions") -> Array:
    """n numbers in whatever a user's code returned.   -> (n,) float64.   Raises ValueError."""
    found = list(islice(found, n + 1)) if isinstance(found, Iterator) else found
    array = None
    with suppress(Exception):  # whatever NumPy says of other people's types
        given = np.asarray(found)
        if given.dtype.kind in "biufO":  # neither texts nor complex numbers
            array = given.astype(np.float64)
    if array is None or array.shape != (n,):
        came = reprlib.repr(found) if array is None else f"an array of shape {array.shape}"
        raise ValueError(f"{n} {owners} need as many {what}, not {came}")
    return array
