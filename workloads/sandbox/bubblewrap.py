"""Namespaces by bubblewrap, where the kernel refuses them to us and not to it.

Some systems keep user namespaces from programs and let bubblewrap have them: it is set-user-id, or a profile
of AppArmor names it. Where a process may enter namespaces by itself, bubblewrap would add nothing: the files
are Landlock's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from workloads.sandbox.layers import LayerReport
from workloads.sandbox.system import IS_LINUX

__all__ = ["REPORT", "command", "find"]

REPORT = LayerReport(
    "namespaces", True, "no network, no other processes, no shared memory of others: by bubblewrap"
)
"""What holds in a process that it started."""

_FOLDERS = os.pathsep.join(("/usr/bin", "/bin", "/usr/local/bin"))
"""Where the system's own lies; what else a PATH names may be anybody's."""

# The files stay as they are. What is started is the init of its processes, as a zygote must be.
_OPTIONS = ("--die-with-parent", "--as-pid-1", "--unshare-pid", "--unshare-net", "--unshare-ipc")
_FILES = ("--dev-bind", "/", "/", "--proc", "/proc")
_PROBE_S = 5.0


def find() -> str:
    """Where it lies, or nothing."""
    return (shutil.which("bwrap", path=_FOLDERS) or "") if IS_LINUX else ""


def command(arguments: Sequence[str]) -> list[str]:
    """The command line that runs another in namespaces of its own; empty where that can't be.

    Args:
        arguments: the other command line.
    """
    found = find()
    if not found:
        return []
    wrapped = [found, *_OPTIONS, *_FILES, "--"]
    try:
        probe = subprocess.run([*wrapped, "true"], capture_output=True, timeout=_PROBE_S, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [*wrapped, *arguments] if probe.returncode == 0 else []
