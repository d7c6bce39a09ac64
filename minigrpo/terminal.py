"""Standard streams that never end a command: characters that they lack are replaced, and a reader may leave early."""

import codecs
import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress

from minigrpo.drawing import plain


def on_any_terminal(command: Callable[[], int]) -> int:
    """Run a command.   -> its exit code; 141 where nobody reads its output any more (`| head`), as programs of a shell have it"""
    codecs.register_error("minigrpo", lambda error: (plain(error.object[error.start : error.end]), error.end))
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed before the start
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="minigrpo")
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8")  # what we read is JSON, in any locale
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()
    except OSError as error:  # of a stream: commands report all others themselves
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries once more at its end
        if is_closed_pipe(error):
            return 141
        print(f"minigrpo: cannot write the output: {error.strerror or error}", file=sys.stderr)
    return 2


def is_closed_pipe(error: BaseException) -> bool:
    """Whether this is how writing to a pipe without a reader fails; Windows calls it an invalid argument."""
    on_windows = os.name == "nt" and isinstance(error, OSError) and error.errno == errno.EINVAL and not error.filename
    return isinstance(error, BrokenPipeError) or on_windows
