"""Comparing an answer with the right one, and saying in words what is wrong with it.

The check of a task gets an `Answer`, the student's function.  It calls it (`ask`), compares what it
returns (`compare`; `check` does both), and raises `WrongAnswer` with a text for the student: what
was given, where it first goes wrong, what was expected and what came, and a hint.  A mistake is
recognised by its numbers, which the check computes and passes under the name of the hint.
"""

from __future__ import annotations

import copy
import errno
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from minigrpo.course.hints import COMMON_HINTS
from minigrpo.system.user_code import Told, as_numbers, explain, peak

RTOL = 1e-5  # 84 roundings of float32: known mistakes move some number by much more


class WrongAnswer(Exception):
    """What is wrong with an answer, in words for the student; the text may have several lines."""


def wrong(given: str, problem: str, hint: str = "") -> WrongAnswer:
    """The text of a wrong answer: what was given, what is wrong, a hint."""
    lines = [f"Given {given}:" if given else "", problem[0].upper() + problem[1:]]
    return WrongAnswer("\n".join(filter(None, [*lines, hint and f"Hint: {hint}"])))


@dataclass(frozen=True)
class Answer:
    """A student's function, and what the comparison has to know about its task.

    axes: what each index of the answer counts, such as ("completion", "position").
    """

    function: Callable[..., Any]
    axes: Sequence[str] = ()
    hints: Mapping[str, str] = field(default_factory=dict)

    def ask(self, given: str, *arguments: Any) -> Any:
        """What the function returns.   It gets copies, so that it may do what it likes to them.

        Raises WrongAnswer if the function raises or returns nothing; NotImplementedError passes,
        for that is a task still to do.
        """
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                answer = self.function(*copy.deepcopy(arguments))
            except (NotImplementedError, KeyboardInterrupt):
                raise
            except BaseException as error:
                code = getattr(inspect.unwrap(self.function), "__code__", None)
                got = explain(error, getattr(code, "co_filename", ""))
                raise wrong(given, f"expected an answer, got {got}.", advice(error)) from error
        if answer is None:
            hint = "does the function end with `return …`?"
            raise wrong(given, "expected an answer, got None.", hint)
        return answer

    def peak(self, given: str, *arguments: Any) -> tuple[Any, int]:
        """What the function returned, and the most bytes that it held at once."""
        measured = getattr(self.function, "peak", None) or partial(peak, self.function)
        return replace(self, function=measured).ask(given, *arguments)

    def parts(self, given: str, names: Sequence[str], *arguments: Any) -> Sequence[Any]:
        """What a function returns that has to return a tuple, or an array that stacks its parts."""
        got = self.ask(given, *arguments)
        stacked = isinstance(got, np.ndarray) and got.ndim > 1
        if (stacked or isinstance(got, tuple | list)) and len(got) == len(names):
            return got
        what = type(got).__name__ + (f" of {len(got)}" if isinstance(got, tuple | list) else "")
        problem = f"expected {len(names)} things, ({', '.join(names)}), got {what}."
        raise wrong(given, problem, "return them as a tuple.")

    def check(self, given: str, arguments: tuple, right: Any, **mistakes: Any) -> Any:
        """Ask and compare.   -> what the function returned"""
        got = self.ask(given, *arguments)
        self.compare(given, got, right, **mistakes)
        return got

    def check_number(self, given: str, arguments: tuple, right: float, why: str) -> None:
        """Ask for a single number; the hint says why this one is right."""
        got = self.ask(given, *arguments)
        if shape_of(got) != () or not isinstance(got, int | float | np.generic | np.ndarray):
            raise wrong(given, f"expected the number {right}, got {type(got).__name__} {got!r}.")
        if got != right:
            raise wrong(given, f"expected {right}, got {text(np.asarray(got)[()])}.", why)

    def compare(
        self,
        given: str,
        got: Any,
        right: Any,
        part: str = "",
        labels: Sequence[str] = (),
        **mistakes: Any,
    ) -> None:
        """Raise WrongAnswer unless got is right: first its shape, then its values.

        right: numbers, or a list with one array per completion.  part: which part of an answer this
        is.  labels: what to call each number, where `axes` do not say it.  mistakes: by the name of
        its hint, the numbers of a mistake.
        """
        start = f"in {part}: " if part else ""
        if isinstance(right, list):
            got, labels = _joined(given, start, got, right)
            right = np.concatenate(right)
            mistakes = {name: np.concatenate(rows) for name, rows in mistakes.items()}
        else:
            got, right = _numbers(given, start, got), np.asarray(right)
            if got.shape != right.shape:
                problem = f"expected shape {_shape(right)}, got shape {_shape(got)}."
                raise wrong(given, start + problem, _shape_hint(got, right, self.axes))
        logical, right = right.dtype == bool, right.astype(float)
        if close(got, right):
            return
        is_wrong = ~np.isfinite(got) | ~(np.abs(got - right) <= _allowed(right))
        index = tuple(np.argwhere(is_wrong)[0])
        values = [0.0 if abs(x[index]) < 1e-10 else float(x[index]) for x in (right, got)]
        pair = [text(bool(x) if logical and x in (0, 1) else x) for x in values]
        if pair[0] == pair[1]:
            pair = list(map(repr, values))
        place = labels[index[0]] if labels else _place(index, self.axes)
        more = f" ({is_wrong.sum()} of {got.size} numbers are wrong)" if got.size > 1 else ""
        at = f"at {place}: " if place else ""
        problem = f"{start}{at}expected {pair[0]}, got {pair[1]}{more}."
        raise wrong(given, problem, self.recognise(got, right, mistakes))

    def recognise(self, got: np.ndarray, right: np.ndarray, mistakes: Mapping[str, Any]) -> str:
        """The hint for the mistake that explains the numbers: first the task's, then common."""
        for name, value in mistakes.items():
            value = np.broadcast_to(np.asarray(value, dtype=np.float64), right.shape)
            if close(got, value) and not close(value, right):
                return self.hints[name.rstrip("_")]  # a variant of a mistake: name_
        if not np.isfinite(got).all():
            return "there is a nan or an infinity, a 0/0 say. Subtract the maximum before exp."
        if close(got, -right):
            return "the sign is flipped: is it an objective (to go up) or a loss (to go down)?"
        if got.ndim == 2 and close(got.T, right):
            return "this is the transpose of the right answer."
        if right.shape and right.shape[-1] > 2 and np.ptp(right) > 0:
            shifts = (got[..., 1:], right[..., :-1]), (got[..., :-1], right[..., 1:])
            if any(close(one, two) for one, two in shifts):
                return "the numbers are right but off by one position."
        nonzero, shift = np.abs(right) > 1e-9, float((got - right).flat[0])
        if right.size > 1 and np.abs(got - right).max() < 5e-3 * np.abs(right).max():
            return (
                "the numbers are nearly right: is a small constant (such as 1e-4) missing or in "
                "another place, or is something rounded, or a difference quotient too coarse?"
            )
        if right.size > 1 and nonzero.any():
            factor = float(got[nonzero][0] / right[nonzero][0])
            if abs(factor) > 1e-6 and close(got, factor * right):
                whole = abs(factor - round(factor)) < 1e-4 and round(factor) > 1
                why = "a sum for a mean, say?" if whole else "is the divisor right?"
                return f"every number is {factor:.4g} times what it should be: {why}"
            if close(got - right, np.full(right.shape, shift)):
                return f"every number is off by the same {shift:+.4g}: is a term missing?"
        return ""


@dataclass(frozen=True)
class Task:
    """A function to fill in, and the check that raises `WrongAnswer` unless it is right."""

    title: str
    function: str
    check: Callable[[Answer], None]
    axes: Sequence[str]
    hints: dict[str, str]

    def grade(self, function: Callable[..., Any]) -> None:
        """Check a student's function."""
        self.check(Answer(function, self.axes, COMMON_HINTS | self.hints))


def task(
    title: str, /, axes: Sequence[str] = (), **hints: str
) -> Callable[[Callable[[Answer], None]], Task]:
    """Make a task of _check_NAME, the check of the student's function NAME.   hints: by name"""

    def made(check: Callable[[Answer], None]) -> Task:
        return Task(title, check.__name__.removeprefix("_check_"), check, axes, hints)

    return made


def is_list(value: Any) -> bool:
    """A list, or what may stand for one."""
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)


def shape_of(value: Any) -> tuple[int, ...] | None:
    """The shape of numbers; None for what is none."""
    try:
        return as_numbers(value).shape
    except (TypeError, ValueError):
        return None


def close(got: Any, right: np.ndarray) -> bool:
    """Equal up to the rounding of float32, relative to the largest number that is expected."""
    if shape_of(got) != right.shape or not np.isfinite(got := as_numbers(got)).all():
        return False
    return bool((np.abs(got - right) <= _allowed(right)).all())


def _allowed(right: np.ndarray) -> float:
    return RTOL * max(np.abs(right).max(initial=0.0), 1e-3)


def softmax(x: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def slope(f: Callable[..., float], x: Any, *others: Any) -> np.ndarray:
    """d f(x, *others) / dx by central differences of fourth order, accurate to about 1e-11."""
    x, step = np.array(x, dtype=np.float64), 1e-3
    out = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        value = x[index]
        for times, weight in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
            x[index] = value + times * step
            out[index] += weight * f(x, *others) / (12 * step)
        x[index] = value
    return out


def text(value: Any) -> str:
    """A number, or numbers, short enough to read."""
    if isinstance(value, list | tuple | np.ndarray):
        opening, closing = "()" if isinstance(value, tuple) else "[]"
        return f"{opening}{', '.join(map(text, value))}{closing}"
    if isinstance(value, str | bytes):
        return repr(value)
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    return f"{float(value) + 0.0:.5g}"  # + 0.0: no -0


def advice(error: BaseException) -> str:
    """What an error hints at."""
    if isinstance(error, Told):
        return error.hint
    if isinstance(error, ZeroDivisionError):
        return "something that you divide by can be 0: is there an empty completion, say?"
    if isinstance(error, IndexError):
        return "an index runs past the end: is something empty, or shorter than you expect?"
    if isinstance(error, PermissionError):
        return "an answer needs NumPy alone: no processes, no network, no files elsewhere."
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return "an answer may print a few megabytes in all: print less."
    if isinstance(error, TypeError) and "positional argument" in str(error):
        return "keep the arguments of the stub, in their order."
    return ""


def _joined(
    given: str, start: str, got: Any, right: list[np.ndarray]
) -> tuple[np.ndarray, list[str]]:
    """All numbers of a list with one array per completion, and what to call each."""
    if not is_list(got):
        problem = f"expected a list with an array for each completion, got {type(got).__name__}."
        raise wrong(given, start + problem)
    if len(got) != len(right):
        problem = f"expected a list of {len(right)} arrays, got {len(got)}."
        hint = "one array for each completion; equal completions count each."
        raise wrong(given, start + problem, hint)
    rows, labels = [], []
    for i, (row, wanted) in enumerate(zip(got, right, strict=True)):
        array = _numbers(given, f"in the array of completion {i}: ", row)
        if array.shape != wanted.shape:
            problem = f"completion {i} needs one number per token: expected shape {_shape(wanted)}"
            problem += f", got shape {_shape(array)}."
            raise wrong(given, start + problem, _shape_hint(array, wanted, ["position"]))
        rows.append(array)
        labels += [f"completion {i}, position {t}" for t in range(len(wanted))]
    return np.concatenate(rows), labels


def _numbers(given: str, start: str, value: Any) -> np.ndarray:
    try:
        return as_numbers(value)
    except Exception:  # whatever a type of the student's raises
        got = f"{type(value).__name__}: {str(value)[:60]}"
        raise wrong(given, f"{start}expected numbers, got {got}.") from None


def _shape(array: np.ndarray) -> str:
    return f"{array.shape}" if array.shape else "() (a single number)"


def _shape_hint(got: np.ndarray, right: np.ndarray, axes: Sequence[str]) -> str:
    if got.shape == right.shape[::-1]:
        return "yours looks transposed."
    if got.size == right.size:
        return "the shape differs: look at keepdims, reshape, and the order of the axes."
    if got.ndim == right.ndim == 1 and abs(len(got) - len(right)) == 1 and len(axes) == 1:
        which = "missing" if len(got) < len(right) else "too many"
        eos = " (an EOS, say)" * ("completion token" in axes)
        return f"one {which}: look at the first number and at the last{eos}."
    if got.ndim > right.ndim:
        return "an axis too many: is a sum or mean missing?"
    if got.ndim < right.ndim:
        return "an axis too few: is there a sum or mean over too much?"
    return ""


def _place(index: Sequence[int], axes: Sequence[str]) -> str:
    if len(axes) == len(index):
        return ", ".join(f"{axis} {i}" for axis, i in zip(axes, index, strict=True))
    return f"[{', '.join(map(str, index))}]" if index else ""
