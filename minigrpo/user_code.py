"""Python files that a user brings, such as a task or answers to exercises: always run from their source.

Python's own import would read and write bytecode beside the file, and bytecode is stale where a file is saved again within the
same second.  The file may import its neighbours, as a script may.  What fails inside is reported in the user's place.
"""

from __future__ import annotations

import inspect
import linecache
import os
import re
import reprlib
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from minigrpo.backend import ran_out_of_memory

_last_on_path: list[str] = []  # the folder of the file that was run last
_last_run = [""]  # the file itself, then its neighbours
_PACKAGE = os.path.dirname(__file__) + os.sep
# How this package asks for what may be foreign code, at the start of an expression: a task by any of these names.
_PART = rb"(self\.)?(task\.|tokenizer\.(encode|decode|eos|vocab_size))|(get|has)attr\(task,|stop\(|list\(islice\(found,"
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 90
shown = _SHORT.repr  # a value as short text without line breaks or control characters


class _FromSource(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        """Without a look at bytecode, which the base class would take where it is as old as the file."""
        return self.source_to_code(self.get_data(self.path), self.path)


def run_file(path: Path, name: str) -> ModuleType:
    """Run a Python file as the module `name`.   -> the module.   Raises whatever the file raises, SyntaxError if it is no Python.

    Its folder comes first on the search path while it runs, and last afterwards, for imports inside its functions, until another
    file is run.  Neighbours of an earlier run are imported anew.
    """
    path = Path(path).resolve()
    folder = str(path.parent)
    for neighbour in [n for n, m in list(sys.modules.items()) if getattr(m, "__minigrpo_neighbour__", False)]:
        del sys.modules[neighbour]
    spec = spec_from_file_location(name, path, loader=_FromSource(name, str(path)))
    module = module_from_spec(spec)
    _last_run[:] = [str(path)]
    known, bytecode = set(sys.modules), sys.dont_write_bytecode
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
                _last_run.append(getattr(sys.modules[new], "__file__", None) or "")
    return module


def _stands_in(module: ModuleType | None, folder: Path) -> bool:
    places = list(getattr(module, "__path__", ())) or [getattr(module, "__file__", None) or "/"]
    return folder in [Path(place).parent for place in places]


# -- what fails, in the user's place -----------------------------------------------------------------------------------


def explain(error: BaseException, file: str, subject: Any = None) -> str:
    """ "KeyError: 'x' (line 3 of mine.py, in f: return d['x'])", on one line, whatever was raised.

    The place is the last one in the user's file or beside it, else of a library in which the task stands, else of `subject`.
    """
    text, place, frames = "", "", _own_frames(error, file)
    with suppress(Exception):  # a user's __str__ may raise, too, and not every subject has source
        text = _one_line(str(error), 300)
        where = inspect.getsourcefile(inspect.unwrap(subject)) or file
        place = f"line {inspect.getsourcelines(subject)[1]} of {Path(where).name}"
    if frames:
        last = frames[-1]
        place = f"line {last.lineno} of {Path(last.filename).name}, in {last.name}: {last.line}"
    reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"{reason} ({_one_line(place, 200)})" if place else reason


def _own_frames(error: BaseException, file: str) -> list[traceback.FrameSummary]:
    """Those in the user's file, beside it, or in what it imported from beside it."""
    folder, frames = os.path.dirname(file), _frames(error)
    files = (file, *_last_run)
    return [f for f in frames if f.filename in files or os.path.dirname(f.filename) == folder] or _of_task(frames)


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The outermost first; of a StopIteration that left a generator, its own come last."""
    inner = error.__cause__ if error.args == ("generator raised StopIteration",) else None
    return traceback.extract_tb(error.__traceback__) + traceback.extract_tb(getattr(inner, "__traceback__", None))


def _of_task(frames: list[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    """Those of foreign code after the first place at which this package asks it for a part of a task; of none, that place."""
    ours = [frame.filename.startswith(_PACKAGE) for frame in frames]
    for i, frame in enumerate(frames):
        expression = linecache.getline(frame.filename, frame.lineno).encode()[frame.colno or 0 :]
        if ours[i] and not any(ours[i + 1 : i + 2]) and re.match(_PART, expression):
            return [f for f, own in zip(frames[i:], ours[i:], strict=True) if not own] or [frame]
    return []


def _one_line(text: str, limit: int) -> str:
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= limit else f"{line[: limit // 2]} … {line[-limit // 2 :]}"


@contextmanager
def named(what: str = "", subject: Any = None) -> Iterator[None]:
    """Whatever is raised inside, but for Ctrl-C and want of memory, is a ValueError with its place.

    Without `what`, only SystemExit, and what a task or the file that was run last, or one that it imported from beside it, led to.
    """
    try:
        yield
    except BaseException as error:
        no_memory = isinstance(error, MemoryError | RuntimeError) and ran_out_of_memory(error)
        frames = _frames(error)
        own = what or isinstance(error, SystemExit) or any(f.filename in _last_run for f in frames) or _of_task(frames)
        if isinstance(error, KeyboardInterrupt) or no_memory or not own:
            raise
        told = f"{what or 'your code failed'}: {explain(error, _last_run[0], subject)}"
        raise ValueError(", ".join([told, *getattr(error, "__notes__", ())])) from error
