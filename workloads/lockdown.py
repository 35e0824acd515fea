"""What a worker process gives up before it runs anybody's job. Call before torch is imported.

It has no network to give up to: the node passes it two pipes and nothing else. These limits keep a faulty or
hostile job from filling disk, descriptors or memory, and from outliving the node.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

__all__ = ["THREAD_VARIABLES", "apply_limits", "die_with_parent", "protect_pipes"]

# BLAS libraries read these when they are first loaded.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_PR_SET_PDEATHSIG = 1
_DESCRIPTORS_MAX = 256
_DESCRIPTORS_CLOSED_TO = 4096


def protect_pipes() -> tuple[int, int]:
    """Take the command and event pipes off descriptors 0 and 1 and close everything else that was inherited.

    A library that prints then writes to stderr instead of into the frames; one that reads stdin sees its end.

    Returns:
        Descriptors to read commands from and to write events to.
    """
    os.closerange(3, _DESCRIPTORS_CLOSED_TO)
    commands, events = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    return commands, events


def apply_limits(memory_bytes_max: int) -> None:
    """No core dumps, no file growth, few descriptors, bounded memory.

    Args:
        memory_bytes_max: private memory of the process. Not its address space, of which torch and drivers
            reserve far more than they use.
    """
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_NOFILE, _DESCRIPTORS_MAX)
    _limit(resource.RLIMIT_DATA, memory_bytes_max)
    # A write beyond RLIMIT_FSIZE then fails instead of killing the process.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def die_with_parent(parent: int, death: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send ``death`` when ``parent`` dies (Linux); elsewhere a closed pipe ends a worker."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, death, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    ceiling = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (ceiling, ceiling))
