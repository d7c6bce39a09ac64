"""Python files that a user brings, such as a task or answers to exercises: always run from their source.

Python's own import would read and write bytecode beside the file, and bytecode is stale where a file is saved again within the
same second.  The file may import its neighbours, as a script may.  What fails inside is reported in the user's place.
"""

from __future__ import annotations

import inspect
import os
import reprlib
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from minigrpo.backend import ran_out_of_memory

_last_on_path: list[str] = []  # the folder of the file that was run last
_END = object()  # what a user's iterator cannot give
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 90
shown = _SHORT.repr  # a value as short text without line breaks or control characters


def run_file(path: Path, name: str) -> ModuleType:
    """Run a Python file as the module `name`.   -> the module.   Raises whatever the file raises, SyntaxError if it is no Python.

    Its folder comes first on the search path while it runs, and last afterwards, for imports inside its functions, until another
    file is run.  Neighbours of an earlier run are imported anew.
    """
    path = Path(path).resolve()
    folder = str(path.parent)
    for neighbour in [n for n, m in list(sys.modules.items()) if getattr(m, "__minigrpo_neighbour__", False)]:
        del sys.modules[neighbour]
    module = ModuleType(name)
    module.__file__ = str(path)
    known, bytecode = set(sys.modules), sys.dont_write_bytecode
    code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    sys.modules[name] = module  # dataclasses look their module up by name
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True
    try:
        exec(code, module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.dont_write_bytecode = bytecode
        sys.path.remove(folder)
        while _last_on_path:
            left = _last_on_path.pop()
            if left in sys.path:
                sys.path.remove(left)
        if folder not in sys.path:
            sys.path.append(folder)
            _last_on_path.append(folder)
        for new in set(sys.modules) - known - {name}:
            top = new.partition(".")[0]
            if top not in known and _stands_in(sys.modules.get(top), path.parent):
                sys.modules[new].__minigrpo_neighbour__ = True
    return module


def _stands_in(module: ModuleType | None, folder: Path) -> bool:
    file = Path(getattr(module, "__file__", None) or "/")
    return folder in (file.parent, file.parent.parent if file.name == "__init__.py" else None)


# -- what fails, in the user's place -----------------------------------------------------------------------------------


def explain(error: BaseException, file: str | Path, subject: Any = None) -> str:
    """ "KeyError: 'x' (line 3 of mine.py, in f: return d['x'])", on one line, whatever was raised.

    The place is the last one in the user's file or a neighbour of it, else where `subject`, a
    function or class of it, is defined.
    """
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_own(f.filename, file)]
    text, name = "", Path(file).name
    try:
        text = str(error.msg if isinstance(error, SyntaxError) else error)
        place = f"line {inspect.getsourcelines(subject)[1]} of {name}"
    except Exception:  # a user's __str__ may raise, too, and not every subject has source
        place = name
    if isinstance(error, SyntaxError) and error.filename:
        place = f"line {error.lineno} of {Path(error.filename).name}: {error.text or ''}"
    elif frames:
        last = frames[-1]
        place = f"line {last.lineno} of {Path(last.filename).name}, in {last.name}: {last.line}"
    return f"{type(error).__name__}{text and ': '}{_one_line(text, 300)} ({_one_line(place, 200)})"


def _is_own(filename: str, file: str | Path) -> bool:
    """Whether code is the user's: in the file, or below its folder, but no installed package."""
    path, folder = Path(filename), Path(file).parent
    others = (Path(__file__).parent, Path(os.__file__).parent)
    below = path.is_relative_to(folder) and not any(path.is_relative_to(other) for other in others)
    return not str(file) or filename == str(file) or (below and "site-packages" not in path.parts)


def _one_line(text: str, limit: int) -> str:
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= limit else f"{line[: limit // 2]} … {line[-limit // 2 :]}"


@contextmanager
def named(what: str, file: str | Path, subject: Any = None) -> Iterator[None]:
    """Whatever is raised inside becomes a ValueError: what failed, why, and where in the user's file.

    Ctrl-C passes, and so does want of memory.
    """
    try:
        yield
    except BaseException as error:
        out_of_memory = isinstance(error, MemoryError | RuntimeError) and ran_out_of_memory(error)
        if isinstance(error, KeyboardInterrupt) or out_of_memory:
            raise
        failure = ValueError(f"{what}: {explain(error, file, subject)}")
        for note in getattr(error, "__notes__", ()):
            failure.add_note(note)
        raise failure from error


def guarded(function: Callable[..., Any], what: str, file: Path) -> Callable[..., Any]:
    """The function under `named`, and the iterator under it that the function may return."""

    def call(*arguments: Any, **options: Any) -> Any:
        with named(what, file, function):
            found = function(*arguments, **options)
        return items(found) if isinstance(found, Iterator) else found

    def items(found: Iterator[Any]) -> Iterator[Any]:
        while True:
            with named(what, file):
                item = next(found, _END)
            if item is _END:
                return
            yield item

    return call


class Guarded:
    """A user's object whose attributes and methods, and those of its tokenizer, are under `named`."""

    def __init__(self, inner: Any, what: str, file: Path) -> None:
        vars(self)["_guarded"] = inner, what, file

    def __getattr__(self, name: str) -> Any:
        inner, what, file = object.__getattribute__(self, "_guarded")
        what = f"{name} of {what} failed"
        if inspect.getattr_static(inner, name, _END) is _END:
            value = getattr(inner, name)  # an AttributeError, which tells that there is none
        else:
            with named(what, file):
                value = getattr(inner, name)
        if name == "tokenizer":
            return Guarded(value, what.removesuffix(" failed"), file)
        return guarded(value, what, file) if callable(value) else value

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._guarded[0], name, value)
