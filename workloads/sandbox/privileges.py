"""No capability, and no way to gain any: set-user-id programs and file capabilities don't count."""

from __future__ import annotations

import ctypes
import platform
import struct

from workloads.sandbox.layers import LayerReport
from workloads.sandbox.system import IS_LINUX, prctl, syscall, why

__all__ = ["drop"]

_PR_SET_NO_NEW_PRIVS = 38
_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITY_VERSION_3 = 0x20080522


def drop() -> LayerReport:
    """Give up all privileges for good."""
    if not IS_LINUX:
        return LayerReport("privileges", False, "only Linux has no_new_privs")
    try:
        prctl(_PR_SET_NO_NEW_PRIVS, 1)
    except OSError as error:
        return LayerReport("privileges", False, f"no_new_privs: {why(error)}")
    capset = _CAPSET.get(platform.machine())
    if capset is None:
        return LayerReport("privileges", True, f"nothing gained; what there is stays: {platform.machine()}")
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    nothing = ctypes.create_string_buffer(struct.pack("=6I", *[0] * 6))
    try:
        syscall(capset, ctypes.addressof(header), ctypes.addressof(nothing))
    except OSError as error:
        return LayerReport("privileges", True, f"nothing gained; what there is stays: {why(error)}")
    return LayerReport("privileges", True, "no capability, none to be gained")
