"""Addition worked out in written steps, of which only the outcome is rewarded.

    prompt       358+467=
    completion   8+7=15;5+6+1=12;3+4+1=8;825  then EOS

There is one step per column, from the right, with the carry as a third summand 1; then the answer.

The policy first copies a pupil who is careless: whenever a column receives a carry he forgets it
with probability `forget` = 0.6, writes 5+6=11, and goes on from there, to a wrong answer.  A policy
that copies him perfectly and answers greedily forgets every carry, so it is right only where no
column receives one: for d digits in exactly 0.55**(d-1) of all problems, since 55 of the 100 pairs
of digits give no carry (0.3025 for 3 digits).  Sampled at temperature 1 it is right more often
(0.5221 for 3 digits).  There are therefore groups with both outcomes, and reinforcement learning
can find out that the carry matters, though no step is ever judged.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, ClassVar

import numpy as np

from minigrpo.tasks.problems import CharTask
from minigrpo.tasks.tools import CharTokenizer, real_number, whole_number

CHARACTERS = CharTokenizer("0123456789+=;")
PROMPT = re.compile(r"([0-9]+)\+([0-9]+)=")


@dataclass(frozen=True)
class Arithmetic(CharTask):
    """a + b for two numbers of exactly `digits` digits.   reward = 1 if the answer is a + b, else 0

    digits 1 … 12; forget, the pupil's carelessness, and test_share from 0 to 1.  a+b and b+a are
    always in the same split.  Raises ValueError for options out of range.
    """

    digits: int = 3
    forget: float = 0.6

    tokenizer: ClassVar[CharTokenizer] = CHARACTERS
    defaults: ClassVar[dict[str, Any]] = {"dim": 64, "n_heads": 4, "warm_start_steps": 1000}
    defaults |= {"steps": 60, "group_size": 8, "prompts_per_step": 32, "learning_rate": 1e-4}
    defaults |= {"warmup_steps": 10, "eval_every": 10}

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("digits", self.digits, 1, 12)
        real_number("forget", self.forget, 0, 1)

    @property
    def max_new_tokens(self) -> int:
        """Length of the longest right completion, that of 99…9+99…9, with EOS: 30 for 3 digits."""
        largest = 10**self.digits - 1
        return len(write_steps(largest, largest)) + 1

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """Two numbers without a leading zero."""
        low, high = 10 ** (self.digits - 1), 10**self.digits
        return int(rng.integers(low, high)), int(rng.integers(low, high))

    def key(self, problem: tuple[int, int]) -> str:
        """The smaller number first: b+a would give a+b away."""
        return self.question(sorted(problem))

    def question(self, problem: Sequence[int]) -> str:
        """As "358+467="."""
        return f"{problem[0]}+{problem[1]}="

    def demonstration(self, problem: tuple[int, int], rng: np.random.Generator) -> str:
        """What the careless pupil writes."""
        return write_steps(*problem, rng.random(self.digits) < self.forget)

    def outcome(self, prompt: str, completion: str) -> float:
        """1.0 if the text after the last semicolon (all, if there is none) is the sum, else 0.0."""
        a, b = _operands(prompt)
        return float(completion.rpartition(";")[2] == str(a + b))


def write_steps(a: int, b: int, forgets: Sequence[bool] | None = None) -> str:
    """The completion for a + b.   forgets[j]: a carry into column j from the right is left out"""
    columns = list(zip(reversed(str(a)), reversed(str(b)), strict=True))
    forgets = [False] * len(columns) if forgets is None else forgets
    carry, steps, tail = False, [], ""
    for (x, y), forgotten in zip(columns, forgets, strict=True):
        carry = carry and not forgotten
        total = int(x) + int(y) + carry
        steps.append(f"{x}+{y}{'+1' if carry else ''}={total}")
        tail = str(total % 10) + tail
        carry = total >= 10
    return ";".join([*steps, f"{total}{tail[1:]}"])  # the leftmost column is written in full


def first_wrong_step(prompt_text: str, completion_text: str) -> int | None:
    """Index of the first written step that is wrong; None if all are right.   The answer is a step

    A step is right if it has the summands that belong there (the true carry included, in any order)
    and their sum.  A missing step is wrong at the place where it should be, and so is one too many.
    Raises ValueError for a prompt that is no sum.
    """
    a, b = _operands(prompt_text)
    expected, written = write_steps(a, b).split(";"), completion_text.split(";")
    steps = enumerate(zip_longest(map(_unordered, expected), map(_unordered, written)))
    return next((j for j, (right, step) in steps if right != step), None)


def _unordered(step: str) -> tuple[list[str], str, str]:
    summands, equals, total = step.partition("=")
    return sorted(summands.split("+")), equals, total


def _operands(prompt_text: str) -> tuple[int, int]:
    match = PROMPT.fullmatch(prompt_text)
    if not match or len(match[1]) != len(match[2]):
        told = f"the prompt {prompt_text!r} is no sum of two numbers of equal length"
        raise ValueError(f"{told}: write it like '358+467='")
    return int(match[1]), int(match[2])
