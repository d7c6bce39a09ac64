"""Groups of completions on which the checks of chapters 5 to 7 try an answer: the edge cases first, then random ones."""

from __future__ import annotations

import numpy as np

Group = tuple[list[list[int]], list[float]]  # completions, rewards

EDGE_CASES: tuple[Group, ...] = (
    ([[1, 2, 3], [1, 2, 4], [5], [1, 6]], [1.0, 0.0, 0.5, 0.0]),
    (
        [[1, 2], [1, 3], [1, 2], [1, 2, 4]],
        [1.0, 0.0, 0.0, 1.0],
    ),  # two are equal, and the beginning of another
    (
        [[1, 2, 3], [1, 2], [2], [1, 2, 3, 4]],
        [0.0, 1.0, 1.0, -1.0],
    ),  # one is the beginning of another
    (
        [[7, 2, 3], [4, 2, 3], [7, 5, 3]],
        [1.0, 0.0, 0.0],
    ),  # the same token at the same place, after other beginnings
    ([[1, 2], [], [1]], [0.0, 1.0, 0.5]),  # an empty one
)


def groups(seed: int, n_random: int = 6) -> list[Group]:
    """The edge cases and a few random groups of unequal rewards, with copies and beginnings of earlier completions."""
    rng = np.random.default_rng(seed)
    found = list(EDGE_CASES)
    for _ in range(n_random):
        completions: list[list[int]] = []
        for _ in range(int(rng.integers(3, 8))):
            tokens = rng.integers(3, size=rng.integers(1, 7)).tolist()
            if completions and rng.random() < 0.3:
                tokens = list(completions[rng.integers(len(completions))])
                tokens = tokens[: rng.integers(len(tokens) + 1)] if rng.random() < 0.5 else tokens
            completions.append(tokens)
        rewards = rng.integers(-2, 3, size=len(completions)) / 2
        rewards[0] = rewards[1] + 1  # not all equal
        found.append((completions, rewards.tolist()))
    return found


def told(completions: list[list[int]], rewards: list[float] | None = None) -> str:
    """A group in words, for the message."""
    return f"completions {completions}" + ("" if rewards is None else f" with rewards {rewards}")
