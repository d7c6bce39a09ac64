"""Answers to the exercises of chapter 6."""

import numpy as np


def _process_sets(completions):
    return [
        [[j for j, o in enumerate(completions) if o[: t + 1] == c[: t + 1]] for t in range(len(c))]
        for c in completions
    ]


def push(completions, rewards):
    """A sum over members: |λ|·Â."""
    a = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
    return [np.array([a[members].sum() for members in sets]) for sets in _process_sets(completions)]


def lambda_weights(completions):
    """Division by a count."""
    return [np.array([1 / len(members) for members in sets]) for sets in _process_sets(completions)]


def flawed_group():
    """The best completion has a rare end after a beginning that many bad completions share."""
    return [[1, 2], [1, 3], [1, 4], [1, 5], [6], [7]], np.array([1.0, -1.0, -1.0, -1.0, 0.7, 0.7])


def placebo_weights(completions, rng):
    """One permutation of all tokens of the group."""
    shuffled = rng.permutation(np.concatenate(lambda_weights(completions)))
    return np.split(shuffled, np.cumsum([len(c) for c in completions])[:-1])


def pushed_down(completions, rewards):
    """The mean over the members, as an advantage; GRPO counts it once for each of them."""
    sets = _process_sets(completions)
    scale = rewards.std(ddof=1) + 1e-4
    R = [np.array([rewards[members].mean() for members in row]) for row in sets]
    A = [(row - rewards.mean()) / scale for row in R]
    size = [np.array([len(members) for members in row]) for row in sets]
    grpo = [n * a for n, a in zip(size, A, strict=True)]
    down = [i for i, (n, a) in enumerate(zip(size, A, strict=True)) if ((n > 1) & (a < 0)).any()]
    return R, A, grpo, A, down
