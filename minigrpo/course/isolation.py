"""A student's function in a process of its own: asked here, run there.

An answer passes by being right, as there is nothing else that it could do.  The checks, the right
answers and the comparison are in this process; that of the student (`student.py`) is given
arguments and gives back plain data, which nothing here executes.  If it gave back verdicts, however
signed, they could be forged, as Python hides no key from code in the same process.  It reports only
what it printed, the memory of a call (ch08 task 5) and notes on what it loaded.

A task has a process, a folder with a copy of the file, and a time limit.  What the process began
is killed with it: all of it on Linux, its process group on macOS; on Windows only itself, as there
the hook alone keeps it from beginning others.  Linux forks the processes from one that has loaded
NumPy; elsewhere each is started anew, the next one ahead of its turn.
"""

from __future__ import annotations

import os
import shutil
import signal
import site
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from minigrpo.course.plain import from_plain, receive, send, to_plain
from minigrpo.system.text import visible
from minigrpo.system.user_code import Told

ROOT = Path(__file__).resolve().parents[2]
FORKS = sys.platform == "linux"
COMMAND = [sys.executable, "-u", "-P", "-X", "utf8", "-m", "minigrpo.course.student"]
KEPT = {"PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "SYSTEMROOT"}  # no keys, tokens
LARGEST_SOURCE, SHOWN = 1 << 20, 4000  # bytes of a file; characters of what was printed
LARGEST_FOLDER, SMALLEST = 64 << 20, 64 << 10  # bytes that an answer may write; of each name
Started = tuple[IO[bytes], IO[bytes], Callable[[], int]]  # to it, from it, what ends it


@dataclass(frozen=True)
class Limits:
    """What a task may take, and what it may not read besides the home folder and the course."""

    seconds: float = 10.0
    memory: int = 2 << 30  # bytes of addresses
    closed: tuple[str, ...] = ()


class Isolated:
    """A function of a student's file, called in another process."""

    def __init__(self, started: Started, seconds: float, folder: Path) -> None:
        self._to, self._from, self._end = started
        self._folder = folder
        self._seconds, self._deadline = seconds, time.monotonic() + seconds
        self._failure: Told | None = None
        self.is_function, self.imports, self.notes, self.alike = False, (), (), ()

    def peak(self, *arguments: Any) -> Any:
        """What a call returns, and the most bytes that it held at once."""
        return self(*arguments, measured=True)

    def __call__(self, *arguments: Any, measured: bool = False) -> Any:
        reply = self.exchange({"arguments": to_plain(list(arguments)), "measured": measured})
        if "to_do" in reply:
            raise NotImplementedError(str(reply["to_do"])[:500])
        if "raised" in reply:
            raise Told(str(reply["raised"])[:1000], str(reply.get("hint", ""))[:200])
        try:
            return from_plain(reply["value"])
        except Exception:
            raise Told("something that is no answer") from None

    def exchange(self, message: Any) -> dict[str, Any]:
        """Send a message and wait for the reply.   Raises Told if none comes, and ever after."""
        if self._failure:
            raise self._failure
        replies: list[dict[str, Any]] = []

        def talk() -> None:
            with suppress(Exception):  # the pipe may hold anything
                send(self._to, message)
                reply = receive(self._from)
                self.notes = tuple(visible(str(note)[:150]) for note in reply["notes"][:20])
                replies.append(reply)

        self._thread = threading.Thread(target=talk, daemon=True)  # nothing else waits for a pipe
        self._thread.start()
        is_large = False
        while self._thread.is_alive() and not is_large and time.monotonic() < self._deadline:
            self._thread.join(max(min(self._deadline - time.monotonic(), 0.25), 0.0))
            is_large = _size(self._folder) > LARGEST_FOLDER
        if replies and not is_large:
            return replies[0]
        is_late, status = self._thread.is_alive(), self._end()
        how = f"exit code {status}" if status >= 0 else signal.strsignal(-status)
        told, hint = f"none, as it ended the process ({how})", ""
        if is_large:
            told = f"none, as it wrote more than {LARGEST_FOLDER >> 20} MB or 1000 files"
        elif is_late:
            told = f"none within {self._seconds:g} seconds"
            hint = "is there a loop that never ends?"
        self._failure = Told(told, hint)
        raise self._failure

    def close(self) -> None:
        """End the process."""
        self._end()
        self._thread.join(1.0)
        for pipe in () if self._thread.is_alive() else (self._to, self._from):
            with suppress(OSError):
                pipe.close()


def is_small(source: Path) -> bool:
    """Whether a file may be one that somebody has written."""
    return source.stat().st_size <= LARGEST_SOURCE


def _size(folder: Path) -> int:
    """Bytes below a folder, some for each name; without end if it cannot be looked at."""
    total, left = 0, [str(folder)]
    try:
        while left and total <= LARGEST_FOLDER:
            with suppress(FileNotFoundError), os.scandir(left.pop()) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        size = entry.stat(follow_symlinks=False).st_size
                        total += max(size, SMALLEST)
                        left += [entry.path] * entry.is_dir(follow_symlinks=False)
    except OSError:
        return sys.maxsize
    return total


def _flatten(folder: str) -> None:
    """Move all folders below one to its top: Python cannot remove folders a thousand deep."""
    left = [folder]
    with suppress(OSError):
        while left:
            place = left.pop()
            os.chmod(place, 0o700)
            with os.scandir(place) as entries:
                for entry in [e for e in entries if e.is_dir(follow_symlinks=False)]:
                    left.append(os.path.join(folder, os.urandom(8).hex()))
                    os.rename(entry.path, left[-1])


class Desk:
    """Where tasks are done, each in a process of its own.   A context, which ends them all."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self._closed = limits, [os.path.abspath(path) for path in limits.closed]
        home = os.path.expanduser("~")
        self._closed += [home] * (os.path.dirname(home) != home)  # letters, keys
        environment = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
        libraries = {sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), *environment}
        installed = (p for p in sys.path if any(Path(p).glob("*.dist-info")))
        libraries |= {str(ROOT / "minigrpo"), *installed}
        self._libraries = sorted(map(os.path.realpath, filter(None, libraries)))
        self._server: tuple[subprocess.Popen, socket.socket] | None = None
        self._spare: Started | None = None
        self._environment = {name: os.environ[name] for name in KEPT & set(os.environ)}
        self._environment |= {"OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "agg"}
        self._environment["PYTHONUSERBASE"] = os.path.abspath(site.getuserbase())
        paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        if (ROOT / "tutorials").is_dir():  # in the repository
            self._closed.append(str(ROOT))
            paths.append(str(ROOT))
        self._environment["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, filter(None, paths)))

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_server()
        if self._spare:
            to, from_, end = self._spare
            end()
            to.close()
            from_.close()

    @contextmanager
    def task(self, file: Path, function: str) -> Iterator[tuple[Isolated, Callable[[], str]]]:
        """A function of a student's file, and what tells the beginning of what it has printed.

        Raises ValueError if the file cannot be run.
        """
        if file.is_symlink() or not is_small(file):
            raise ValueError(f"{file} is a link, or very large: give the file that was written")
        with TemporaryDirectory(prefix="minigrpo-", ignore_cleanup_errors=True) as scratch:
            folder, printed = Path(scratch, "answer"), Path(scratch, "printed")
            folder.mkdir()
            for source in [file, *islice(file.parent.glob("*.py"), 100)]:  # it may import them
                with suppress(*[OSError] * (source != file)):  # a neighbour may be unreadable
                    if source.is_file() and not source.is_symlink() and is_small(source):
                        shutil.copyfile(source, folder / source.name)
            job = {"folder": str(folder), "printed": str(printed), "file": file.name}
            job |= {"function": function, "closed": self._closed, "libraries": self._libraries}
            job |= {"seconds": self.limits.seconds, "memory": self.limits.memory}
            with printed.open("w+", encoding="utf-8", errors="replace") as output:
                isolated = Isolated(self._start(), self.limits.seconds, Path(scratch))
                try:
                    isolated.exchange(job)
                    isolated.imports = isolated.notes
                    reply = isolated.exchange(None)
                    if "failed" in reply:
                        raise Told(visible(str(reply["failed"])[:1000]))
                    isolated.is_function = reply.get("callable") is True
                    with suppress(Exception):  # it may be anything
                        alike = filter(str.isidentifier, reply["alike"][:5])
                        isolated.alike = tuple(name[:60] for name in alike)
                    yield isolated, lambda: output.read(SHOWN)
                except Told as told:
                    raise ValueError(f"{file} cannot be imported: {told}") from None
                finally:
                    isolated.close()
                    _flatten(scratch)

    def _start(self) -> Started:
        if not FORKS:
            started, self._spare = self._spare or self._spawn(), self._spawn()
            return started
        with suppress(OSError, ValueError):
            return self._fork()
        self._stop_server()  # an answer may have killed the process that forks
        return self._fork()

    def _spawn(self) -> Started:
        pipes: Any = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        options: Any = pipes | dict(env=self._environment, start_new_session=True)
        process = subprocess.Popen(COMMAND, **options)

        def end() -> int:
            with suppress(OSError, AttributeError):  # Windows has no groups
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            return process.wait()

        return process.stdin, process.stdout, end

    def _fork(self) -> Started:
        _, control = self._server = self._server or self._start_server()
        (theirs, to), (from_, back) = os.pipe(), os.pipe()
        started = os.fdopen(to, "wb"), os.fdopen(from_, "rb")
        try:
            socket.send_fds(control, [b"f"], [theirs, back])
            child = int(control.recv(32))
        finally:
            os.close(theirs)
            os.close(back)
        ended: list[int] = []

        def end() -> int:
            if not ended:
                try:
                    control.send(b"e")
                    ended.append(os.waitstatus_to_exitcode(int(control.recv(32))))
                except (OSError, ValueError):  # an answer has killed the process that forks
                    ended.append(-signal.SIGKILL)
                    self._stop_server()
                    with suppress(OSError):
                        os.killpg(child, signal.SIGKILL)
            return ended[0]

        return *started, end

    def _start_server(self) -> tuple[subprocess.Popen, socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            files = dict(stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
            options: Any = files | dict(env=self._environment, start_new_session=True)
            process = subprocess.Popen([*COMMAND, str(theirs.fileno())], **options)
        ours.settimeout(30.0)
        return process, ours

    def _stop_server(self) -> None:
        if self._server:
            process, control = self._server
            control.close()
            process.kill()
            process.wait()
            self._server = None
