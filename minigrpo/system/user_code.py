"""Python files that a user brings, such as a task or answers to exercises: always run from source.

Python's own import would read and write bytecode beside the file, and bytecode is stale if a file
is saved again within the same second.  The file may import its neighbours, as a script may.  What
fails inside is reported with the place in the user's code.
"""

from __future__ import annotations

import inspect
import os
import reprlib
import sys
import sysconfig
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from itertools import islice
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import numpy as np

from minigrpo.engine.backend import ran_out_of_memory

_last_on_path: list[str] = []  # the folder of the file that was run last, then those kept
_last_run = [""]  # the file itself, then its neighbours
_not_beside: set[str] = set()  # names of modules that are no neighbours of a file that was run
_PACKAGE = os.path.dirname(os.path.dirname(__file__))
_LIBRARIES = [path for name, path in sysconfig.get_paths().items() if name.endswith("lib")]
INSTALLED = tuple(os.path.join(path, "") for path in (_PACKAGE, *_LIBRARIES))
OURS = ValueError, OSError, FloatingPointError  # which this package raises itself, with a sentence
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 90
shown = _SHORT.repr  # a value as short text without line breaks or control characters


class _FromSource(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        """The base class would take bytecode if it is as old as the file."""
        return self.source_to_code(self.get_data(self.path), self.path)


def run_file(path: Path, name: str, keep: bool = False) -> ModuleType:
    """Run a Python file as the module `name`.   -> the module

    Its folder comes first on the search path while it runs, and last afterwards, for imports inside
    its functions, until another file is run (keep: that stays, behind the new one).  Neighbours of
    an earlier run are imported anew.
    Raises whatever the file raises, SyntaxError if it is no Python.
    """
    path = Path(path).resolve()
    folder = str(path.parent)
    places = list(map(Path, _last_on_path))
    for neighbour, module in list(sys.modules.items()):
        top = neighbour.partition(".")[0]  # it may have been imported later, in a function
        is_late = top not in _not_beside and _stands_in(sys.modules.get(top), *places)
        if is_late or getattr(module, "__minigrpo_neighbour__", False):
            del sys.modules[neighbour]
    spec = spec_from_file_location(name, path, loader=_FromSource(name, str(path)))
    module = module_from_spec(spec)
    _last_run[:] = [str(path)]
    known, bytecode = set(sys.modules), sys.dont_write_bytecode
    _not_beside.update(known, [name])
    sys.modules[name] = module  # dataclasses look their module up by name
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.dont_write_bytecode = bytecode
        sys.path.remove(folder)
        while _last_on_path and not keep:
            left = _last_on_path.pop()
            if left in sys.path:
                sys.path.remove(left)
        if folder not in sys.path:
            behind = [sys.path.index(kept) for kept in _last_on_path if kept in sys.path]
            sys.path.insert(min(behind, default=len(sys.path)), folder)
            _last_on_path.insert(0, folder)
        for new in set(sys.modules) - known - {name}:
            top = new.partition(".")[0]
            if top not in known and _stands_in(sys.modules.get(top), path.parent):
                sys.modules[new].__minigrpo_neighbour__ = True
                _last_run.append(getattr(sys.modules[new], "__file__", None) or "")
    return module


def _stands_in(module: ModuleType | None, *folders: Path) -> bool:
    places = list(getattr(module, "__path__", ())) or [getattr(module, "__file__", None) or "/"]
    return any(Path(place).parent in folders for place in places)


# -- what fails, with the place in the user's code -------------------------------------------------


class Told(Exception):
    """What failed in another process, where it was explained: the text, and a hint."""

    def __init__(self, told: str, hint: str = "") -> None:
        super().__init__(told)
        self.hint = hint


def explain(error: BaseException, file: str, subject: Any = None) -> str:
    """ "KeyError: 'x' (line 3 of mine.py, in f: return d['x'])", on one line, whatever was raised.

    The place is the last one in the user's file or beside it, else that which Python cannot read,
    else in a file of theirs elsewhere, else that of `subject`, else the last one outside of this
    package, else in it, but neither in what calls an answer nor in Python's machinery of imports.
    """
    if isinstance(error, Told):
        return str(error)
    text, place, frames = "", "", _frames(error)
    folder = os.path.dirname(file)
    beside = [
        f
        for f in frames
        if f.filename in (file, *_last_run) or os.path.dirname(f.filename) == folder
    ]
    with suppress(Exception):  # a user's __str__ may raise, too, and not every subject has source
        text = _one_line(str(error), 300)
        where = inspect.getsourcefile(inspect.unwrap(subject)) or file
        place = f"line {inspect.getsourcelines(subject)[1]} of {Path(where).name}"
    if isinstance(error, SyntaxError) and error.filename in (file, *_last_run) and not beside:
        text = _one_line(error.msg, 300)
        line = f": {error.text.strip()}" if error.text else ""
        place = f"line {error.lineno} of {Path(error.filename).name}{line}"
    places = beside or [f for f in frames if _is_foreign(f)]
    if not places and not place:
        inner = os.path.join(_PACKAGE, "course", ""), "<frozen"
        frames = [f for f in frames if not f.filename.startswith(inner)]
        places = [f for f in frames if not f.filename.startswith(INSTALLED[0])] or frames
    if places:
        last = places[-1]
        place = f"line {last.lineno} of {Path(last.filename).name}, in {last.name}: {last.line}"
    if "cannot contain null bytes" in text:
        text = "the file has null bytes, as one saved as UTF-16 has: save it as UTF-8"
        place = place if beside else ""
    reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"{reason} ({_one_line(place, 200)})" if place else reason


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The frames, outermost first; a StopIteration that left a generator has its own last."""
    inner = error.__cause__ if error.args == ("generator raised StopIteration",) else None
    last = traceback.extract_tb(getattr(inner, "__traceback__", None))
    return traceback.extract_tb(error.__traceback__) + last


def _is_foreign(frame: traceback.FrameSummary) -> bool:
    """Whether a frame is in the user's file, or in one that is neither installed nor Python's."""
    return frame.filename in _last_run or not frame.filename.startswith((*INSTALLED, "<"))


def _by_user(error: BaseException) -> bool:
    """Whether the user's code raised, not this package.

    A command never exits by itself.  If a file of the user was run, any error is theirs that this
    package does not raise itself.
    """
    if isinstance(error, SystemExit) or _last_run[0] == "":
        return isinstance(error, SystemExit)
    return not isinstance(error, OURS) or any(map(_is_foreign, _frames(error)))


def _one_line(text: str, limit: int) -> str:
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= limit else f"{line[: limit // 2]} … {line[-limit // 2 :]}"


@contextmanager
def named(what: str = "", subject: Any = None) -> Iterator[None]:
    """Whatever is raised inside is a ValueError with its place, but for Ctrl-C and lack of memory.

    Without `what`, only what the user's code led to, or a library in its place.
    """
    if not what:  # a command begins
        _last_run[:] = [""]
    try:
        yield
    except BaseException as error:
        no_memory = isinstance(error, MemoryError | RuntimeError) and ran_out_of_memory(error)
        if isinstance(error, KeyboardInterrupt) or no_memory or not (what or _by_user(error)):
            raise
        told = f"{what or 'your code failed'}: {explain(error, _last_run[0], subject)}"
        raise ValueError(", ".join([told, *getattr(error, "__notes__", ())])) from error


# -- what it gives and returns ---------------------------------------------------------------------


def numbers(found: Any, n: int, what: str, owners: str = "completions") -> np.ndarray:
    """n numbers in whatever a user's code returned.   -> (n,) float64.   Raises ValueError."""
    found = list(islice(found, n + 1)) if isinstance(found, Iterator) else found
    array = None
    with suppress(Exception):  # whatever NumPy says of other people's types
        array = as_numbers(found)
    if array is None or array.shape != (n,):
        came = reprlib.repr(found) if array is None else f"an array of shape {array.shape}"
        raise ValueError(f"{n} {owners} need as many {what}, not {came}")
    return array


def as_numbers(value: Any) -> np.ndarray:
    """An array of float64, NaN for None.   Raises an error of some kind for all but real numbers.

    NumPy itself would read texts, and drop imaginary parts.
    """
    array = np.asarray(value)
    for x in [x for x in array.flat if x is not None] if array.dtype.kind == "O" else [array]:
        is_numpy = isinstance(x, np.ndarray | np.generic)
        if x.dtype.kind not in "biuf" if is_numpy else not hasattr(type(x), "__float__"):
            raise TypeError("these are no real numbers")
    return array.astype(np.float64)


def peak(function: Callable[..., Any], *arguments: Any) -> tuple[Any, int]:
    """What a user's function returned, and the most bytes that it held at once above those before.

    Raises Told if it has stopped the measurement.
    """
    was_tracing = tracemalloc.is_tracing()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        value = function(*arguments)
        if not tracemalloc.is_tracing():
            raise Told("one that ends the measurement of its memory")
        return value, tracemalloc.get_traced_memory()[1] - before
    finally:
        if not was_tracing:
            tracemalloc.stop()


def check_choice(field: str, value: object, allowed: tuple) -> None:
    """Raises ValueError, with the choices, for a value that is not among them."""
    if value not in allowed or type(value) is not type(allowed[0]):
        choices = ", ".join(map(str, allowed))
        raise ValueError(f"{field} {value!r} is unknown: choose from {choices}")


def check_number(field: str, value: object, largest: float) -> None:
    """Raises ValueError unless a value is a number, at least 0 and at most `largest`."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and 0 <= value <= largest):
        allowed = f"a finite number, at least 0 and at most {largest:g}"
        raise ValueError(f"{field} is {value!r}: it must be {allowed}")
