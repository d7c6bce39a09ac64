"""Groups of completions on which the checks of chapters 5 to 7 try an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from minigrpo.objectives import advantages
from minigrpo.tree import PrefixTree

Rows = list[np.ndarray]  # one array per completion, of its length


@dataclass(frozen=True)
class Group:
    """Completions with their outcome rewards, (k,)."""

    completions: list[list[int]]
    rewards: np.ndarray

    @cached_property
    def tree(self) -> PrefixTree:
        return PrefixTree.from_sequences(self.completions)

    def advantages(self, **choices: object) -> np.ndarray:
        """The advantages of GRPO, or those of other choices.   -> (k,)"""
        return advantages(self.rewards, np.zeros(len(self.rewards), dtype=int), **choices)

    def along(self, values: np.ndarray) -> Rows:
        """A quantity on nodes, read along every completion.   (N,) -> one array per completion"""
        return [values[path[path >= 0]] for path in self.tree.paths]

    def sums(self, values: np.ndarray) -> Rows:
        """Sums over the process set of every token.   (k,) -> one array per completion"""
        return self.along(self.tree.sum_over_members(values))

    def own(self, values: Sequence[float] | np.ndarray) -> Rows:
        """Every completion's own value at all of its tokens.   (k,) -> one array per completion"""
        return [np.full(len(c), x) for c, x in zip(self.completions, values, strict=True)]

    def same_token(self) -> Rows:
        """How many completions have the same token at a position, whatever comes before it."""

        def count(token: int, t: int) -> int:
            return sum(c[t : t + 1] == [token] for c in self.completions)

        return [np.array([count(x, t) for t, x in enumerate(c)]) for c in self.completions]

    def joined(self) -> Rows:
        """The size of every process set, by someone who writes tokens one after the other."""
        texts = ["".join(map(str, c)) for c in self.completions]
        begins = [["".join(map(str, c[: t + 1])) for t in range(len(c))] for c in self.completions]
        return [np.array([sum(t.startswith(b) for t in texts) for b in row]) for row in begins]

    def told(self, rewards: bool = True) -> str:
        """The group in words, for a message."""
        told = f"completions {self.completions}"
        return f"{told} with rewards {self.rewards.tolist()}" if rewards else told

    def without_copies(self, values: np.ndarray, mean: bool, last: bool = False) -> Rows:
        """Sums or means over process sets, by someone who dropped copies but the first, or last."""
        which = list(enumerate(self.completions))
        unique = {tuple(c): i for i, c in (which if last else reversed(which))}
        kept = Group([list(c) for c in unique], values[list(unique.values())])
        sums = kept.tree.sum_over_members(kept.rewards)
        rows = kept.along(sums / kept.tree.count if mean else sums)
        return [rows[list(unique).index(tuple(c))] for c in self.completions]


def late(rows: Rows, first: float) -> Rows:
    """The values of those who share what comes before a token: each row moved by one position."""
    return [np.append(first, row[:-1])[: len(row)] for row in rows]


EDGE_CASES = (
    ([[1, 2, 3], [1, 2, 4], [5], [1, 6]], [1.0, 0.0, 0.5, 0.25]),
    # Two completions are equal, and the beginning of another one.
    ([[1, 2], [1, 3], [1, 2], [1, 2, 4]], [1.0, 0.0, 0.0, 1.0]),
    # One completion is the beginning of another one.
    ([[1, 2, 3], [1, 2], [2], [1, 2, 3, 4]], [0.0, 1.0, 1.0, -1.0]),
    # The same token stands at the same position after different beginnings.
    ([[7, 2, 3], [4, 2, 3], [7, 5, 3]], [1.0, 0.0, 0.0]),
    # One completion is empty.
    ([[1, 2], [], [1]], [0.0, 1.0, 0.5]),
    # Written one after the other, the digits of different tokens are alike.
    ([[1, 10], [11, 0], [1, 1, 0], [11, 3]], [1.0, 0.0, 0.5, -0.5]),
    # The rewards differ so little that 1e-4 beside their std counts.
    ([[1, 2], [1, 3], [1, 2], [4, 2, 2]], [1e-3, -1e-3, 2e-3, 0.0]),
)


def groups(seed: int, n_random: int = 6) -> list[Group]:
    """The edge cases, then random groups, with copies and beginnings of earlier completions."""
    rng = np.random.default_rng(seed)
    found = [Group(completions, np.array(rewards)) for completions, rewards in EDGE_CASES]
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
        found.append(Group(completions, rewards))
    return found
