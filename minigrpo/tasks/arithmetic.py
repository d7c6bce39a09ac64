"""Addition worked out in written steps, of which only the outcome is rewarded.

    prompt       358+467=
    completion   8+7=15;5+6+1=12;3+4+1=8;825  then EOS

One step a column, from the right; a carry is written as a third summand 1; then, after the last semicolon, the answer.

The story.  The policy first copies a pupil who knows how to add two digits but is careless: whenever a column receives a carry
he forgets it with probability `forget` = 0.6, writes 5+6=11, and goes on consistently from there.  A forgotten carry always
makes the answer wrong.  A policy that has copied him perfectly and answers greedily does what he does more often than not: it
forgets every carry, and is right only where no column receives one.  For d digits that is exactly 0.55**(d-1) of all problems
(of the 100 pairs of digits 55 give no carry): 0.3025 for 3 digits, 0.3026 of its 81,065 test problems.  Sampled at temperature 1
it is right more often (0.5221 for 3 digits), so there are groups with both outcomes, and reinforcement learning can find out that
the carry matters, though no step is ever judged.

Left out: subtraction, operands of different lengths, and rewards for steps (`first_wrong_step` serves to judge process rewards,
not to give them).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, ClassVar

import numpy as np

from minigrpo.tasks import CharTokenizer, draw_problems, real_number, score_texts, whole_number

CHARACTERS = CharTokenizer("0123456789+=;")
PROMPT = re.compile(r"([0-9]+)\+([0-9]+)=")


@dataclass(frozen=True)
class Arithmetic:
    """a + b for two numbers of exactly `digits` digits (no leading zero).   reward = 1 if the answer is a + b, else 0

    digits 1 … 12; forget, the pupil's carelessness, and test_share, the share of problems kept for the test split, from 0 to 1.
    a+b and b+a are always in the same split.  Raises ValueError for options out of range.
    """

    digits: int = 3
    forget: float = 0.6
    test_share: float = 0.1

    defaults: ClassVar[dict[str, Any]] = {
        "dim": 64,
        "n_heads": 4,
        "warm_start_steps": 1000,
        "steps": 60,
        "group_size": 8,
        "prompts_per_step": 32,
        "learning_rate": 1e-4,
        "warmup_steps": 10,
        "eval_every": 10,
    }

    def __post_init__(self) -> None:
        whole_number("digits", self.digits, 1, 12)
        real_number("forget", self.forget, 0, 1)
        real_number("test_share", self.test_share, 0, 1)

    @property
    def tokenizer(self) -> CharTokenizer:
        """The ten digits, +, = and ; and EOS."""
        return CHARACTERS

    @property
    def max_new_tokens(self) -> int:
        """Length of the longest right completion, that of 99…9+99…9, with EOS: 30 for 3 digits."""
        largest = 10**self.digits - 1
        return len(write_steps(largest, largest)) + 1

    def prompts(self, rng: np.random.Generator, n: int, split: str = "train") -> list[np.ndarray]:
        """n problems as token ids: train with replacement, test distinct as far as there are any (see `draw_problems`)."""
        return [CHARACTERS.encode(f"{a}+{b}=") for a, b in self._problems(rng, n, split)]

    def demonstrations(
        self, rng: np.random.Generator, n: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """n train problems with what the careless pupil writes: (prompt ids, completion ids with EOS)."""
        pairs = []
        for a, b in self._problems(rng, n, "train"):
            forgets = rng.random(self.digits) < self.forget
            pairs.append(
                (
                    CHARACTERS.encode(f"{a}+{b}="),
                    CHARACTERS.encode_with_eos(write_steps(a, b, forgets)),
                )
            )
        return pairs

    def score(self, rollouts: Any) -> np.ndarray:
        """(B,) 1.0 where the text after the last semicolon is the sum, 0.0 otherwise; the steps are not looked at."""
        return score_texts(rollouts, CHARACTERS, outcome)

    def _problems(self, rng: np.random.Generator, n: int, split: str) -> list[tuple[int, int]]:
        low, high = 10 ** (self.digits - 1), 10**self.digits

        def draw(rng: np.random.Generator) -> tuple[int, int]:
            return int(rng.integers(low, high)), int(rng.integers(low, high))

        return draw_problems(rng, n, split, draw, _canonical, self.test_share)


def _canonical(problem: tuple[int, int]) -> str:
    return f"{min(problem)}+{max(problem)}="  # the prompt, smaller number first: b+a would give a+b away


def write_steps(a: int, b: int, forgets: Sequence[bool] | None = None) -> str:
    """The completion for a + b.   forgets[j] says that a carry into column j (0 is the rightmost) is forgotten; None: never"""
    columns = list(zip(reversed(str(a)), reversed(str(b)), strict=True))
    carry, steps, tail = False, [], ""
    for (x, y), forgotten in zip(
        columns, [False] * len(columns) if forgets is None else forgets, strict=True
    ):
        carry = carry and not forgotten
        total = int(x) + int(y) + carry
        steps.append(f"{x}+{y}{'+1' if carry else ''}={total}")
        tail = str(total % 10) + tail
        carry = total >= 10
    return ";".join(
        [*steps, f"{total}{tail[1:]}"]
    )  # the last column is written as it is, there is no further one


def outcome(prompt_text: str, completion_text: str) -> float:
    """1.0 if the text after the last semicolon (all, if there is none) is the sum written plainly, else 0.0."""
    a, b = _operands(prompt_text)
    return float(completion_text.rpartition(";")[2] == str(a + b))


def first_wrong_step(prompt_text: str, completion_text: str) -> int | None:
    """Index of the first written step that is wrong, or None if all are right.   Column j is step j, the answer is step `digits`

    A step is right if it has the summands that belong there (the true carry included, in any order) and their sum.  A missing
    step is wrong at the place where it should be, and so is one too many.  Raises ValueError for a prompt that is no sum.
    """
    a, b = _operands(prompt_text)
    expected, written = write_steps(a, b).split(";"), completion_text.split(";")
    pairs = enumerate(
        zip_longest(map(_unordered, expected), map(_unordered, written))
    )  # an empty step is a step, too
    return next((j for j, (right, step) in pairs if right != step), None)


def _unordered(step: str) -> tuple[list[str], str, str]:
    summands, equals, total = step.partition("=")
    return sorted(summands.split("+")), equals, total


def _operands(prompt_text: str) -> tuple[int, int]:
    match = PROMPT.fullmatch(prompt_text)
    if not match or len(match[1]) != len(match[2]):
        raise ValueError(
            f"the prompt {prompt_text!r} is no sum of two numbers of equal length: write it like '358+467='"
        )
    return int(match[1]), int(match[2])
