"""Answers to the exercises of chapter 5."""

import numpy as np


def process_sets_by_hand():
    """ "a" ends completion 3, but all that begin with it share this step; 0 and 2 share a leaf."""
    return [
        ([0, 1, 2, 3, 4], 0, 0),
        ([0, 1, 2, 3], 0, 1),  # a
        ([0, 1, 2], 1, 2),  # b
        ([0, 2], 2, 4),  # c d
        ([1], 2, 3),  # e
        ([4], 0, 2),  # f b
    ]


def process_set(completions, i, t):
    """A slice of a completion that is too short is shorter, hence not equal."""
    return [j for j, other in enumerate(completions) if other[: t + 1] == completions[i][: t + 1]]


def counts(completions):
    """How many members each process set has."""
    return [
        np.array([len(process_set(completions, i, t)) for t in range(len(c))])
        for i, c in enumerate(completions)
    ]


def step_rewards(completions, rewards):
    """A mean over members."""
    return [
        np.array([rewards[process_set(completions, i, t)].mean() for t in range(len(c))])
        for i, c in enumerate(completions)
    ]


def step_advantages(completions, rewards):
    """Mean and std are those of the outcome rewards: every completion counts once."""
    scale = rewards.std(ddof=1) + 1e-4
    return [(r_hat - rewards.mean()) / scale for r_hat in step_rewards(completions, rewards)]


def theorem_terms(completions, rewards, ratios):
    """The same ρ and normaliser on both sides; Σ over members of a_i is |λ|·Â."""
    n = sum(len(c) for c in completions)
    a = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
    grpo = [ratio * a_i / n for ratio, a_i in zip(ratios, a, strict=True)]
    hat = step_advantages(completions, rewards)
    return grpo, [ratio * a_hat / n for ratio, a_hat in zip(ratios, hat, strict=True)]
