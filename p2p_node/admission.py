"""What fits on this machine, decided before anything is promised.

A worker has a fixed share of the machine's memory, which the kernel holds it to. A model whose files alone
are larger is not offered, and a job that wants more is not bid on; what a run turns out to need beyond its
share ends it as ``out-of-memory``.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2p_node.models import Served, size_bytes

__all__ = ["WORKERS", "fitting", "worker_memory_bytes"]

WORKERS = 2
"""Of a node: one that works and one that checks."""

_RESERVE_BYTES_MIN = 1 << 30
_RESERVE_FRACTION = 8
_GIB = 1 << 30


def worker_memory_bytes(machine_bytes: int) -> int:
    """What one worker may take of a machine's memory: half of it, after an eighth for its owner.

    Args:
        machine_bytes: all of it; of this at least 1 GiB stays the owner's, where there are 2 or more.
    """
    reserve = min(max(machine_bytes // _RESERVE_FRACTION, _RESERVE_BYTES_MIN), machine_bytes // 2)
    return (machine_bytes - reserve) // WORKERS


def fitting(served: Sequence[Served], worker_bytes: int) -> tuple[list[Served], list[str]]:
    """The models that a worker can hold, and why not the others.

    Args:
        served: all models here, with their kinds of work.
        worker_bytes: what one worker may take.
    """
    sizes = [(one, size_bytes(one[1])) for one in served]
    declined = [
        f"{model.name}: memory {worker_bytes / _GIB:.1f} GiB < {size / _GIB:.1f} GiB of files"
        for (_, model), size in sizes
        if size > worker_bytes
    ]
    return [one for one, size in sizes if size <= worker_bytes], declined
