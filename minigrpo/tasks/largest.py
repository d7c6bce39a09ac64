"""The largest of a few numbers, for a pretrained language model: "numbers: 23, 7, 91, 45; largest:" after six solved examples.

Test problems are those whose set of numbers hashes into the test split, in whatever order they stand.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from minigrpo.tasks import FEW_SHOT_SETTINGS, draw_problems, few_shot, real_number, whole_number

LINE = "\n"
PREAMBLE = 2  # the seed of the solved examples


@dataclass(frozen=True)
class Largest:
    """reward(completion) = 1 if it is the largest number, else 0.   `count` different numbers are drawn from 0 … high."""

    count: int = 4
    high: int = 99
    examples: int = 6
    test_share: float = 0.1

    stop: ClassVar[str] = LINE
    defaults: ClassVar[dict[str, Any]] = FEW_SHOT_SETTINGS

    def __post_init__(self) -> None:
        count = whole_number("count", self.count, 2, 20)
        whole_number("high", self.high, count, 10**9)
        whole_number("examples", self.examples, 0, 64)
        real_number("test_share", self.test_share, 0, 1)

    @property
    def max_new_tokens(self) -> int:
        """Enough for a space, the digits of a number (a token each in SmolLM2), one more, and the line's end."""
        return len(str(self.high)) + 3

    @cached_property
    def solved(self) -> list[tuple[str, str]]:
        """The solved examples: problem, answer."""
        problems = draw_problems(
            np.random.default_rng(PREAMBLE),
            self.examples,
            "train",
            self._draw,
            _key,
            self.test_share,
        )
        return [(_question(problem), str(max(problem))) for problem in problems]

    def texts(self, rng: np.random.Generator, n: int, split: str = "train") -> list[str]:
        """n prompts: the examples, then the problem."""
        problems = draw_problems(rng, n, split, self._draw, _key, self.test_share)
        return [few_shot(self.solved, _question(problem)) for problem in problems]

    def reward(self, prompt: str, completion: str) -> float:
        """1 for the largest number of the prompt's last line, else 0."""
        numbers = (
            prompt.rsplit(LINE, 1)[-1]
            .removeprefix("numbers: ")
            .removesuffix("; largest:")
            .split(", ")
        )
        return float(completion.strip() == max(numbers, key=int))

    def _draw(self, rng: np.random.Generator) -> tuple[int, ...]:
        return tuple(rng.choice(self.high + 1, self.count, replace=False).tolist())


def _question(problem: tuple[int, ...]) -> str:
    return f"numbers: {', '.join(map(str, problem))}; largest:"


def _key(problem: tuple[int, ...]) -> str:
    return ",".join(map(str, sorted(problem)))
