"""Namespaces: a process that sees no network, no other process and no other user.

The process that forks workers enters them once, before it imports anything: a process with threads can't
make a user namespace. The first process it then forks is the init of the new process namespace; when that
dies, the kernel kills everything in it.
"""

from __future__ import annotations

import os
from pathlib import Path

from workloads.sandbox.layers import LayerReport
from workloads.sandbox.system import IS_LINUX, unshare, why

__all__ = ["enter", "enter_alone", "has_own_processes", "has_own_users"]

_NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x08000000, 0x10000000, 0x20000000, 0x40000000
_OWN = _NEWIPC | _NEWNET
_WHAT = "no network, no other processes, no shared memory of others"
_WHAT_ALONE = "no network, no shared memory of others"


def enter() -> LayerReport:
    """Leave the machine's users, network, processes and shared memory; children see only each other."""
    return _enter(_OWN | _NEWPID, _WHAT)


def enter_alone() -> LayerReport:
    """For a process that forks no other: everything but the process namespace.

    Only children would enter that one, and until there is a child no thread can be started either.
    """
    return _enter(_OWN, _WHAT_ALONE)


def _enter(flags: int, what: str) -> LayerReport:
    if not IS_LINUX:
        return LayerReport("namespaces", False, "only Linux has them")
    user, group = os.getuid(), os.getgid()
    try:
        unshare(_NEWUSER | flags)
    except OSError as error:
        return _without_users(error, flags, what)
    try:
        # Unmapped ids would make our own files somebody else's.
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    except OSError as error:
        return LayerReport("namespaces", True, f"{what}; users aren't mapped: {why(error)}")
    return LayerReport("namespaces", True, f"{what}, users of its own")


def _without_users(error: OSError, flags: int, what: str) -> LayerReport:
    """Root may leave the rest where user namespaces are switched off, as in many containers."""
    try:
        unshare(flags)
    except OSError:
        hint = "see the sysctls user.max_user_namespaces and kernel.apparmor_restrict_unprivileged_userns"
        return LayerReport("namespaces", False, f"the kernel refused: {why(error)}; {hint}")
    return LayerReport("namespaces", True, f"{what}; no users of its own: {why(error)}")


def has_own_processes(report: LayerReport) -> bool:
    """Whether the next child is the init of a process namespace."""
    return report.holds


def has_own_users(report: LayerReport) -> bool:
    """Whether limits on processes count only ours."""
    return report.holds and report.detail.endswith("users of its own") and ";" not in report.detail
