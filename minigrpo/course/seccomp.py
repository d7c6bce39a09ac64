"""What else Linux refuses to a student's process, by the numbers of its calls: seccomp.

Landlock (`landlock.py`) watches over files by their paths.  It does not know the calls that change
modes, owners, times and attributes, nor those that make processes, sockets and memory that outlives
its process, or that touch other processes.  A filter of them has been in Linux since 3.5, and holds
for machine code, too; on machines other than x86-64 and arm64 nothing happens.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

# fork vfork execve execveat ptrace process_vm_readv process_vm_writev
# rt_sigqueueinfo rt_tgsigqueueinfo
# chmod fchmod fchmodat chown fchown lchown fchownat utime utimes futimesat utimensat
# setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr
# shmget shmat msgget semget mq_open add_key request_key keyctl socket socketpair
# setpriority ioprio_set sched_setparam sched_setscheduler sched_setaffinity sched_setattr setrlimit
# chroot unshare setns reboot sethostname setdomainname settimeofday clock_settime adjtimex
# clock_adjtime acct syslog bpf perf_event_open open_by_handle_at
REFUSED = {
    "x86_64": "57 58 59 322 101 310 311 129 297 90 91 268 92 93 94 260 132 235 261 280 "
    "188 189 190 197 198 199 29 30 68 64 240 248 249 250 41 53 141 251 142 144 203 314 160 "
    "161 272 308 169 170 171 164 227 159 305 163 103 321 298 304",
    "aarch64": "221 281 117 270 271 138 240 52 53 55 54 88 5 6 7 14 15 16 194 196 186 190 180 "
    "217 218 219 198 199 140 30 118 119 122 274 164 51 97 268 142 161 162 170 112 171 266 "
    "89 116 280 241 265",
}
# The same on all machines: pidfd_send_signal pidfd_open pidfd_getfd process_madvise io_uring_setup
# fchmodat2 setxattrat removexattrat
REFUSED_ANYWHERE = (424, 434, 438, 440, 425, 452, 463, 466)
CLONE3, NEW_THREAD, IS_TERMINAL, CLOSE_ON_EXEC = 435, 0x10000, 0x5401, 0x5451
# clone, kill, tgkill, tkill, prlimit64, ioctl: refused by their arguments
BY_ARGUMENTS = {"x86_64": (56, 62, 234, 200, 302, 16), "aarch64": (220, 129, 131, 130, 261, 29)}
MACHINE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
LOAD, EQUAL, AT_LEAST, ANY_OF, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # of the filter's language
ALLOW, DENIED, UNKNOWN = 0x7FFF0000, 0x5000D, 0x50026  # errno EACCES, ENOSYS
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # where they stand in what the filter is given


def rules(machine: str, own: int) -> list[tuple[int, int, int, int]]:
    """The filter of a machine for the process `own`: code, jump if true, if false, number."""

    def word(argument: int, high: int = 0) -> tuple[int, int, int, int]:
        return LOAD, 0, 0, ARGUMENTS + 8 * argument + 4 * high

    def when(number: int, *then: tuple[int, int, int, int]) -> list[tuple[int, int, int, int]]:
        return [(EQUAL, 0, len(then), number), *then]

    allow, denied = (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, DENIED)
    clone, kill, tgkill, tkill, prlimit, ioctl = BY_ARGUMENTS[machine]
    found = [(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, MACHINE[machine]), denied]
    found += [(LOAD, 0, 0, NUMBER), (AT_LEAST, 0, 1, 1 << 30), denied]  # x86-64 has a second table
    for number in (*map(int, REFUSED[machine].split()), *REFUSED_ANYWHERE):
        found += when(number, denied)
    found += when(CLONE3, (RETURN, 0, 0, UNKNOWN))  # the C library then uses clone
    found += when(clone, word(0), (ANY_OF, 0, 1, NEW_THREAD), allow, denied)
    for number in (kill, tgkill, tkill):
        found += when(number, word(0), (EQUAL, 0, 1, own), allow, denied)
    unread = word(2), (EQUAL, 0, 2, 0), word(2, high=1), (EQUAL, 1, 0, 0)
    found += when(prlimit, *unread, denied, allow)
    asked = word(1), (EQUAL, 1, 0, IS_TERMINAL), (EQUAL, 0, 1, CLOSE_ON_EXEC)
    found += when(ioctl, *asked, allow, denied)
    return [*found, allow]


def is_known() -> bool:
    """Whether there is a filter for this machine."""
    is_linux = sys.platform == "linux" and sys.maxsize > 1 << 32
    return is_linux and platform.machine() in MACHINE


def confine() -> bool:
    """Refuse these calls to this process from now on.   -> whether the kernel can"""
    if not is_known():
        return False
    found = rules(platform.machine(), os.getpid())
    filter_ = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *r) for r in found))
    program = struct.pack("HxxxxxxQ", len(found), ctypes.addressof(filter_))
    call = ctypes.CDLL(None).prctl
    call(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    return call(22, 2, program, 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
