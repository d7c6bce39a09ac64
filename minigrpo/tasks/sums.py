"""Addition for a pretrained language model: "23 + 45 =" after six solved examples.

Test problems are those whose two numbers, in either order, hash into the test split, so neither
they nor their mirror images are trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minigrpo.tasks.problems import FewShot
from minigrpo.tasks.tools import whole_number


@dataclass(frozen=True)
class Sums(FewShot):
    """The sum of two numbers from low … high.   Raises ValueError for options out of range."""

    low: int = 10
    high: int = 49

    def __post_init__(self) -> None:
        super().__post_init__()
        low = whole_number("low", self.low, 0, 10**9)
        whole_number("high", self.high, low + 1, 10**9)

    @property
    def max_new_tokens(self) -> int:
        """A space, the digits of the largest sum (each a token in SmolLM2), one more, the end."""
        return len(str(2 * self.high)) + 3

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """Two numbers."""
        a, b = rng.integers(self.low, self.high + 1, 2).tolist()
        return a, b

    def key(self, problem: tuple[int, int]) -> str:
        """The same for a + b and b + a."""
        return f"{min(problem)}+{max(problem)}"

    def question(self, problem: tuple[int, int]) -> str:
        """As "23 + 45 ="."""
        return f"{problem[0]} + {problem[1]} ="

    def answer(self, question: str) -> str:
        """The sum of the question's numbers."""
        a, b = question.removesuffix("=").split("+")
        return str(int(a) + int(b))
