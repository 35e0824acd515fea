"""seccomp: the system calls that computing takes, and no others.

A call that isn't on the list fails with EPERM instead of killing the process. Libraries probe the kernel and
live with a refusal; killing would turn a probe into a lost run, and a call that fails gives nothing away.
Calls newer than the list fail with ENOSYS, on which C libraries fall back. Only another architecture's calls
kill: no library makes them by accident.

Source: the kernel's documentation, userspace-api/seccomp_filter; linux/filter.h; the numbers are those of
asm/unistd_64.h (x86-64) and asm-generic/unistd.h (aarch64).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

from workloads.sandbox.layers import LayerReport
from workloads.sandbox.syscalls import (
    ACCELERATOR_ONLY,
    ALLOWED,
    ARCHITECTURES,
    CHECKED,
    CLONE3,
    NEWEST,
    numbers,
)
from workloads.sandbox.system import IS_LINUX, prctl, why

__all__ = ["allow_only_computing", "program"]

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_LOAD, _EQUAL, _ABOVE, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_NUMBER, _ARCHITECTURE = 0, 4
_ARGUMENTS = 16
_INSTRUCTION = struct.Struct("=HBBI")

_CLONE_THREAD = 0x00010000
# Namespaces, tracing, and a parent that isn't ours: no thread needs them.
_CLONE_NEVER = 0x7E020000 | 0x00002000 | 0x00008000
_MAP_SHARED, _MAP_ANONYMOUS = 0x01, 0x20
# Memory that RLIMIT_DATA doesn't count: stacks that grow, and huge pages.
_MAP_NEVER = 0x0100 | 0x40000
# PR_SET_NAME, PR_GET_NAME, PR_GET_DUMPABLE, PR_SET_VMA; the parent's death signal stays as it is.
_PRCTL = (15, 16, 3, 0x53564D41)
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC; not F_SETOWN, which has signals sent.
_FCNTL = (0, 1, 2, 3, 4, 1030)
# TCGETS and TIOCGWINSZ (is this a terminal?), FIONREAD, FIOCLEX, FIONCLEX.
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5451, 0x5450)

_Instruction = tuple[int, int, int, int]


def allow_only_computing(*, has_accelerator: bool = False) -> LayerReport:
    """Install the filter on this thread and those it starts.

    Args:
        has_accelerator: drivers of accelerators are talked to by ioctl, and need a few calls more.
    """
    machine = platform.machine()
    if not IS_LINUX:
        return LayerReport("seccomp", False, "only Linux has it")
    if machine not in ARCHITECTURES:
        return LayerReport("seccomp", False, f"no list of system calls for {machine}")
    instructions = program(machine, os.getpid(), has_accelerator=has_accelerator)
    code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*line) for line in instructions))
    # struct sock_fprog: a count and a pointer, with the padding between them.
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(instructions), ctypes.addressof(code)))
    try:
        prctl(_PR_SET_NO_NEW_PRIVS, 1)
        prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(header))
    except OSError as error:
        return LayerReport("seccomp", False, f"the kernel refused: {why(error)}")
    allowed = len(numbers(ALLOWED, machine)) + len(numbers(CHECKED, machine))
    return LayerReport(
        "seccomp", True, f"{allowed} system calls; no socket, program, process, trace or signal to others"
    )


def program(machine: str, own_pid: int, *, has_accelerator: bool = False) -> list[_Instruction]:
    """The filter's instructions: code, jump if true, jump if false, operand.

    Args:
        machine: ``x86_64`` or ``aarch64``.
        own_pid: the process that signals may go to, as it sees itself.
        has_accelerator: see `allow_only_computing`.
    """
    refuse = _end(_ERRNO | errno.EPERM)
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        *_when((_EQUAL, 1, 0, ARCHITECTURES[machine]), _end(_KILL)),
        (_LOAD, 0, 0, _NUMBER),
        # x32 calls lie above, too.
        *_when((_ABOVE, 0, 1, NEWEST), _end(_ERRNO | errno.ENOSYS)),
        *_when((_EQUAL, 0, 1, CLONE3), _end(_ERRNO | errno.ENOSYS)),
    ]
    plain = {**ALLOWED, **(ACCELERATOR_ONLY if has_accelerator else {})}
    if has_accelerator:
        plain["ioctl"] = CHECKED["ioctl"]
    for number in numbers(plain, machine).values():
        lines += _when((_EQUAL, 0, 1, number), _end(_ALLOW))
    checks: dict[str, list[_Instruction]] = {
        "kill": _one_of(0, (own_pid,)),
        "tgkill": _one_of(0, (own_pid,)),
        "prlimit64": _one_of(0, (0,)),
        "prctl": _one_of(0, _PRCTL),
        "ioctl": _one_of(1, _IOCTL),
        "fcntl": _one_of(1, _FCNTL),
        "clone": [
            *_load(0),
            *_when((_ANY_BIT, 0, 1, _CLONE_NEVER), refuse),
            *_when((_ANY_BIT, 0, 1, _CLONE_THREAD), _end(_ALLOW)),
            *refuse,
        ],
        # Shared memory of no file is counted against no limit.
        "mmap": [
            *_load(3),
            *_when((_ANY_BIT, 0, 1, _MAP_NEVER), refuse),
            (_ANY_BIT, 0, 2, _MAP_ANONYMOUS),
            *_when((_ANY_BIT, 0, 1, _MAP_SHARED), refuse),
            *_end(_ALLOW),
        ],
    }
    for name, number in numbers(CHECKED, machine).items():
        lines.append((_EQUAL, 0, len(checks[name]), number))
        lines += checks[name]
    return [*lines, *refuse]


def _end(action: int) -> list[_Instruction]:
    return [(_RETURN, 0, 0, action)]


def _when(test: _Instruction, then: list[_Instruction]) -> list[_Instruction]:
    """A test whose jumps skip, or don't, the one instruction that follows."""
    return [test, *then]


def _load(argument: int) -> list[_Instruction]:
    # The lower half; both architectures are little-endian, and the kernel reads these arguments as 32 bits.
    return [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument)]


def _one_of(argument: int, values: tuple[int, ...]) -> list[_Instruction]:
    lines = _load(argument)
    for value in values:
        lines += _when((_EQUAL, 0, 1, value & 0xFFFFFFFF), _end(_ALLOW))
    return [*lines, *_end(_ERRNO | errno.EPERM)]
