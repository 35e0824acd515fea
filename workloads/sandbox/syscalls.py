"""Numbers of the system calls that a worker may make, on x86-64 and on aarch64; None where there is none."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["ACCELERATOR_ONLY", "ALLOWED", "ARCHITECTURES", "CHECKED", "CLONE3", "NEWEST", "numbers"]

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""Audit numbers, by ``platform.machine()``."""

CLONE3 = 435
"""Starts threads and processes alike, by an argument in memory, which a filter can't read."""

NEWEST = 450
"""What lies above is newer than these lists."""

_Numbers = Mapping[str, tuple[int | None, int | None]]

ALLOWED: _Numbers = {
    # Files that are open or may be opened; Landlock says which.
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "preadv": (295, 69),
    "close": (3, 57),
    "close_range": (436, 436),
    "open": (2, None),
    "openat": (257, 56),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "lseek": (8, 62),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "pipe": (22, None),
    "pipe2": (293, 59),
    "fadvise64": (221, 223),
    "statfs": (137, 43),
    "fstatfs": (138, 44),
    # Memory.
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "brk": (12, 214),
    "madvise": (28, 233),
    "mincore": (27, 232),
    "membarrier": (324, 283),
    "get_mempolicy": (239, 236),
    # Threads.
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "set_tid_address": (218, 96),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "sched_getparam": (143, 121),
    "sched_getscheduler": (145, 120),
    "sched_get_priority_max": (146, 125),
    "sched_get_priority_min": (147, 126),
    "getcpu": (309, 168),
    # Signals of its own.
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "rt_sigtimedwait": (128, 137),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    # Time.
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "times": (100, 153),
    # Waiting.
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "eventfd2": (290, 19),
    # Who and where it is.
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getpgrp": (111, None),
    "getpgid": (121, 155),
    "getgroups": (115, 158),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "getrusage": (98, 165),
    "getrlimit": (97, 163),
    "getrandom": (318, 278),
    # The end.
    "exit": (60, 93),
    "exit_group": (231, 94),
    "arch_prctl": (158, None),
}
"""Calls that can do no harm whatever they are given."""

CHECKED: _Numbers = {
    "kill": (62, 129),
    "tgkill": (234, 131),
    "prlimit64": (302, 261),
    "prctl": (157, 167),
    "ioctl": (16, 29),
    "clone": (56, 220),
    "mmap": (9, 222),
    "fcntl": (72, 25),
}
"""Calls that `workloads.sandbox.seccomp` allows for some arguments."""

ACCELERATOR_ONLY: _Numbers = {
    "sched_setaffinity": (203, 122),
    "memfd_create": (319, 279),
    "ftruncate": (77, 46),
    "mlock": (149, 228),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
}
"""What drivers of accelerators need besides."""


def numbers(calls: _Numbers, machine: str) -> dict[str, int]:
    """The numbers of those calls that an architecture has, by name."""
    column = list(ARCHITECTURES).index(machine)
    return {name: number for name, pair in calls.items() if (number := pair[column]) is not None}
