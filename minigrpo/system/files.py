"""Files that are whole or absent, folders with one writer at a time, files beside the code."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import IO, Any
from weakref import WeakSet

try:
    import fcntl
except ImportError:  # on Windows
    import msvcrt

    fcntl = None

NO_SYNC = errno.EINVAL, errno.ENOTSUP, errno.EBADF  # of file systems that cannot sync a folder
NO_LOCKS = errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK


# -- writing and reading ---------------------------------------------------------------------------


def write_atomically(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a file that is whole or absent: temporary file, sync, rename, sync of the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path), open(temporary, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        with naming(path):
            replace(temporary, path)
    finally:
        with suppress(OSError):  # it may not be there, nor its folder
            temporary.unlink()
    sync_folder(path.parent)


def write_output(path: Path, data: bytes) -> None:
    """Write what a command was asked for, whole or not at all; a link or a device stays one."""
    if not path.exists() or path.is_file():
        return write_atomically(path.resolve(), [data])
    with naming(path):
        path.write_bytes(data)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError inside names this file: when a disk is full, Python does not say which it was."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def shorten_to(path: Path, kept: bytes) -> None:
    """Shorten a file to `kept`, its beginning (whose line ends may be others in the file)."""
    if path.read_bytes().startswith(kept) and path.stat().st_nlink == 1:
        os.truncate(path, len(kept))  # takes no room, even on a full disk
    else:
        write_atomically(path, [kept])


def remove_left_overs(folder: Path) -> None:
    """Remove the temporary files of killed processes; only the folder's one writer may do so."""
    for file in folder.glob(".*.*.tmp"):
        file.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, and sync them, so that they survive a power cut."""
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(new):
        sync_folder(folder.parent)


def sync_file(path: Path) -> None:
    """Wait until what was written to a file is on the disk."""
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the names of a folder's new, renamed and removed files are on the disk."""
    try:
        folder = os.open(path, os.O_RDONLY)
    except PermissionError:
        return  # Windows opens no folders, and needs no sync of them
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
    finally:
        os.close(folder)


def replace(source: Path, target: Path) -> None:
    """os.replace, tried for a second: Windows refuses it while another program reads the target."""
    for wait in (0.05, 0.2, 0.75, None):
        try:
            return os.replace(source, target)
        except PermissionError:
            if wait is None or target.is_dir():
                raise
            time.sleep(wait)


def checksum(record: Mapping[str, Any]) -> str:
    """The SHA-256 of what JSON can hold, in any order of the keys."""
    text = json.dumps(record, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file, without a last line that was cut short and has no end.

    Raises ValueError for any other line that is not JSON.
    """
    text = Path(path).read_bytes().decode("utf-8", errors="replace")  # a cut may split a character
    # str.splitlines would cut at U+2028, which a completion may hold.
    lines = text.removesuffix("\n").split("\n") if text else []
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except (json.JSONDecodeError, RecursionError) as error:
            if number < len(lines) or text.endswith("\n"):
                raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
    return records


# -- one writer per folder -------------------------------------------------------------------------


class Lock:
    """The right to write to a folder, until `release` or the end of the process, however it ends.

    Raises ValueError if another process (or another Lock of this one) has it.  The operating system
    drops the lock when the process ends; that the file `name` stays means nothing.
    """

    def __init__(self, folder: Path, name: str = "lock") -> None:
        self._path = folder / name
        self._file = open(self._path, "a+b")  # noqa: SIM115
        _held.add(self)
        try:
            _lock(self._file)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                self._file.seek(0)
                owner = self._file.read(20).decode("ascii", "replace")
                self._file.close()
                who = "another process" + (f" (pid {owner})" if owner.isdigit() else "")
                way_out = "wait until that has ended, or give another folder"
                raise ValueError(f"{folder} is in use by {who}: {way_out}") from None
            note = "has no locks: see to it that nobody else writes there"
            print(f"note: the file system of {folder} {note}", file=sys.stderr)
        self._file.truncate(0)
        self._file.write(str(os.getpid()).encode())
        self._file.flush()

    def check(self) -> None:
        """Raise OSError if the folder was removed, or replaced by another, since."""
        try:
            there = os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path))
        except OSError:
            there = False
        if not there:
            why = "the folder was removed or replaced while it was in use"
            raise OSError(errno.ESTALE, why, str(self._path.parent))

    def release(self) -> None:
        """Let others have it."""
        self._file.close()


_held: WeakSet[Lock] = WeakSet()


def is_locked(folder: Path) -> bool:
    """Whether a process may be writing to a folder; where there are no locks, it may be."""
    try:
        with open(folder / "lock", "rb") as file:
            _lock(file, shared=True)
    except OSError as error:
        return error.errno != errno.ENOENT
    return False


def _lock(file: IO[bytes], shared: bool = False) -> None:
    if fcntl is not None:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    else:
        file.seek(1 << 30)  # a byte that nobody reads, as what is locked cannot be read
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)


if hasattr(os, "register_at_fork"):
    # A child that outlives this process must not keep its folders locked.
    os.register_at_fork(after_in_child=lambda: [lock.release() for lock in _held])


# -- beside the code -------------------------------------------------------------------------------


def shipped(name: str) -> Traversable:
    """A file that users need as well, by its path in the repository, as "results/table1.json".

    It is that of the installed package (setup.py puts copies into wheels), else of the repository
    that the package stands in.   Raises ValueError if neither has it.
    """
    for root in (files("minigrpo").joinpath("data"), Path(__file__).parents[2]):
        found = root.joinpath(*name.split("/"))
        if found.is_file():
            return found
    way_out = "install the package again, from a wheel or as a whole repository"
    raise ValueError(f"there is no {name!r} in this installation: {way_out}")
