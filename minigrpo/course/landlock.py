"""What Linux itself refuses to a student's process, whatever its code does to Python: Landlock.

No programs, no files but those below a folder of its own to write, make or remove, none to read in
closed folders, no network by TCP and, from Linux 6.12 on, no signals to other processes.  It holds
for machine code, too, as long as the kernel has it (5.13 or later); elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Callable, Iterator

EXECUTE, WRITE, READ, TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 14
DEVICES = 1 << 6 | 1 << 11  # to make them: a disk, under a name of one's own
ALL = (1 << 13) - 1  # what the first version knows
CREATE, ADD, RESTRICT, NO_NEW_PRIVILEGES = 444, 445, 446, 38  # the same on all machines


def _call(library: ctypes.CDLL, number: int, *arguments: int | bytes | None) -> int:
    sized = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return library.syscall(ctypes.c_long(number), *sized)


def version_of_kernel() -> int:
    """The version of Landlock; below 1 where there is none."""
    return _call(ctypes.CDLL(None), CREATE, None, 0, 1) if sys.platform == "linux" else 0


def confine(
    own: str, libraries: list[str], closed: list[str], is_closed: Callable[[str], bool]
) -> bool:
    """Shut this process in.   -> whether the kernel can

    own: the folder to write in.  closed: what is not read, but for libraries, and names in folders
    (that need not be there) in which is_closed says it of each path.
    """
    if (version := version_of_kernel()) < 1:
        return False
    handled = ALL | (1 << 13) * (version >= 2) | TRUNCATE * (version >= 3)
    handled &= ~(1 << 3)  # names of files are no secret
    attributes = struct.pack("QQQ", handled, 3, 3)[: 8 + 8 * (version >= 4) + 8 * (version >= 6)]
    library = ctypes.CDLL(None)  # for these calls only: what is left of it, an answer could call
    rules = _call(library, CREATE, attributes, len(attributes), 0)

    def allow(path: str, access: int) -> None:
        try:
            folder = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return  # it has gone
        _call(library, ADD, rules, 1, struct.pack("=Qi", access & handled, folder), 0)
        os.close(folder)

    for path in *_open(os.sep, [*map(os.path.realpath, closed)], is_closed), *libraries:
        allow(path, READ)
    allow(os.devnull, READ | WRITE | TRUNCATE)
    allow(os.path.realpath(own), handled & ~EXECUTE & ~DEVICES)
    library.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    shut = _call(library, RESTRICT, rules, 0) == 0
    os.close(rules)
    return shut


def _open(folder: str, closed: list[str], is_closed: Callable[[str], bool]) -> Iterator[str]:
    """The fewest files and folders below one that hold nothing closed."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if entry.is_symlink() or entry.path in closed or is_closed(entry.path):
            continue
        inside = entry.path + os.sep
        if any(path.startswith(inside) for path in closed):
            yield from _open(entry.path, closed, is_closed)
        else:
            yield entry.path
