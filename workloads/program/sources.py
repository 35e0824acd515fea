"""Where programs come from: the workloads whose chunks can be disputed operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from protocols.effects import Case
from workloads.errors import InputRefused
from workloads.program import lm
from workloads.program.program import Program
from workloads.program.referee import Rebuilt

__all__ = ["REBUILDERS", "Disputable", "rebuild"]


@runtime_checkable
class Disputable(Protocol):
    """What a workload offers beyond `workloads.workload.Workload` for its chunks to be disputed."""

    def chunk_program(self, input: bytes, units: Sequence[int], chunk: int) -> tuple[Program, list[Tensor]]:
        """The program of one chunk and its inputs.

        Args:
            input: the job's.
            units: the output, at least as far as the chunk's end.
            chunk: its number.

        Returns:
            A program that ends in the digest of the chunk, as `recompute` gives it, and a value for each of
            its inputs. Both follow from the arguments, the model and the profile alone.

        Raises:
            WorkloadRefused: the job has no such chunk, or the profile isn't exact.
        """

    def context(self) -> bytes:
        """What `rebuild` needs to know of the model.

        Raises:
            ModelRefused: it exceeds its limit.
        """


REBUILDERS: dict[str, Callable[[Case], Rebuilt]] = {"lm.generate": lm.rebuild}
"""How a judge derives a chunk's program without the model, by workload."""


def rebuild(case: Case) -> Rebuilt:
    """The program of a case's chunk.

    Raises:
        WorkloadRefused: the workload has no programs, or as its own rule.
    """
    found = REBUILDERS.get(case.workload)
    if found is None:
        raise InputRefused(f"workload {case.workload!r} has no programs")
    return found(case)
