"""Disputes as a worker does its part in them: tracing a chunk, opening what one operator took, judging."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from protocols.effects import PROGRAM_INDEX, Case
from protocols.events import Finding
from protocols.limits import OPERATOR_BYTES_MAX, TRACE_VALUES_MAX
from protocols.messages import OpenedValue
from workloads.errors import InputRefused, ProgramRefused
from workloads.exported import workload as exported
from workloads.program import lm
from workloads.program.interpreter import trace
from workloads.program.opening import open_inputs
from workloads.program.program import Program, spec_of
from workloads.program.referee import Rebuilt, judge, opened_value
from workloads.training import workload as training
from workloads.workload import Workload

__all__ = ["REBUILDERS", "Cheating", "Disputable", "judge_case", "open_chunk", "rebuild", "trace_chunk"]


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

    def context(self, input: bytes) -> bytes:
        """What `rebuild` needs to know beyond the contract, of the model or of the job's own program.

        Raises:
            WorkloadRefused: it exceeds its limit, or the input breaks a rule.
        """


@runtime_checkable
class Cheating(Protocol):
    """A workload that, for hostile test peers, can stand by what it did instead of what it should have."""

    def ran_program(self, input: bytes, units: Sequence[int], chunk: int) -> Program | None:
        """The program that was run in place of `Disputable.chunk_program`, value for value; None if honest.

        Args:
            input: as there, and so for the others.
            units: see there.
            chunk: see there.
        """


REBUILDERS: dict[str, Callable[[Case], Rebuilt]] = {
    "lm.generate": lm.rebuild,
    "program.run": exported.rebuild,
    "training.run": training.rebuild,
}
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


def trace_chunk(
    workload: Workload, input: bytes, units: Sequence[int], chunk: int
) -> tuple[bytes, tuple[bytes, ...]]:
    """The digest of a chunk's program, and of each of its values, inputs first.

    Raises:
        WorkloadRefused: the workload has no programs, or as `Disputable.chunk_program` and `trace`.
    """
    program, values = _disputable(workload).chunk_program(input, units, chunk)
    if program.value_count > TRACE_VALUES_MAX:
        raise ProgramRefused(f"program of {program.value_count} values has more than {TRACE_VALUES_MAX}")
    ran = _ran_program(workload, input, units, chunk) or program
    return program.digest, tuple(trace(ran, values))


def open_chunk(
    workload: Workload, input: bytes, units: Sequence[int], chunk: int, index: int
) -> tuple[tuple[OpenedValue, ...], bytes]:
    """What the operator behind value ``index`` took, each value once and by index, and the context.

    Raises:
        WorkloadRefused: there is no such value, what it took exceeds `OPERATOR_BYTES_MAX`, or as
            `trace_chunk`.
    """
    disputable = _disputable(workload)
    program, values = disputable.chunk_program(input, units, chunk)
    if index == PROGRAM_INDEX:
        return (), disputable.context(input)
    if not 0 <= index < program.value_count:
        raise InputRefused(f"value {index} must be in [0, {program.value_count})")
    ran = _ran_program(workload, input, units, chunk) or program
    opened = open_inputs(ran, values, index)
    size = sum(spec_of(value).size_bytes for value in opened.values())
    if size > OPERATOR_BYTES_MAX:
        raise ProgramRefused(f"value {index} is made from {size} bytes, more than {OPERATOR_BYTES_MAX}")
    return tuple(opened_value(number, value) for number, value in opened.items()), disputable.context(input)


def judge_case(case: Case) -> tuple[Finding, str]:
    """See `workloads.program.referee.judge`."""
    return judge(case, rebuild)


def _ran_program(workload: Workload, input: bytes, units: Sequence[int], chunk: int) -> Program | None:
    return workload.ran_program(input, units, chunk) if isinstance(workload, Cheating) else None


def _disputable(workload: Workload) -> Disputable:
    if not isinstance(workload, Disputable):
        raise InputRefused(f"{type(workload).__name__} has no programs")
    return workload
