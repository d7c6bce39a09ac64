"""Countdown: reach a target from given numbers, each used exactly once, with + - * and division.

    prompt       3,5,7:22=
    completion   3*5+7  then EOS

The verifier is a recursive-descent parser with limits, over exact fractions; what a model writes is
never evaluated by Python.  Its grammar, with no spaces, no signs, and no leading zeros:

    expression = term   { (+|-) term }
    term       = factor { (*|/) factor }
    factor     = number | ( expression )

Left out: powers, concatenation of numbers, partial use of the numbers, credit for coming close.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np

from minigrpo.tasks.tools import (
    CharTokenizer,
    draw_problems,
    real_number,
    score_texts,
    whole_number,
)

CHARACTERS = CharTokenizer("0123456789+-*/():,=")
PROMPT = re.compile(r"([0-9]{1,4}(?:,[0-9]{1,4})*):([0-9]{1,4})=")
NUMBER = re.compile(r"[0-9]*")  # \d and str.isdigit() would let other scripts' digits pass
APPLY = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}
MAX_LENGTH, MAX_DEPTH, MAX_DIGITS = 100, 20, 4  # characters, open parentheses, digits of a number


Problem = tuple[tuple[int, ...], int, str]  # the numbers, the target, a solution


@dataclass(frozen=True)
class Countdown:
    """reward = 1 if the completion has the target's value and uses each number exactly once, else 0

    n_numbers 2 … 6, each from 1 to max_number (at most 99); targets are whole numbers from 1 to
    max_target (at most 9999).  p_right is the chance that a demonstration is a right one.  Problems
    that differ in the order of their numbers alone are in the same split.  Raises ValueError for
    options out of range.
    """

    n_numbers: int = 3
    max_number: int = 9
    max_target: int = 99
    p_right: float = 0.5
    test_share: float = 0.1

    tokenizer: ClassVar[CharTokenizer] = CHARACTERS
    # With p_right = 0.5 the warm start leaves greedy accuracy little to gain.  There are 210
    # held-out problems, and the common ones come first.
    defaults: ClassVar[dict[str, Any]] = (
        {"task_options": {"p_right": 0.3}, "dim": 64, "n_heads": 4, "warm_start_steps": 3000}
        | {"steps": 100, "group_size": 16, "prompts_per_step": 32, "learning_rate": 3e-4}
        | {"warmup_steps": 10, "eval_every": 10, "eval_prompts": 100}
    )

    def __post_init__(self) -> None:
        whole_number("n_numbers", self.n_numbers, 2, 6)
        whole_number("max_number", self.max_number, 1, 99)
        whole_number("max_target", self.max_target, 1, 9999)
        real_number("p_right", self.p_right, 0, 1)
        real_number("test_share", self.test_share, 0, 1)

    @property
    def max_new_tokens(self) -> int:
        """Numbers, operators, parentheses around all parts but the whole, EOS: 8 for 3 digits."""
        n = self.n_numbers
        return n * len(str(self.max_number)) + (n - 1) + 2 * (n - 2) + 1

    def prompts(self, rng: np.random.Generator, n: int, split: str = "train") -> list[np.ndarray]:
        """n problems as token ids, drawn by `draw_problems`."""
        return [CHARACTERS.encode(_prompt(p)) for p in self._problems(rng, n, split)]

    def demonstrations(
        self, rng: np.random.Generator, n: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """n train problems, solved (probability p_right) or with a random expression.

        -> (prompt ids, completion ids with EOS).  A random expression may happen to be right too.
        """
        pairs = []
        for problem in self._problems(rng, n, "train"):
            numbers, _, solution = problem
            right = rng.random() < self.p_right
            text = solution if right else random_expression(rng, numbers)
            pairs.append((CHARACTERS.encode(_prompt(problem)), CHARACTERS.encode_with_eos(text)))
        return pairs

    def score(self, rollouts: Any) -> np.ndarray:
        """(B,) 1.0 where the completion solves its prompt, 0.0 otherwise."""
        return score_texts(rollouts, CHARACTERS, outcome)

    def _problems(self, rng: np.random.Generator, n: int, split: str) -> list[Problem]:
        return draw_problems(rng, n, split, self._draw, _canonical, self.test_share)

    def _draw(self, rng: np.random.Generator) -> Problem:
        while True:
            numbers = tuple(rng.integers(1, self.max_number + 1, size=self.n_numbers).tolist())
            solution = random_expression(rng, numbers)
            target, _ = evaluate_expression(solution)
            if target.denominator == 1 and 1 <= target <= self.max_target:
                return numbers, int(target), solution


def _prompt(problem: Problem) -> str:
    return f"{','.join(map(str, problem[0]))}:{problem[1]}="


def _canonical(problem: Problem) -> str:
    return _prompt((tuple(sorted(problem[0])), *problem[1:]))


class Part(NamedTuple):
    """A part of an expression.  `precedence` is its last operator's, 3 for a number."""

    text: str
    value: Fraction
    precedence: int


def random_expression(rng: np.random.Generator, numbers: tuple[int, ...]) -> str:
    """A random expression that uses each number once, with no needless parentheses.

    Two parts picked at random are joined by a random operator until one part is left.  One that
    divides by zero is thrown away.
    """
    while True:
        parts = [Part(str(number), Fraction(number), 3) for number in numbers]
        while len(parts) > 1:
            left, right = (parts.pop(int(rng.integers(len(parts)))) for _ in range(2))
            sign = "+-*/"[int(rng.integers(4))]
            if sign == "/" and right.value == 0:
                break
            parts.append(_join(left, sign, right))
        else:
            return parts[0].text


def _join(left: Part, sign: str, right: Part) -> Part:
    own = PRECEDENCE[sign]
    a = f"({left.text})" if left.precedence < own else left.text
    # a-(b-c) needs its parentheses, a+(b-c) does not
    wrap = right.precedence < own or (right.precedence == own and sign in "-/")
    b = f"({right.text})" if wrap else right.text
    return Part(a + sign + b, APPLY[sign](left.value, right.value), own)


def outcome(prompt_text: str, completion_text: str) -> float:
    """1.0 if the completion has the target's value and uses each number exactly once, else 0.0."""
    match = PROMPT.fullmatch(prompt_text)
    if not match:
        told = f"the prompt {prompt_text!r} is no countdown problem"
        raise ValueError(f"{told}: write it like '3,5,7:22='")
    try:
        value, used = evaluate_expression(completion_text)
    except ValueError:
        return 0.0
    return float(value == int(match[2]) and sorted(used) == sorted(map(int, match[1].split(","))))


# -- the verifier ----------------------------------------------------------------------------------


def evaluate_expression(text: str) -> tuple[Fraction, list[int]]:
    """The exact value of an expression, and its numbers from left to right.   Grammar: see the top

    Raises ValueError, saying where and why, for anything that is no such expression, for a division
    by zero, and beyond the limits MAX_LENGTH, MAX_DEPTH and MAX_DIGITS.  They bound the work and
    the size of every intermediate fraction.
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(
            f"the expression has {len(text)} characters: at most {MAX_LENGTH} are read"
        )
    numbers: list[int] = []
    value, end = _chain(text, 0, 0, numbers)
    if end < len(text):
        raise ValueError(f"an operator was expected at position {end}, not {text[end]!r}")
    return value, numbers


# Each of these reads one piece from `position` on, appends the numbers in it, and returns its value
# and the position behind it.  `depth` counts the open parentheses.


def _chain(
    text: str, position: int, depth: int, numbers: list[int], signs: str = "+-"
) -> tuple[Fraction, int]:
    """An expression: terms joined by + and -; or a term: factors joined by * and /."""
    part = partial(_chain, signs="*/") if signs == "+-" else _factor
    value, position = part(text, position, depth, numbers)
    while position < len(text) and text[position] in signs:
        sign, at = text[position], position
        right, position = part(text, position + 1, depth, numbers)
        if sign == "/" and right == 0:
            raise ValueError(f"division by zero at position {at}")
        value = APPLY[sign](value, right)
    return value, position


def _factor(text: str, position: int, depth: int, numbers: list[int]) -> tuple[Fraction, int]:
    where, next_one = f"at position {position}", text[position : position + 1]
    if next_one == "(":
        if depth == MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} open parentheses {where}")
        value, position = _chain(text, position + 1, depth + 1, numbers)
        if text[position : position + 1] != ")":
            raise ValueError(f"a closing parenthesis was expected at position {position}")
        return value, position + 1
    digits = NUMBER.match(text, position)[0]
    if not digits:
        found = repr(next_one) if next_one else "the end"
        raise ValueError(f"a number or an opening parenthesis was expected {where}, not {found}")
    if len(digits) > MAX_DIGITS:
        told = f"the number {where} has {len(digits)} digits"
        raise ValueError(f"{told}: at most {MAX_DIGITS} are read")
    if digits[0] == "0" and len(digits) > 1:
        raise ValueError(f"the number {where} has a leading zero")
    numbers.append(int(digits))
    return Fraction(numbers[-1]), position + len(digits)
