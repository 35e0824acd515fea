"""What a worker process and the one that forks it do about descriptors, threads and their parent's death."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from workloads import numeric_class

__all__ = ["THREAD_VARIABLES", "die_with_parent", "pin_numerics", "protect_pipes"]

# BLAS libraries read these when they are first loaded.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_PR_SET_PDEATHSIG = 1
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


def pin_numerics() -> None:
    """Set what libraries read when they are first loaded. Call before torch is imported.

    One thread: those that a library starts at its import would be lost in a fork. A worker that may use more
    tells torch so.
    """
    for variable in THREAD_VARIABLES:
        os.environ[variable] = "1"
    numeric_class.pin()


def die_with_parent(parent: int, death: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send ``death`` when ``parent`` dies (Linux); elsewhere a closed pipe ends a worker."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, death, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)
