"""The terminal: all that a command writes goes through here, and no text can steer the terminal.

Characters that the terminal's encoding lacks are replaced, and a reader may leave early.
"""

from __future__ import annotations

import codecs
import errno
import os
import shlex
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from math import inf
from time import monotonic
from typing import Any

from minigrpo.system.signals import tell
from minigrpo.system.text import escape, plain, visible

# Unicode's categories of control characters, of what has no width or another direction, and of
# separators of lines.
STEERING = "Cc", "Cf", "Zl", "Zp"
WAY_OUT = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "the limit on the size of files is too low",
    errno.EACCES: "look at its permissions, or give another path",
    errno.EPERM: "look at its permissions, or give another path",
    errno.EROFS: "give a path that can be written to",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ENOTDIR: "a file stands where a folder is needed",
    errno.EEXIST: "a file stands where a folder is needed",
    errno.EISDIR: "this is a folder: give the path of a file, or remove it",
    errno.ENOENT: "check the path",
}
FIRST, EVERY = 10.0, 30.0  # seconds to the first line of progress, and at least between lines


class Cleaned:
    """A stream of text that writes what could steer a terminal as an escape, such as \\x1b."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            self.stream.write(clean(text))
        except OSError as error:
            error.filename = None if is_closed_pipe(error) else "the output"
            raise
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def clean(text: str) -> str:
    """The text with escapes for what moves the cursor or hides text, but for line ends and tabs."""
    steering = {c for c in set(text) if unicodedata.category(c) in STEERING} - {"\n", "\t"}
    return text.translate({ord(c): escape(c) for c in steering})


def bar(items: Iterable[Any], title: str, unit: str, wanted: bool = True, **more: Any) -> Any:
    """Progress on stderr while the items are gone through: a bar, or lines off a terminal."""
    if not (wanted and sys.stderr.isatty()):
        return _Lines(items, title, unit, FIRST if wanted else inf, **more)
    from tqdm import tqdm

    return tqdm(items, visible(title), unit=unit, file=_stderr(), dynamic_ncols=True, **more)


class _Lines:
    """In place of a bar: a line now and then, and none at all for what takes seconds."""

    def __init__(
        self, items: Any, title: str, unit: str, wait: float, total: int = 0, initial: int = 0
    ) -> None:
        self.items, self.what, self.wait, self.shown = items, f"{visible(title)}: {unit}", wait, ""
        self.total, self.initial = total or len(items), initial

    def set_postfix(self, shown: Mapping[str, str], **_: Any) -> None:
        self.shown = "".join(f", {name} {value}" for name, value in shown.items())

    def __iter__(self) -> Iterator[Any]:
        start, due = monotonic(), monotonic() + self.wait
        for done, item in enumerate(self.items, self.initial + 1):
            yield item
            if (now := monotonic()) >= due and done < self.total:
                left = (now - start) / (done - self.initial) * (self.total - done)
                told = f"{self.what} {done} of {self.total}{self.shown}"
                tell(f"{told}, {left / 60:.1f} min left")
                due = now + EVERY


def say(text: str, file: Any = None) -> None:
    """Print a line above the bars of progress."""
    from tqdm import tqdm

    with tqdm.external_write_mode(file=_stderr()):
        print(text, file=file or sys.stdout, flush=True)


def _stderr() -> Any:
    """The stream itself: a bar of progress may move the cursor."""
    return sys.stderr.stream if isinstance(sys.stderr, Cleaned) else sys.stderr


def quoted(path: str) -> str:
    """A path as a shell reads it back, in one line of printable characters."""
    if path.isprintable():
        return shlex.quote(path)
    as_they_are, data = set(range(33, 127)) - set(b"'\\"), path.encode("utf-8", "surrogateescape")
    return "$'" + "".join(chr(b) if b in as_they_are else f"\\x{b:02x}" for b in data) + "'"


def reason_of(error: BaseException) -> str:
    """An error in one line; if the system refused something, with the file and the way out."""
    told = str(error)
    if isinstance(error, OSError) and error.strerror:
        told = error.strerror + (f": {visible(str(error.filename))}" if error.filename else "")
        told += f" ({WAY_OUT[error.errno]})" if error.errno in WAY_OUT else ""
    return " ".join(told.split())


def on_any_terminal(command: Callable[[], int]) -> int:
    """Run a command.   -> its exit code; 141, as in a shell, if nobody reads its output any more"""

    def as_ascii(error: UnicodeEncodeError) -> tuple[str, int]:
        return plain(error.object[error.start : error.end]), error.end

    codecs.register_error("minigrpo", as_ascii)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it was closed before the start
            null = os.open(os.devnull, os.O_RDWR)  # open to the end, which is no leak to warn of
            setattr(sys, name, os.fdopen(null, mode, encoding="utf-8", closefd=False))
        elif hasattr(getattr(sys, name), "reconfigure"):  # what we read is JSON, in any locale
            options = {"encoding": "utf-8"} if mode == "r" else {"errors": "minigrpo"}
            getattr(sys, name).reconfigure(**options)
    code, streams = 2, (sys.stdout, sys.stderr)
    sys.stdout, sys.stderr = map(Cleaned, streams)
    try:
        try:
            code = command()
        finally:
            for stream in streams:
                stream.flush()
        return code
    except OSError as error:  # of a stream: commands report all others themselves
        for stream in streams:  # or Python would try once more at its end
            with suppress(OSError):
                stream.flush()
                continue
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if code > 128:
            return code  # a signal has ended it, perhaps that of a terminal that has gone
        if is_closed_pipe(error):
            return 141
        with suppress(OSError):
            print(f"minigrpo: cannot write the output: {error.strerror or error}", file=sys.stderr)
        return 2
    finally:
        sys.stdout, sys.stderr = streams


def is_closed_pipe(error: BaseException) -> bool:
    """Whether nobody reads a pipe any more; Windows calls that an invalid argument."""
    is_invalid = isinstance(error, OSError) and error.errno == errno.EINVAL and not error.filename
    return isinstance(error, BrokenPipeError) or (os.name == "nt" and is_invalid)
