"""The kernel, for calls that Python has no name for."""

from __future__ import annotations

import ctypes
import errno
import os
import sys

__all__ = ["IS_LINUX", "prctl", "syscall", "unshare", "why"]

IS_LINUX = sys.platform == "linux"
_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, *arguments: int) -> int:
    """`prctl(2)`.

    Raises:
        OSError: the kernel refused.
    """
    padded = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    return _checked(_libc.prctl(option, *padded), "prctl")


def syscall(number: int, *arguments: ctypes.c_void_p | int | bytes) -> int:
    """`syscall(2)`; integers are passed as longs, bytes by address.

    Raises:
        OSError: the kernel refused.
    """
    passed = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *passed), f"system call {number}")


def unshare(flags: int) -> None:
    """`unshare(2)`.

    Raises:
        OSError: the kernel refused.
    """
    _checked(_libc.unshare(flags), "unshare")


def why(error: OSError) -> str:
    """An error for people: its name and meaning."""
    name = errno.errorcode.get(error.errno or 0, "?")
    return f"{error.strerror} ({name})"


def _checked(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), call)
    return result
