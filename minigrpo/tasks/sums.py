"""Addition for a pretrained language model: "23 + 45 =" after six solved examples that all prompts share.

The answer is right or it is not; a completion ends with its line.  Test problems are those whose two numbers, in either order, hash
into the test split, so neither they nor their mirror images are trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from minigrpo.tasks import FEW_SHOT_SETTINGS, draw_problems, few_shot, real_number, whole_number

LINE = "\n"
PREAMBLE = (
    2  # the seed of the solved examples; with six of them SmolLM2 starts at about a third right
)


@dataclass(frozen=True)
class Sums:
    """reward(completion) = 1 if it is the sum, else 0.   Both numbers are drawn from low … high.

    examples: solved ones in the prompt, always the same; test_share: of the problems held out.  Raises ValueError for anything
    out of range.
    """

    low: int = 10
    high: int = 49
    examples: int = 6
    test_share: float = 0.1

    stop: ClassVar[str] = LINE
    defaults: ClassVar[dict[str, Any]] = FEW_SHOT_SETTINGS

    def __post_init__(self) -> None:
        low = whole_number("low", self.low, 0, 10**9)
        whole_number("high", self.high, low + 1, 10**9)
        whole_number("examples", self.examples, 0, 64)
        real_number("test_share", self.test_share, 0, 1)

    @property
    def max_new_tokens(self) -> int:
        """Enough for a space, the digits of the largest sum (a token each in SmolLM2), one more, and the line's end."""
        return len(str(2 * self.high)) + 3

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
        return [(f"{a} + {b} =", str(a + b)) for a, b in problems]

    def texts(self, rng: np.random.Generator, n: int, split: str = "train") -> list[str]:
        """n prompts: the examples, then the problem."""
        problems = draw_problems(rng, n, split, self._draw, _key, self.test_share)
        return [few_shot(self.solved, f"{a} + {b} =") for a, b in problems]

    def reward(self, prompt: str, completion: str) -> float:
        """1 for the sum of the two numbers in the prompt's last line, else 0."""
        a, b = prompt.rsplit(LINE, 1)[-1].removesuffix("=").split("+")
        return float(completion.strip() == str(int(a) + int(b)))

    def _draw(self, rng: np.random.Generator) -> tuple[int, int]:
        a, b = rng.integers(self.low, self.high + 1, 2).tolist()
        return a, b


def _key(problem: tuple[int, int]) -> str:
    return f"{min(problem)}+{max(problem)}"
