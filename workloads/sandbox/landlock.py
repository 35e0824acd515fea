"""Landlock: the kernel lets the process open what a list names, for reading, and nothing else.

Source: the kernel's documentation, userspace-api/landlock, and linux/landlock.h. The numbers of the three
system calls are the same on all architectures.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import workloads
from workloads.sandbox.layers import LayerReport
from workloads.sandbox.system import IS_LINUX, prctl, syscall, why

__all__ = ["abi_version", "confine", "interpreter_paths"]

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_PR_SET_NO_NEW_PRIVS = 38
_WRITE_FILE, _READ_FILE, _READ_DIR, _IOCTL_DEV = 1 << 1, 1 << 2, 1 << 3, 1 << 15
# All rights that an ABI knows, by the first version that has them.
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: _IOCTL_DEV}
_TCP_SINCE, _TCP_RIGHTS = 4, 0b11
_SCOPES_SINCE, _SCOPES = 6, 0b11
_PATHS_ALL = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/dev/null",
    "/dev/urandom",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/sys/devices/system/cpu",
)


def abi_version() -> int:
    """The kernel's version of Landlock.

    Raises:
        OSError: it has none.
    """
    return syscall(_CREATE_RULESET, 0, 0, _VERSION_FLAG)


def interpreter_paths() -> list[Path]:
    """What Python and torch read after they are imported: libraries, lazily imported modules, facts."""
    installed = sysconfig.get_paths()
    libraries = [Path(installed[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    # An environment may use the packages of another.
    libraries += [path for path in map(Path, sys.path) if path.name in ("site-packages", "dist-packages")]
    ours = Path(workloads.__file__).parent
    # By name, not their parent: in a checkout that may hold anything.
    packages = [ours, ours.with_name("protocols")]
    return [*libraries, Path(sys.base_prefix) / "lib", *packages, *map(Path, _PATHS_ALL)]


def confine(readable: Iterable[Path], devices: Iterable[Path] = ()) -> LayerReport:
    """Let this thread and those it starts read beneath these paths, and neither write nor execute anything.

    Args:
        readable: directories and files; those that don't exist are left out.
        devices: device files of accelerators, to be read, written and controlled.
    """
    if not IS_LINUX:
        return LayerReport("landlock", False, "only Linux has it")
    try:
        version = abi_version()
    except OSError as error:
        return LayerReport("landlock", False, f"the kernel has none: {why(error)}")
    rights = sum(bits for since, bits in _FILE_RIGHTS.items() if version >= since)
    try:
        ruleset = _create_ruleset(version, rights)
        try:
            for path in readable:
                _allow(ruleset, path, _READ_FILE | _READ_DIR)
            for path in devices:
                _allow(ruleset, path, (_READ_FILE | _WRITE_FILE | _IOCTL_DEV) & rights)
            prctl(_PR_SET_NO_NEW_PRIVS, 1)
            syscall(_RESTRICT_SELF, ruleset, 0)
        finally:
            os.close(ruleset)
    except OSError as error:
        return LayerReport("landlock", False, f"the kernel refused: {why(error)}")
    lacks = [
        what
        for since, what in ((3, "truncating"), (_TCP_SINCE, "TCP"), (_SCOPES_SINCE, "signals"))
        if version < since
    ]
    uncovered = f"; doesn't cover {', '.join(lacks)}" if lacks else ""
    return LayerReport(
        "landlock", True, f"reads libraries, models and blobs only, writes nothing (ABI {version}{uncovered})"
    )


def _create_ruleset(version: int, rights: int) -> int:
    fields = [rights]
    if version >= _TCP_SINCE:
        fields.append(_TCP_RIGHTS)
    if version >= _SCOPES_SINCE:
        fields.append(_SCOPES)
    attributes = ctypes.create_string_buffer(struct.pack(f"={len(fields)}Q", *fields), 8 * len(fields))
    return syscall(_CREATE_RULESET, ctypes.addressof(attributes), 8 * len(fields), 0)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not path.is_dir():
            rights &= ~_READ_DIR
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, descriptor), 12)
        syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.addressof(rule), 0)
    finally:
        os.close(descriptor)
