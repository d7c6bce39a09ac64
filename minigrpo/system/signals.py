"""What ends a command from outside: Ctrl-C, SIGTERM and SIGHUP.   Loads nothing large: it stands before everything else.

A signal that was ignored at the start, such as SIGHUP under nohup, stays ignored.  The exit code is 128 + the signal's number, as
shells have it; a KeyboardInterrupt that this module raises holds the number as its argument.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

ENDING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]  # Windows has no SIGHUP
BURST = 1.0  # seconds; a terminal that closes, or a hand that shakes, sends several signals at once

Handler = Callable[[int, FrameType | None], None]
_ours: list[Handler] = []  # handlers that are in place


@contextmanager
def handled(handler: Handler) -> Iterator[dict[int, Handler]]:
    """Give all signals that end a program to `handler` for a while, if this is the main thread.   -> the handlers until then"""
    was = {}
    if threading.current_thread() is threading.main_thread():
        was = {number: signal.getsignal(number) for number in ENDING}
        was = {
            number: old for number, old in was.items() if old not in (signal.SIG_IGN, None)
        }  # None: it is not Python's
    _ours.append(handler)
    try:
        for number in was:
            signal.signal(number, handler)
        yield was
    finally:
        for number, old in was.items():
            signal.signal(number, old)
        _ours.remove(handler)


def _in_a_child() -> None:
    """A forked process, of a scorer's pool say, ends when it is told to, and leaves Ctrl-C to its parent."""
    for number in ENDING:
        if signal.getsignal(number) in (end_at_once, *_ours):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_a_child)


def end_at_once(number: int, _: FrameType | None = None) -> None:
    """A handler that ends the process: one line, and nothing is tidied up."""
    with suppress(OSError):
        os.write(2, f"minigrpo: {reason(number)}\n".encode())
    os._exit(128 + number)


@contextmanager
def interrupting() -> Iterator[None]:
    """Signals raise KeyboardInterrupt inside.   What follows is tidying up, which a burst of signals does not disturb; a signal
    later than that ends the process at once."""
    first: list[float] = []

    def handler(number: int, frame: FrameType | None) -> None:
        if not first:
            first.append(time.monotonic())
            raise KeyboardInterrupt(number)
        if time.monotonic() - first[0] > BURST:
            end_at_once(number)

    def swallowed(lost: sys.UnraisableHookArgs) -> None:
        """Python drops what is raised in a __del__ or by the callback of a weak reference: then the signal comes once more."""
        if isinstance(lost.exc_value, KeyboardInterrupt):
            first.clear()
            threading.Timer(0.01, _send_again, [_number(lost.exc_value)]).start()
        else:
            hook(lost)

    hook, sys.unraisablehook = sys.unraisablehook, swallowed
    try:
        with handled(handler):
            yield
    finally:
        sys.unraisablehook = hook


@contextmanager
def stopping_between_steps() -> Iterator[list[int]]:
    """A list that holds a signal's number after the first one: the loop inside then finishes its step, saves and leaves, and
    KeyboardInterrupt is raised here, in one place, however late the signal came.   A second one interrupts at once, unless it is
    SIGHUP, which a terminal that closes sends twice."""
    stopped: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        if not stopped:
            stopped.append(number)
            tell(f"{reason(number)}: this stops after the step; a second signal stops it at once")
        elif number != getattr(signal, "SIGHUP", None):
            if not callable(was[number]):
                raise KeyboardInterrupt(number)
            was[number](number, frame)

    with handled(handler) as was:
        yield stopped
    if stopped:
        raise KeyboardInterrupt(stopped[0])


@contextmanager
def parent_alone() -> Iterator[None]:
    """Processes that are started inside do not see Ctrl-C and SIGHUP, which a terminal sends to all: their parent ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    was = signal.pthread_sigmask(signal.SIG_BLOCK, set(ENDING) - {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, was)


def tell(line: str) -> None:
    """A line on stderr, below the ^C or the bar of progress that a terminal shows.   Nothing fails where nobody can read it."""
    with suppress(OSError, RuntimeError):  # the terminal has gone; or it was just being written to
        print(("\n" if sys.stderr.isatty() else "") + line, file=sys.stderr, flush=True)


def exit_code(error: KeyboardInterrupt) -> int:
    """Of a command that a signal ended."""
    return 128 + _number(error)


def reason(by: int | KeyboardInterrupt) -> str:
    """ "interrupted" by Ctrl-C, "interrupted by SIGTERM"."""
    number = by if isinstance(by, int) else _number(by)
    return (
        "interrupted"
        if number == signal.SIGINT
        else f"interrupted by {signal.Signals(number).name}"
    )


def _send_again(number: int) -> None:
    if hasattr(
        signal, "pthread_kill"
    ):  # it wakes the main thread, should that be waiting for input
        signal.pthread_kill(threading.main_thread().ident, number)
    else:
        _thread.interrupt_main(number)


def _number(error: KeyboardInterrupt) -> int:
    return next((n for n in error.args[:1] if n in ENDING), signal.SIGINT)
