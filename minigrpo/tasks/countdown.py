"""Countdown: reach a target from given numbers, each used exactly once, with + - * and exact division.

    prompt       3,5,7:22=
    completion   3*5+7  then EOS

The verifier is a recursive-descent parser of its own, with limits, over exact fractions; what a model writes is never evaluated
by Python.  Its grammar, with no spaces, no signs, and no leading zeros:

    expression = term   { (+|-) term }
    term       = factor { (*|/) factor }
    factor     = number | ( expression )

Left out: powers, concatenation of numbers, partial use of the numbers, and credit for coming close.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, NamedTuple

import numpy as np

from minigrpo.tasks import CharTokenizer, draw_problems, real_number, score_texts, whole_number

CHARACTERS = CharTokenizer("0123456789+-*/():,=")
PROMPT = re.compile(r"([0-9]{1,4}(?:,[0-9]{1,4})*):([0-9]{1,4})=")
DIGITS = "0123456789"  # str.isdigit() would let other scripts' digits pass
APPLY = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}
MAX_LENGTH, MAX_DEPTH, MAX_DIGITS = (
    100,
    20,
    4,
)  # limits of the verifier: characters, open parentheses, digits of a number


class Problem(NamedTuple):
    """A problem that has a solution, since it was made from one."""

    numbers: tuple[int, ...]
    target: int
    solution: str

    @property
    def prompt(self) -> str:
        return f"{','.join(map(str, self.numbers))}:{self.target}="

    @property
    def canonical(self) -> str:
        return f"{','.join(map(str, sorted(self.numbers)))}:{self.target}="  # the order of the numbers makes no new problem


@dataclass(frozen=True)
class Countdown:
    """reward = 1 if the completion is an expression of the target that uses each number exactly once, else 0

    n_numbers 2 … 6, each from 1 to max_number (at most 99); targets are whole numbers from 1 to max_target (at most 9999).
    p_right is the chance that a demonstration is a right one.  Problems that differ in the order of their numbers alone are in the
    same split.  Raises ValueError for options out of range.
    """

    n_numbers: int = 3
    max_number: int = 9
    max_target: int = 99
    p_right: float = 0.5
    test_share: float = 0.1

    defaults: ClassVar[dict[str, Any]] = {
        "task_options": {
            "p_right": 0.3
        },  # with 0.5 the warm start leaves greedy accuracy little to gain
        "dim": 64,
        "n_heads": 4,
        "warm_start_steps": 3000,
        "steps": 100,
        "group_size": 16,
        "prompts_per_step": 32,
        "learning_rate": 3e-4,
        "warmup_steps": 10,
        "eval_every": 10,
        "eval_prompts": 100,  # there are 210 held-out problems, the common ones first
    }

    def __post_init__(self) -> None:
        whole_number("n_numbers", self.n_numbers, 2, 6)
        whole_number("max_number", self.max_number, 1, 99)
        whole_number("max_target", self.max_target, 1, 9999)
        real_number("p_right", self.p_right, 0, 1)
        real_number("test_share", self.test_share, 0, 1)

    @property
    def tokenizer(self) -> CharTokenizer:
        """The ten digits, operators, parentheses, the prompt's : , = and EOS."""
        return CHARACTERS

    @property
    def max_new_tokens(self) -> int:
        """Numbers, operators, a pair of parentheses around every part but the whole, and EOS: 8 for 3 numbers of one digit."""
        return (
            self.n_numbers * len(str(self.max_number))
            + (self.n_numbers - 1)
            + 2 * (self.n_numbers - 2)
            + 1
        )

    def prompts(self, rng: np.random.Generator, n: int, split: str = "train") -> list[np.ndarray]:
        """n problems as token ids: train with replacement, test distinct as far as there are any (see `draw_problems`)."""
        return [CHARACTERS.encode(problem.prompt) for problem in self._problems(rng, n, split)]

    def demonstrations(
        self, rng: np.random.Generator, n: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """n train problems, each with a solution (probability p_right) or else a random expression of its numbers.

        -> (prompt ids, completion ids with EOS).  A random expression may happen to be right too.
        """
        pairs = []
        for problem in self._problems(rng, n, "train"):
            text = (
                problem.solution
                if rng.random() < self.p_right
                else random_expression(rng, problem.numbers)
            )
            pairs.append((CHARACTERS.encode(problem.prompt), CHARACTERS.encode_with_eos(text)))
        return pairs

    def score(self, rollouts: Any) -> np.ndarray:
        """(B,) 1.0 where the completion solves its prompt, 0.0 otherwise."""
        return score_texts(rollouts, CHARACTERS, outcome)

    def _problems(self, rng: np.random.Generator, n: int, split: str) -> list[Problem]:
        return draw_problems(
            rng, n, split, self._draw, lambda problem: problem.canonical, self.test_share
        )

    def _draw(self, rng: np.random.Generator) -> Problem:
        while True:
            numbers = tuple(rng.integers(1, self.max_number + 1, size=self.n_numbers).tolist())
            solution = random_expression(rng, numbers)
            target, _ = evaluate_expression(solution)
            if target.denominator == 1 and 1 <= target <= self.max_target:
                return Problem(numbers, int(target), solution)


def random_expression(rng: np.random.Generator, numbers: tuple[int, ...]) -> str:
    """A random expression that uses each number once, with no more parentheses than it needs, and no division by zero.

    Two parts picked at random are joined by a random operator until one part is left.
    """
    while True:
        parts = [
            (str(number), Fraction(number), 3) for number in numbers
        ]  # text, value, precedence
        while len(parts) > 1:
            left, right = (parts.pop(int(rng.integers(len(parts)))) for _ in range(2))
            sign = "+-*/"[int(rng.integers(4))]
            if sign == "/" and right[1] == 0:
                break
            parts.append(_join(left, sign, right))
        else:
            return parts[0][0]


def _join(
    left: tuple[str, Fraction, int], sign: str, right: tuple[str, Fraction, int]
) -> tuple[str, Fraction, int]:
    own = PRECEDENCE[sign]
    left_text = f"({left[0]})" if left[2] < own else left[0]
    wrap = right[2] < own or (
        right[2] == own and sign in "-/"
    )  # a-(b-c) needs them, a+(b-c) does not
    right_text = f"({right[0]})" if wrap else right[0]
    return left_text + sign + right_text, APPLY[sign](left[1], right[1]), own


def outcome(prompt_text: str, completion_text: str) -> float:
    """1.0 if the completion is an expression that has the target's value and uses each number exactly once, else 0.0."""
    match = PROMPT.fullmatch(prompt_text)
    if not match:
        raise ValueError(
            f"the prompt {prompt_text!r} is no countdown problem: write it like '3,5,7:22='"
        )
    try:
        value, used = evaluate_expression(completion_text)
    except ValueError:
        return 0.0
    return float(value == int(match[2]) and sorted(used) == sorted(map(int, match[1].split(","))))


# -- the verifier --------------------------------------------------------------------------------------------------------


def evaluate_expression(text: str) -> tuple[Fraction, list[int]]:
    """The exact value of an expression, and the numbers in it from left to right.   Grammar: at the top of this file

    Raises ValueError, saying where and why, for anything that is no such expression, for a division by zero, and beyond the
    limits MAX_LENGTH, MAX_DEPTH and MAX_DIGITS.  They bound the work and the size of every intermediate fraction.
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(
            f"the expression has {len(text)} characters: at most {MAX_LENGTH} are read"
        )
    numbers: list[int] = []
    value, end = _expression(text, 0, 0, numbers)
    if end < len(text):
        raise ValueError(f"an operator was expected at position {end}, not {text[end]!r}")
    return value, numbers


# Each of these reads one piece from `position` on, appends the numbers in it, and returns its value and the position behind it.


def _expression(text: str, position: int, depth: int, numbers: list[int]) -> tuple[Fraction, int]:
    value, position = _term(text, position, depth, numbers)
    while position < len(text) and text[position] in "+-":
        sign = text[position]
        right, position = _term(text, position + 1, depth, numbers)
        value = APPLY[sign](value, right)
    return value, position


def _term(text: str, position: int, depth: int, numbers: list[int]) -> tuple[Fraction, int]:
    value, position = _factor(text, position, depth, numbers)
    while position < len(text) and text[position] in "*/":
        sign, at = text[position], position
        right, position = _factor(text, position + 1, depth, numbers)
        if sign == "/" and right == 0:
            raise ValueError(f"division by zero at position {at}")
        value = APPLY[sign](value, right)
    return value, position


def _factor(text: str, position: int, depth: int, numbers: list[int]) -> tuple[Fraction, int]:
    if position < len(text) and text[position] == "(":
        if depth == MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} open parentheses at position {position}")
        value, position = _expression(text, position + 1, depth + 1, numbers)
        if position == len(text) or text[position] != ")":
            raise ValueError(f"a closing parenthesis was expected at position {position}")
        return value, position + 1
    end = position
    while end < len(text) and text[end] in DIGITS:
        end += 1
    if end == position:
        found = repr(text[position]) if position < len(text) else "the end"
        raise ValueError(
            f"a number or an opening parenthesis was expected at position {position}, not {found}"
        )
    if end - position > MAX_DIGITS:
        raise ValueError(
            f"the number at position {position} has {end - position} digits: at most {MAX_DIGITS} are read"
        )
    if text[position] == "0" and end > position + 1:
        raise ValueError(f"the number at position {position} has a leading zero")
    numbers.append(int(text[position:end]))
    return Fraction(numbers[-1]), end
