"""Comparing an answer with the right one, and saying in words what is wrong with it.

A check calls the student's function (`ask`), compares (`compare`, `compare_rows`), and raises `WrongAnswer` with a text for the
student: what was given, where it first goes wrong, expected against got, and a hint where the mistake can be recognised.  Hints are
numbers: "if you had forgotten the temperature, you would have got these".  Everything here is deterministic.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigrpo.system.user_code import explain

Answer = Callable[..., Any]
Hints = Mapping[str, Any]  # hint -> what one gets by the mistake that it names


class WrongAnswer(Exception):
    """What is wrong with an answer, in words for the student; the text may have several lines."""


@dataclass(frozen=True)
class Task:
    """A function to fill in, and the check that raises `WrongAnswer` unless it is right."""

    title: str
    function: str
    check: Callable[[Answer], None]


def wrong(given: str, problem: str, hint: str = "") -> WrongAnswer:
    """The text of a wrong answer: what was given, what is wrong, a hint."""
    lines = [f"Given {given}:"] if given else []
    return WrongAnswer(
        "\n".join([*lines, problem[0].upper() + problem[1:], *([f"Hint: {hint}"] if hint else [])])
    )


def ask(function: Answer, *arguments: Any, given: str) -> Any:
    """The student's answer.   Arguments are copied, so that nothing done to them can confuse the comparison.

    Raises WrongAnswer if the function raises or returns nothing; NotImplementedError passes, for that is a task still to do.
    """
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            answer = function(*copy.deepcopy(arguments))
        except (NotImplementedError, KeyboardInterrupt):
            raise
        except BaseException as error:
            own = getattr(getattr(inspect.unwrap(function), "__code__", None), "co_filename", "")
            raise wrong(
                given, f"expected an answer, got {explain(error, own)}.", _reason(error)
            ) from error
    if answer is None:
        raise wrong(
            given, "expected an answer, got None.", "does the function end with `return …`?"
        )
    return answer


def _reason(error: BaseException) -> str:
    if isinstance(error, ZeroDivisionError):
        return "something that you divide by can be 0: is there an empty completion, or nothing to compare with?"
    if isinstance(error, IndexError):
        return "an index runs past the end: is something empty, or shorter than you expect?"
    if isinstance(error, TypeError) and "positional argument" in str(error):
        return "keep the arguments of the stub, in their order."
    return ""


def parts(answer: Any, names: Sequence[str], given: str) -> Sequence[Any]:
    """The parts of an answer that is a tuple."""
    if not isinstance(answer, tuple | list) or len(answer) != len(names):
        got = f"{type(answer).__name__}{f' of {len(answer)}' if isinstance(answer, tuple | list) else ''}"
        raise wrong(
            given,
            f"expected {len(names)} things, ({', '.join(names)}), got {got}.",
            "return them as a tuple.",
        )
    return answer


def compare(
    got: Any,
    expected: Any,
    given: str,
    *,
    name: str = "",
    axes: Sequence[str] = (),
    labels: Sequence[str] = (),
    hints: Hints | None = None,
    rtol: float = 1e-8,
) -> None:
    """Raise WrongAnswer unless got is expected, as an array: first its shape, then its values (relative to the largest).

    name: which part of the answer this is.  axes: what each index counts, such as ("completion", "position").  labels: what
    to call each number instead.
    """
    right = np.asarray(expected, dtype=np.float64)
    array = _array(got, given, name)
    if array.shape != right.shape:
        raise wrong(
            given,
            _of(name, f"expected shape {_shape(right)}, got shape {_shape(array)}"),
            _shape_hint(array, right),
        )
    labels = labels or [_place(index, axes) for index in np.ndindex(right.shape)]
    _values(
        array,
        right,
        labels,
        given,
        name,
        hints or {},
        rtol,
        logical=np.asarray(expected).dtype == bool,
    )


def compare_rows(
    got: Any,
    expected: Sequence[Any],
    given: str,
    *,
    name: str = "",
    hints: Hints | None = None,
    rtol: float = 1e-8,
) -> None:
    """`compare` for a list with one array a completion, of its length.   The values of hints are such lists too."""
    if not is_list(got):
        raise wrong(
            given,
            _of(
                name, f"expected a list with an array for each completion, got {type(got).__name__}"
            ),
        )
    if len(got) != len(expected):
        raise wrong(
            given,
            _of(name, f"expected a list of {len(expected)} arrays, got {len(got)}"),
            "one array for each completion; equal completions count each.",
        )
    rows, right, labels = [], [np.asarray(row, dtype=np.float64) for row in expected], []
    for i, (row, wanted) in enumerate(zip(got, right, strict=True)):
        array = _array(row, given, f"the array of completion {i}")
        if array.shape != wanted.shape:
            of = f"completion {i} needs one number a token: expected shape {_shape(wanted)}, got shape {_shape(array)}"
            raise wrong(given, _of(name, of), _shape_hint(array, wanted))
        rows.append(array)
        labels += [f"completion {i}, position {t}" for t in range(len(wanted))]
    joined = {
        hint: np.concatenate([np.asarray(row, dtype=np.float64) for row in v])
        for hint, v in (hints or {}).items()
    }
    _values(np.concatenate(rows), np.concatenate(right), labels, given, name, joined, rtol)


def is_list(value: Any) -> bool:
    """A list, or what may stand for one."""
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)


def shape_of(value: Any) -> tuple[int, ...] | None:
    """The shape of numbers; None for what is none."""
    try:
        return np.asarray(value, dtype=np.float64).shape
    except (TypeError, ValueError):
        return None


def close(got: np.ndarray, expected: np.ndarray, rtol: float = 1e-8) -> bool:
    """Equal up to rounding, relative to the largest number that is expected."""
    if got.shape != expected.shape or not np.isfinite(got).all():
        return False
    return bool((np.abs(got - expected) <= _allowed(expected, rtol)).all())


def _allowed(expected: np.ndarray, rtol: float) -> float:
    """How far off an answer may be: relative to the largest number, which central differences give to about 1e-10 only."""
    return rtol * max(np.abs(expected).max(initial=0.0), 1e-3)


def slope(f: Callable[[np.ndarray], float], x: Any, step: float = 1e-5) -> np.ndarray:
    """df/dx by central differences, number by number, accurate to about 1e-9.   x any shape -> the same"""
    x = np.array(x, dtype=np.float64)
    out = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        value = x[index]
        x[index] = value + step
        above = f(x)
        x[index] = value - step
        out[index] = (above - f(x)) / (2 * step)
        x[index] = value
    return out


def text(value: Any, logical: bool = False) -> str:
    """A number, or numbers, short enough to read.   logical: write 0 and 1 as False and True"""
    if isinstance(value, list | tuple | np.ndarray):
        opening, closing = "()" if isinstance(value, tuple) else "[]"
        return f"{opening}{', '.join(map(text, value))}{closing}"
    if isinstance(value, str | bytes):
        return repr(value)
    if isinstance(value, bool | np.bool_) or (logical and value in (0, 1)):
        return str(bool(value))
    return f"{float(value) + 0.0:.5g}"  # + 0.0: no -0


def _values(
    array: np.ndarray,
    right: np.ndarray,
    labels: Sequence[str],
    given: str,
    name: str,
    hints: Hints,
    rtol: float,
    logical: bool = False,
) -> None:
    if close(array, right, rtol):
        return
    flat, wanted = array.ravel(), right.ravel()
    is_wrong = ~np.isfinite(flat) | ~(np.abs(flat - wanted) <= _allowed(wanted, rtol))
    first = int(np.argmax(is_wrong))
    pair = text(wanted[first], logical), text(flat[first], logical)
    if pair[0] == pair[1]:
        pair = repr(float(wanted[first])), repr(float(flat[first]))
    at = f"at {labels[first]}: " if labels[first] else ""
    more = f" ({is_wrong.sum()} of {len(flat)} numbers are wrong)" if len(flat) > 1 else ""
    raise wrong(
        given,
        _of(name, f"{at}expected {pair[0]}, got {pair[1]}{more}"),
        _recognise(array, right, hints),
    )


def _recognise(got: np.ndarray, right: np.ndarray, hints: Hints) -> str:
    """The mistake that explains the numbers, if there is one: those that the check knows first, then common ones."""
    for hint, value in hints.items():
        candidate = np.broadcast_to(np.asarray(value, dtype=np.float64), right.shape)
        if close(got, candidate, 1e-7) and not close(candidate, right):
            return hint
    if not np.isfinite(got).all():
        return "there is a nan or an infinity: a 0/0, the log of 0, or exp of a large number? Subtract the maximum before exp."
    if close(got, -right, 1e-7):
        return (
            "the sign is flipped everywhere: is it an objective (to go up) or a loss (to go down)?"
        )
    if got.ndim == 2 and got.shape[0] == got.shape[1] and close(got.T, right, 1e-7):
        return "this is the transpose of the right answer."
    varied = right.shape and right.shape[-1] > 2 and np.ptp(right) > 0
    if varied and (
        close(got[..., 1:], right[..., :-1], 1e-7) or close(got[..., :-1], right[..., 1:], 1e-7)
    ):
        return "the numbers are right but off by one position."
    nonzero = np.abs(right) > 1e-9
    if right.size > 1 and nonzero.any():
        factor = float(got[nonzero].ravel()[0] / right[nonzero].ravel()[0])
        if factor and close(got, factor * right, 1e-7):
            return f"every number is {factor:.4g} times what it should be: a sum for a mean, a mean for a sum, a lost factor?"
        shift = float((got - right).ravel()[0])
        if close(got - right, np.full(right.shape, shift), 1e-7):
            return f"every number is off by the same {shift:+.4g}: is something added or subtracted once too often?"
    return ""


def _array(value: Any, given: str, name: str) -> np.ndarray:
    try:
        return np.asarray(value, dtype=np.float64)
    except Exception:  # whatever a type of the student's raises
        raise wrong(
            given, _of(name, f"expected numbers, got {type(value).__name__}: {str(value)[:60]}")
        ) from None


def _of(name: str, problem: str) -> str:
    return f"in {name}: {problem}." if name else f"{problem}."


def _shape(array: np.ndarray) -> str:
    return f"{array.shape}" if array.shape else "() (a single number)"


def _shape_hint(got: np.ndarray, right: np.ndarray) -> str:
    if got.shape == right.shape[::-1]:
        return "yours looks transposed."
    if got.size == right.size:
        return "the right number of numbers, in another shape: look at keepdims, reshape, and the order of the axes."
    if got.ndim == right.ndim == 1 and abs(len(got) - len(right)) == 1:
        return f"one {'missing' if len(got) < len(right) else 'too many'}: what of the first, and of the last (an EOS, say)?"
    if got.ndim > right.ndim:
        return "an axis too many: is a sum or mean missing?"
    if got.ndim < right.ndim:
        return "an axis too few: is there a sum or mean over too much?"
    return ""


def _place(index: tuple[int, ...], axes: Sequence[str]) -> str:
    if not index:
        return ""
    names = axes if len(axes) == len(index) else [""] * len(index)
    if not any(names):
        return f"[{', '.join(map(str, index))}]"
    return ", ".join(f"{axis} {i}" for axis, i in zip(names, index, strict=True))
