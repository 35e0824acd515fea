"""Resource limits: a faulty or hostile run fills neither disk nor descriptors nor memory."""

from __future__ import annotations

import contextlib
import resource
import signal
from pathlib import Path

from workloads.sandbox.layers import LayerReport

__all__ = ["apply"]

_DESCRIPTORS_MAX = 256
_TASKS_MAX = 256
_MIB = 1 << 20
_OOM_SCORE_ADJ = "800"


def apply(memory_bytes_max: int, *, has_own_users: bool) -> LayerReport:
    """No core dumps, no file growth, few descriptors, bounded memory, and first in line for the OOM killer.

    Args:
        memory_bytes_max: private memory of the process. Not its address space, of which torch and drivers
            reserve far more than they use.
        has_own_users: whether the process lives in a user namespace of its own. Elsewhere the kernel counts
            all that the user runs, and a bound would hit threads because of a full desktop.
    """
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_NOFILE, _DESCRIPTORS_MAX)
    _limit(resource.RLIMIT_DATA, memory_bytes_max)
    if has_own_users:
        _limit(resource.RLIMIT_NPROC, _TASKS_MAX)
    # A write beyond RLIMIT_FSIZE then fails instead of killing the process.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        # A machine that runs out of memory shall lose the run, not the node or the owner's work.
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE_ADJ)
    return LayerReport(
        "limits",
        True,
        f"{memory_bytes_max // _MIB} MiB of memory, {_DESCRIPTORS_MAX} descriptors, no byte of any file",
    )


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    ceiling = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (ceiling, ceiling))
