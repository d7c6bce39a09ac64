"""What ends a command from outside: Ctrl-C, SIGTERM and SIGHUP.

This module loads nothing large, as it is loaded before everything else.  A signal that was ignored
at the start, such as SIGHUP under nohup, stays ignored.  The exit code is 128 plus the signal's
number, as in shells; a KeyboardInterrupt raised here holds the number as its argument.
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

NAMES = "SIGINT", "SIGTERM", "SIGHUP"  # Windows has no SIGHUP
ENDING = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
BURST = 1.0  # seconds; a terminal that closes, or a hand that shakes, sends several signals at once

Handler = Callable[[int, FrameType | None], None]
_ours: list[Handler] = []  # handlers that are in place


@contextmanager
def handled(handler: Handler) -> Iterator[dict[int, Handler]]:
    """Give all signals that end a program to `handler` for a while.   -> the handlers until then

    Only the main thread can do so; in another nothing changes.
    """
    was = {}
    if threading.current_thread() is threading.main_thread():
        for number in ENDING:
            old = signal.getsignal(number)
            if old not in (signal.SIG_IGN, None):  # None: the handler is not Python's
                was[number] = old
    _ours.append(handler)
    try:
        for number in was:
            signal.signal(number, handler)
        yield was
    finally:
        for number, old in was.items():
            signal.signal(number, old)
        _ours.remove(handler)


_mask = threading.local()  # of signals, before a fork


def _before_a_fork() -> None:
    """A signal to the child waits until the child has left the handlers of its parent."""
    _mask.was = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)


def _after_a_fork() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask.was)


def _in_a_child() -> None:
    """A forked process, as of a scorer's pool, leaves Ctrl-C and SIGHUP to its parent."""
    for number in ENDING:
        if signal.getsignal(number) in (end_at_once, *_ours):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    _after_a_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_a_fork, after_in_parent=_after_a_fork, after_in_child=_in_a_child
    )


def end_at_once(number: int, _: FrameType | None = None) -> None:
    """A handler that ends the process: one line, and nothing is tidied up."""
    with suppress(OSError):
        os.write(2, f"minigrpo: {reason(number)}\n".encode())
    os._exit(128 + number)


@contextmanager
def interrupting() -> Iterator[None]:
    """Signals raise KeyboardInterrupt inside.

    A burst of signals does not disturb the tidying up that follows; a signal later than that ends
    the process at once.
    """
    first: list[float] = []

    def handler(number: int, frame: FrameType | None) -> None:
        if not first:
            first.append(time.monotonic())
            raise KeyboardInterrupt(number)
        if time.monotonic() - first[0] > BURST:
            end_at_once(number)

    def swallowed(lost: sys.UnraisableHookArgs) -> None:
        """Python drops what a __del__ or a weak reference's callback raises: send it once more."""
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
    """A list that holds a signal's number after the first one.

    The loop inside then finishes its step, saves and leaves, and KeyboardInterrupt is raised here,
    in one place, however late the signal came.  A second signal interrupts at once, unless it is
    SIGHUP, which a terminal that closes sends twice.
    """
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
    """Processes started inside do not see Ctrl-C and SIGHUP, which a terminal sends to all.

    Their parent ends them.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    was = signal.pthread_sigmask(signal.SIG_BLOCK, set(ENDING) - {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, was)


def tell(line: str) -> None:
    """Print a line on stderr, below the ^C or the bar of progress that a terminal shows."""
    with suppress(OSError, RuntimeError):  # the terminal has gone, or was just being written to
        begin = "\n" if sys.stderr.isatty() else ""
        print(f"{begin}{line}\n", end="", file=sys.stderr, flush=True)  # one write, not two


def exit_code(error: KeyboardInterrupt) -> int:
    """The exit code of a command that a signal ended."""
    return 128 + _number(error)


def reason(by: int | KeyboardInterrupt) -> str:
    """ "interrupted" by Ctrl-C, "interrupted by SIGTERM"."""
    number = by if isinstance(by, int) else _number(by)
    is_ctrl_c = number == signal.SIGINT
    return "interrupted" if is_ctrl_c else f"interrupted by {signal.Signals(number).name}"


def _send_again(number: int) -> None:
    if hasattr(signal, "pthread_kill"):  # it wakes a main thread that waits for input, too
        signal.pthread_kill(threading.main_thread().ident, number)
    else:
        _thread.interrupt_main(number)


def _number(error: KeyboardInterrupt) -> int:
    return next((n for n in error.args[:1] if n in ENDING), signal.SIGINT)
