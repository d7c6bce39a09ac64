"""The largest of a few numbers, for a pretrained language model, after six solved examples.

Test problems are those whose set of numbers, in any order, hashes into the test split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minigrpo.tasks.problems import FewShot
from minigrpo.tasks.tools import whole_number


@dataclass(frozen=True)
class Largest(FewShot):
    """The largest of `count` different numbers of 0 … high.   Raises ValueError as Sums does."""

    count: int = 4
    high: int = 99

    def __post_init__(self) -> None:
        super().__post_init__()
        count = whole_number("count", self.count, 2, 20)
        whole_number("high", self.high, count, 10**9)

    @property
    def max_new_tokens(self) -> int:
        """A space, the digits of a number (each a token in SmolLM2), one more, the line's end."""
        return len(str(self.high)) + 3

    def draw(self, rng: np.random.Generator) -> tuple[int, ...]:
        """Different numbers, in random order."""
        return tuple(rng.choice(self.high + 1, self.count, replace=False).tolist())

    def key(self, problem: tuple[int, ...]) -> str:
        """The same for every order."""
        return ",".join(map(str, sorted(problem)))

    def question(self, problem: tuple[int, ...]) -> str:
        """As "numbers: 23, 7, 91, 45; largest:"."""
        return f"numbers: {', '.join(map(str, problem))}; largest:"

    def answer(self, question: str) -> str:
        """The largest of the question's numbers."""
        numbers = question.removeprefix("numbers: ").removesuffix("; largest:").split(", ")
        return max(numbers, key=int)
