"""Outcome rewards and process rewards.

An outcome reward model (ORM) gives one number to a completion; a process reward model (PRM) gives one to every step.  Two PRMs
are here, both explicit: the one hidden in GRPO, which reads a step's value off the group's own outcomes, and a Monte-Carlo PRM,
which spends extra rollouts from the end of each step (as VinePPO does, arXiv:2410.01679).
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from minigrpo.tree import PrefixTree

if TYPE_CHECKING:
    from minigrpo.sampler import Rollouts
    from minigrpo.transformer import Transformer


LARGEST = 1e100  # of a reward; sums of squares of what is much larger overflow, and nothing would be learned, silently


def check_rewards(
    rewards: Sequence[float] | np.ndarray, tree: PrefixTree | np.ndarray
) -> np.ndarray:
    """The outcome rewards as a float64 array (B,).   tree: or the group of each completion, (B,)

    Raises ValueError if there is not one for each completion, or if one is not finite or above 1e100 in size (naming it).
    """
    owner = getattr(tree, "completion_group", tree)
    rewards = numbers(rewards, len(owner), "rewards")
    bad = np.flatnonzero(~(np.abs(rewards) <= LARGEST))
    if len(bad):
        group = int(owner[bad[0]])
        which = f"completion {(owner[: bad[0]] == group).sum()} of prompt {group}"
        raise ValueError(
            f"the reward of {which} is {rewards[bad[0]]}: rewards must be finite numbers, up to {LARGEST:g} in size"
        )
    return rewards


def numbers(found: Any, n: int, what: str) -> np.ndarray:
    """n numbers, in whatever a user's code returned them.   -> (n,) float64.   Raises ValueError for anything else."""
    array, found = None, list(islice(found, n + 1)) if isinstance(found, Iterator) else found
    with suppress(Exception):  # whatever NumPy says of other people's types
        given = np.asarray(found)
        array = (
            given.astype(np.float64) if given.dtype.kind in "biufO" else None
        )  # no texts, no complex numbers
    if array is None or array.shape != (n,):
        came = reprlib.repr(found) if array is None else f"an array of shape {array.shape}"
        raise ValueError(f"{n} completions need as many {what}, not {came}")
    return array


def step_rewards(tree: PrefixTree, rewards: Sequence[float] | np.ndarray) -> np.ndarray:
    """R̂(λ) = mean of r_i over the members i ∈ λ: the process reward that GRPO gives without saying so.   (B,) -> (N,) float64

    It is a Monte-Carlo estimate of the value of the node's prefix.  Prompt nodes belong to no process step and get 0.
    Raises ValueError for missing or non-finite rewards.  (Paper, section 3, equation for R̂.)
    """
    return np.where(
        tree.group >= 0, tree.sum_over_members(check_rewards(rewards, tree)) / tree.count, 0.0
    )


def monte_carlo_step_rewards(
    model: Transformer,
    rollouts: Rollouts,
    rewards: np.ndarray,
    score: Callable[[Rollouts], np.ndarray],
    n_rollouts: int,
    rng: np.random.Generator,
    *,
    eos: int | None = None,
) -> np.ndarray:
    """V̂(step) = mean outcome of n_rollouts fresh completions from the end of each process step.   -> (N,) float64

    All nodes of a step get the step's value; a step that ends a completion gets that completion's own outcome, which is exact
    if outcomes are a function of the text.  Costs up to n_rollouts · (number of inner steps) completions.
    """
    from minigrpo.sampler import Rollouts, sample

    tree = rollouts.tree
    values = step_rewards(tree, rewards)  # right for the steps that end completions
    jobs = []  # (nodes of the step, group, member, tokens so far)
    for group in range(tree.n_groups):
        first = int(np.argmax(tree.completion_group == group))
        for step in tree.steps(group):
            ends_someone = any(int(tree.lengths[i]) == step.end for i in step.members)
            if step.nodes and not ends_someone:
                member = step.members[0] - first
                jobs.append(
                    (list(step.nodes), group, rollouts.completions[group][member][: step.end])
                )
    if not jobs:
        return values
    jobs.sort(
        key=lambda job: -len(job[2])
    )  # what has the same number of tokens left is sampled together
    whole, truncated = [], []
    for begun_length, batch in groupby(jobs, key=lambda job: len(job[2])):
        begun = [(rollouts.prompts[group], tokens) for _, group, tokens in batch]
        room = rollouts.max_new_tokens - begun_length
        prompts = [np.concatenate(both) for both in begun]
        more = sample(
            model,
            prompts,
            n_rollouts,
            rng,
            max_new_tokens=room,
            eos=eos,
            temperature=rollouts.temperature,
        )
        whole += [
            [np.concatenate([b, end]) for end in ends]
            for (_, b), ends in zip(begun, more.completions, strict=True)
        ]
        truncated.append(more.truncated)
    own_prompts = [rollouts.prompts[group] for _, group, _ in jobs]
    tree = PrefixTree.from_groups(own_prompts, whole)
    nothing = np.zeros(tree.n_nodes)
    cut = np.concatenate(truncated)
    finished = Rollouts(
        own_prompts,
        whole,
        tree,
        nothing,
        nothing,
        cut,
        rollouts.temperature,
        rollouts.max_new_tokens,
    )
    outcome = check_rewards(score(finished), tree).reshape(len(jobs), n_rollouts)
    for (nodes, _, _), value in zip(jobs, outcome.mean(1), strict=True):
        values[nodes] = value
    return values
