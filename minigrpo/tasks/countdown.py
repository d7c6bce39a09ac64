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

from minigrpo.tasks.problems import CharTask
from minigrpo.tasks.tools import CharTokenizer, real_number, whole_number

CHARACTERS = CharTokenizer("0123456789+-*/():,=")
PROMPT = re.compile(r"([0-9]{1,4}(?:,[0-9]{1,4})*):([0-9]{1,4})=")
NUMBER = re.compile(r"[0-9]*")  # \d and str.isdigit() would let other scripts' digits pass
APPLY = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}
MAX_LENGTH, MAX_DEPTH, MAX_DIGITS = 100, 20, 4  # characters, open parentheses, digits of a number


Problem = tuple[tuple[int, ...], int, str]  # the numbers, the target, a solution


@dataclass(frozen=True)
class Countdown(CharTask):
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

    tokenizer: ClassVar[CharTokenizer] = CHARACTERS
    # With p_right = 0.5 the warm start leaves greedy accuracy little to gain.  There are 210
    # held-out problems, and the common ones come first.
    defaults: ClassVar[dict[str, Any]] = (
        {"task_options": {"p_right": 0.3}, "dim": 64, "n_heads": 4, "warm_start_steps": 3000}
        | {"steps": 100, "group_size": 16, "prompts_per_step": 32, "learning_rate": 3e-4}
        | {"warmup_steps": 10, "eval_every": 10, "eval_prompts": 100}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("n_numbers", self.n_numbers, 2, 6)
        whole_number("max_number", self.max_number, 1, 99)
        whole_number("max_target", self.max_target, 1, 9999)
        real_number("p_right", self.p_right, 0, 1)

    @property
    def max_new_tokens(self) -> int:
        """Numbers, operators, parentheses around all parts but the whole, EOS: 8 for 3 digits."""
        n = self.n_numbers
        return n * len(str(self.max_number)) + (n - 1) + 2 * (n - 2) + 1

    def draw(self, rng: np.random.Generator) -> Problem:
        """A problem that has a solution, since it is made from one."""
        while True:
            numbers = tuple(rng.integers(1, self.max_number + 1, size=self.n_numbers).tolist())
            solution = random_expression(rng, numbers)
            target, _ = evaluate_expression(solution)
            if target.denominator == 1 and 1 <= target <= self.max_target:
                return numbers, int(target), solution

    def key(self, problem: Problem) -> str:
        """The same for every order of the numbers."""
        return self.question((tuple(sorted(problem[0])), *problem[1:]))

    def question(self, problem: Problem) -> str:
        """As "3,5,7:22="."""
        return f"{','.join(map(str, problem[0]))}:{problem[1]}="

    def demonstration(self, problem: Problem, rng: np.random.Generator) -> str:
        """The solution (probability p_right), or a random expression, which may be right too."""
        right = rng.random() < self.p_right
        return problem[2] if right else random_expression(rng, problem[0])

    def outcome(self, prompt: str, completion: str) -> float:
        """1.0 if the completion has the target's value and uses each number once, else 0.0."""
        match = PROMPT.fullmatch(prompt)
        if not match:
            told = f"the prompt {prompt!r} is no countdown problem"
            raise ValueError(f"{told}: write it like '3,5,7:22='")
        try:
            value, used = evaluate_expression(completion)
        except ValueError:
            return 0.0
        numbers = sorted(map(int, match[1].split(",")))
        return float(value == int(match[2]) and sorted(used) == numbers)


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


# -- the verifier ----------------------------------------------------------------------------------


def evaluate_expression(text: str) -> tuple[Fraction, list[int]]:
    """The exact value of an expression, and its numbers from left to right.   Grammar: see the top

    Raises ValueError, saying where and why, for anything that is no such expression, for a division
    by zero, and beyond the limits MAX_LENGTH, MAX_DEPTH and MAX_DIGITS.  They bound the work and
    the size of every intermediate fraction.
    """
    if len(text) > MAX_LENGTH:
        told = f"the expression has {len(text)} characters"
        raise ValueError(f"{told}: at most {MAX_LENGTH} are read")
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
