"""The process in which a student's code runs: it is given arguments and gives back answers.

There is nothing to steal here and nothing to forge, for the right answers and the comparison are in
the process that asks (`isolation.py`).  The limits keep the harm small: no input, a folder that is
thrown away, and the system's limits of memory, processor time and sizes of files (Windows has none
of these, macOS does not enforce that of memory).  A hook refuses what no answer needs: to start or
kill processes, and to change files elsewhere.  It stops accidents and plain tricks; what gets past
it is kept from files by the kernel on Linux (`landlock.py`).  Only a container is a sandbox.

With the number of a socket as argument, this is the process that forks such a process per task.
"""

from __future__ import annotations

import ast
import ctypes
import difflib
import gc
import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from minigrpo.course import landlock
from minigrpo.course.grading import advice
from minigrpo.course.plain import LARGEST, from_plain, receive, send, to_plain
from minigrpo.system.user_code import Told, explain, peak, run_file

try:
    import resource
except ImportError:  # on Windows
    resource = None

LARGEST_FILE = 4 << 20  # bytes; what is printed goes to a file, too
PACKAGE = Path(__file__).resolve().parents[1]
LOADED = {os.path.realpath(getattr(m, "__file__", "") or "") for m in list(sys.modules.values())}
OURS, MOST_NOTES = re.compile(r"(minigrpo|tutorials|solutions)\b"), 20
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PROCESSES = {"os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system"}
PROCESSES |= {"os.startfile", "subprocess.Popen", "os.kill", "os.killpg", "socket.connect"}
PROCESSES |= {"socket.bind", "socket.sendto", "socket.sendmsg", "sqlite3.connect", "fcntl.fcntl"}
PROCESSES |= {"resource.setrlimit", "resource.prlimit", "socket.__new__", "fcntl.ioctl"}
PROCESSES |= {"ctypes.dlopen", "ctypes.dlsym", "ctypes.call_function"}  # machine code
PROCESSES |= {"socket.getaddrinfo", "socket.gethostbyname", "socket.sethostname"}
CHANGES = {"os.remove", "os.rename", "os.rmdir", "os.truncate", "os.chmod", "os.chown", "os.link"}
CHANGES |= {"os.symlink", "os.mkdir", "os.utime", "shutil.rmtree", "shutil.move"}
CHANGES |= {"os.setxattr", "os.removexattr"}
SILENT = {"pidfd_send_signal", "setpriority", "fork_exec", "_fork_exec", "setns", "unshare"}
SILENT |= {"sched_setaffinity", "sched_setparam", "sched_setscheduler", "clock_settime"}
SILENT |= {"clock_settime_ns", "nice", "mknod"}  # what tells no hook
NO_HOOK = {"_xxsubinterpreters", "_interpreters", "_testcapi", "_testinternalcapi"}
NO_HOOK |= {"_cffi_backend", "posix", "_signal", "_posixsubprocess"}  # machine code; a second time
BY_FOLDER = {"os.chmod", "os.chown", "os.utime"}  # may name an open folder last
MODES = BY_FOLDER | {"os.setxattr", "os.removexattr"}  # also of open files


def confine(job: dict[str, Any]) -> None:
    """Give this process its folder, its output and its limits."""
    if hasattr(os, "setsid"):
        with suppress(OSError):  # it may lead a session already
            os.setsid()
    os.chdir(job["folder"])
    printed = os.open(job["printed"], os.O_WRONLY | os.O_APPEND)
    for number, target in enumerate((os.open(os.devnull, os.O_RDONLY), printed, printed)):
        os.dup2(target, number)
    places = "HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP", "MPLCONFIGDIR"
    os.environ.update(dict.fromkeys(places, job["folder"]))
    sys.path[:] = [path for path in sys.path if path and not os.path.isdir(f"{path}/tutorials")]
    sys.dont_write_bytecode = True
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    limits = {"AS": job["memory"], "CPU": int(job["seconds"]) + 5, "FSIZE": LARGEST_FILE, "CORE": 0}
    limits["NOFILE"] = 64  # files in memory count for each, not for the process
    low = filter(None, map(sys.modules.get, ("posix", "_signal", "_posixsubprocess")))
    for module in (os, signal, subprocess, time, *low):
        for name in SILENT & set(vars(module)):
            delattr(module, name)
    for name in [name for name in sys.modules if name.startswith("minigrpo")]:
        del sys.modules[name]  # an answer that wants them loads them, which is noted
    for name, most in limits.items() if resource else ():
        with suppress(ValueError, OSError, OverflowError):  # a lower limit is in force, or none is
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))


def nodes(file: Path) -> list[ast.AST]:
    """What a student's file says, without running it; nothing if it cannot be read."""
    with suppress(SyntaxError, ValueError, RecursionError, MemoryError, OSError):
        return list(ast.walk(ast.parse(file.read_bytes())))
    return []


def imports_of_ours(file: Path) -> list[str]:
    """What a student's file imports of the package or of solutions: notes for the teacher."""
    found: list[str] = []
    for node in nodes(file):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            names = [".".join(filter(None, (module, alias.name))) for alias in node.names]
            ours = [name for name in names if OURS.match(name)]
            found += [f"imports {name[:100]} (line {node.lineno})" for name in ours]
    return found[:MOST_NOTES]


def watch(own: str, closed: list[str], libraries: list[str], notes: list[str]) -> None:
    """Refuse what no answer needs, from now on, and note what is used of the package.

    closed: files and folders that are not read; but libraries within them are.
    """
    closed = [*closed, "/dev", "/proc/kcore"]  # terminals, disks, the kernel's memory
    roots = [os.path.realpath(folder) for folder in (own, os.devnull, *closed)]
    libraries = [*roots[:2], *map(os.path.realpath, libraries)]
    package, scratch = os.path.realpath(PACKAGE), os.path.dirname(roots[0])
    mine = f"/proc/{os.getpid()}", scratch
    beside = os.path.join(os.path.dirname(scratch), "minigrpo-")
    others = re.compile(rf"/proc/[0-9]+|{re.escape(beside)}[^\\/]*")  # processes, other answers

    def is_closed(path: str) -> bool:
        found = others.match(path)
        return bool(found) and found[0] not in mine

    def real(path: Any) -> str:
        return os.path.realpath(str.__str__(os.fsdecode(path)))  # a text of its own type may lie

    def within(path: Any, allowed: list[str]) -> bool:
        path = real(path)
        return any(path == root or path.startswith(root + os.sep) for root in allowed)

    def is_library(path: Any) -> bool:
        return os.path.isfile(real(path)) and not within(path, roots[:1])

    def hook(event: str, arguments: tuple) -> None:
        paths = [path for path in arguments if isinstance(path, str | bytes | os.PathLike)]
        by_folder = event in BY_FOLDER and arguments[-1] != -1
        if event in PROCESSES or (event in MODES and isinstance(arguments[0], int)) or by_folder:
            raise PermissionError(f"an answer may not call {event}")
        if event == "import" and arguments[0] in NO_HOOK:
            raise PermissionError(f"an answer may not import {arguments[0]}")
        if event == "import" and arguments[1] and not is_library(arguments[1]):
            raise PermissionError("an answer may not load machine code")
        if event == "import" and str(arguments[0]).startswith("minigrpo."):
            notes.append(f"loads {arguments[0]}")
        for path in [real(path) for path in paths[:1] if event == "open"]:
            is_elsewhere = os.path.isdir(path) and not within(path, roots[:1])  # to name files by
            is_shut = within(path, roots[2:]) and not within(path, libraries)
            if is_closed(path) or is_elsewhere or is_shut:
                raise PermissionError("an answer may not read this file")
            is_ours = path.endswith(".py") and within(path, [package])
            if is_ours and path not in LOADED:  # an error quotes these
                notes.append(f"reads {os.path.relpath(path, os.path.dirname(package))}")
        changed = paths[:1] if event == "open" and arguments[2] & WRITING else ()
        if not all(within(path, roots[:2]) for path in (paths if event in CHANGES else changed)):
            raise PermissionError("an answer may change files in its own folder only")

    landlock.confine(roots[0], libraries[2:], [*roots[2:], beside, "/proc/0"], is_closed)
    sys.addaudithook(hook)


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Tell what the file of a job imports, then load it, then answer calls until killed."""
    job, notes, function = receive(requests), [], None
    confine(job)
    watch(job["folder"], job["closed"], job["libraries"], notes)
    file = Path(job["folder"], job["file"])
    send(answers, {"notes": imports_of_ours(file)})  # before any code of theirs could change it
    receive(requests)
    try:
        function = getattr(run_file(file, f"minigrpo_exercises_{file.stem}"), job["function"], None)
        found: dict[str, Any] = {"callable": callable(function)}
        if not callable(function):
            names = [n.name[:60] for n in nodes(file) if isinstance(n, ast.FunctionDef)][:1000]
            found["alike"] = difflib.get_close_matches(job["function"], dict.fromkeys(names), 5)
    except BaseException as error:
        found = {"failed": explain(error, str(file))}
    while True:
        send(answers, found | {"notes": notes[:1]})  # what that one loads in turn says no more
        found = answer(function, **receive(requests))


def answer(function: Any, arguments: Any, measured: bool) -> dict[str, Any]:
    """Call the student's function.   -> what it returned or raised, as plain data"""
    file = ""
    try:
        file = getattr(getattr(inspect.unwrap(function), "__code__", None), "co_filename", "")
        called = partial(peak, function) if measured else function
        return {"value": looked_at(called(*from_plain(arguments)), file)}
    except NotImplementedError as error:
        return {"to_do": str(error)}
    except BaseException as error:
        hint = "it asks for more memory than it may have." * isinstance(error, MemoryError)
        return {"raised": explain(error, file), "hint": hint or advice(error)}


def looked_at(value: Any, file: str) -> Any:
    """An answer as plain data.   Raises Told if that fails, and if it is too large."""
    try:
        plain = to_plain(value)
        if len(json.dumps(plain)) > LARGEST // 2:
            raise Told("it is too large")
        return plain
    except BaseException as error:
        raise Told(f"one that cannot be looked at: {explain(error, file)}") from None


def fork_for_each(control: socket.socket) -> None:
    """Fork a process for each pair of pipes; when told that a task is over, end all it began."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans come to us
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    gc.freeze()  # else each child's own collection copies the pages of all that is here
    while True:
        _, pipes, _, _ = socket.recv_fds(control, 1, 2)
        if not pipes:
            return
        if (child := os.fork()) == 0:
            control.close()
            run(*pipes)
        for pipe in pipes:
            os.close(pipe)
        control.send(str(child).encode())
        control.recv(1)
        os.kill(child, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        with suppress(OSError):  # where /proc does not tell, descendants are left to their limits
            while left := children.read_text().split():
                for orphan in map(int, left):
                    os.kill(orphan, signal.SIGKILL)
                    os.waitpid(orphan, 0)
        control.send(str(status).encode())


def run(requests: int, answers: int) -> None:
    """Serve, and end without anything that the student has put at the end."""
    with suppress(BaseException):
        serve(os.fdopen(requests, "rb"), os.fdopen(answers, "wb"))
    os._exit(0)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        with suppress(OSError):  # nobody asks any more
            fork_for_each(socket.socket(fileno=int(sys.argv[1])))
    else:
        run(os.dup(0), os.dup(1))
