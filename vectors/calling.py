"""Call a function with the numbers of a case: what it gives, as lists of floats, or one clear line.

`check.py` is the command.   Arrays become tensors or NumPy arrays and back here, a loss alone is
differentiated, and whatever is not an answer is a BadCall that says why.
"""

import inspect
import json
import math
import sysconfig
from functools import cache
from importlib import import_module
from pathlib import Path

STEP = 1e-5  # of numerical derivatives
OURS = str(Path(__file__).with_name("check.py")), __file__
LIBRARIES = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
NOT_THE_USERS = ("<", *OURS, *LIBRARIES)  # how the names of files begin
read = cache(lambda file: json.loads(file.read_bytes()))


class BadCall(ValueError):
    """The command, or what the function gives, is not what can be checked."""


def tried(what, function, *given):
    """What a function gives; its error becomes one line, with the place in the user's own code."""
    try:
        return function(*given)
    except (Exception, SystemExit) as problem:
        frames = inspect.getinnerframes(problem.__traceback__, context=0)
        own = [f for f in frames if not f.filename.startswith(NOT_THE_USERS)]
        place = f"{own[-1].filename}, line {own[-1].lineno}: " if own else ""
        kind = "" if isinstance(problem, BadCall) else f"{type(problem).__name__}: "
        said = " ".join(f"{what}: {place}{kind}{problem}".split())
        raise BadCall(said if len(said) < 600 else said[:600] + " ...") from problem


# -- what goes in ----------------------------------------------------------------------------------


def convert(x, arrays, dtype, by):
    """A list as it is, as a NumPy array, or as a tensor; by: the loss is differentiated by it."""
    if isinstance(x, dict):
        return {name: convert(value, arrays, dtype, by) for name, value in x.items()}
    if arrays not in ("numpy", "torch") or not isinstance(x, list):
        return json.loads(json.dumps(x)) if isinstance(x, list) else x  # a copy
    library, floats = import_module(arrays), any(isinstance(n, float) for n in flat(x))
    x = library.asarray(x, dtype=getattr(library, dtype if floats else "int64"))
    return x.requires_grad_() if by and arrays == "torch" else x


# -- what comes out --------------------------------------------------------------------------------


def flat(x):
    """All numbers in nested lists and dicts, in order."""
    x = list(x.values()) if isinstance(x, dict) else x
    return [n for part in x for n in flat(part)] if isinstance(x, list) else [x]


def plain(x, name):
    """Lists, arrays and tensors as nested lists of floats."""
    x = x.tolist() if hasattr(x, "tolist") else x
    if isinstance(x, list | tuple):
        return [plain(part, name) for part in x]
    if inspect.iscoroutine(x):
        x.close()  # else Python warns that nobody waited for it
    if not hasattr(x, "__float__"):  # strings have none, either
        raise BadCall(f"{name} should be numbers, and has {x!r:.60}")
    return float(x)


def dtypes(x):
    """The names of all dtypes in nested lists and dicts of arrays."""
    parts = x.values() if isinstance(x, dict) else x if isinstance(x, list | tuple) else []
    return {str(getattr(x, "dtype", ""))}.union(*map(dtypes, parts))


def number(x):
    """A loss as a number."""
    if len(found := flat(plain(x, "the loss"))) != 1:
        raise BadCall(f"the loss should be one number, and has {len(found)}")
    return found[0]


def inside(rows, mask):
    """Rows without their padding.   mask (B,T); a row may have its tokens alone"""
    if not isinstance(rows, list) or len(rows) != len(mask):
        return rows
    return [
        [x for x, m in zip(row, ms, strict=False) if m]
        if isinstance(row, list) and len(row) != sum(ms)
        else row
        for row, ms in zip(rows, mask, strict=True)
    ]


def named(gradient, expected):
    """A gradient as lists, or as a dict of them, if that is what is expected."""
    if not isinstance(expected, dict):
        return plain(gradient, "the gradient")
    if not isinstance(gradient, dict):
        raise BadCall(f"the gradient should be a dict, and is a {type(gradient).__name__}")
    no = [name for name in expected if name not in gradient]
    if no:
        raise BadCall(f"the gradient lacks {no[0]}, in all {len(no)} of {len(expected)} names")
    return {name: plain(gradient[name], f"the gradient of {name}") for name in expected}


def by_differences(function, given, at):
    """d loss / d at, rows of numbers."""
    slopes = []
    for row in at:
        slopes.append([])
        for t, x in enumerate(list(row)):
            row[t] = x + STEP
            above = number(function(**given))
            row[t] = x - STEP
            slopes[-1].append((above - number(function(**given))) / (2 * STEP))
            row[t] = x
    return slopes


def by_autograd(loss, at, moves):
    """d loss / d at, a tensor or a dict of them; moves: whether the loss depends on it."""
    if moves and not getattr(loss, "requires_grad", False):
        raise BadCall("the loss is a number or detached: return a tensor that autograd can follow")
    leaves = list(at.values()) if isinstance(at, dict) else [at]
    total = (0 * sum(x.sum() for x in leaves) + loss).sum()
    found = import_module("torch").autograd.grad(total, leaves)
    return dict(zip(at, found, strict=True)) if isinstance(at, dict) else found[0]


def by_of(case):
    """What the loss is differentiated by."""
    return case.get("gradient_by", "logp")


def result_of(function, given, case, found):
    """What the function makes of a case, under the names of what is expected; and how: the dtypes,
    "differences" if the derivative is numerical.
    """
    out, expected, at = function(**given), case["expected"], given.get(by_of(case))
    parts = list(out) if isinstance(out, tuple | list) else [out]
    how = dtypes(out)
    if "value" in expected:
        value, mask = plain(out, "the result"), found.get(case.get("mask"))
        return {"value": inside(value, mask) if mask else value}, how
    if len(parts) not in (1, 2):
        raise BadCall(f"the result should be the loss or (loss, gradient), not {len(parts)} parts")
    loss = number(parts[0])
    if len(parts) == 2:
        gradient = parts[1]
    elif hasattr(next(iter(at.values())) if isinstance(at, dict) else at, "backward"):
        gradient = by_autograd(parts[0], at, any(flat(expected["gradient"])))
    elif isinstance(at, dict):
        raise BadCall("a loss alone: return (loss, {name: gradient}), or use --arrays torch")
    elif abs(number(function(**given)) - loss) > 1e-9 * abs(loss):
        raise BadCall("called again it gives another loss: it draws, or changes what it was given")
    else:
        gradient = by_differences(function, given, at)
        how.add("differences")
    return {"loss": loss, "gradient": named(gradient, expected["gradient"])}, how


def not_numbers(expected):
    """NaN for everything that is expected."""
    return {n: not_numbers(x) if isinstance(x, dict) else math.nan for n, x in expected.items()}
