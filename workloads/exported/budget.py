"""What one run of a client's program costs, decided from shapes alone, and what it may cost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from workloads.errors import ProgramRefused
from workloads.program.interpreter import infer
from workloads.program.limits import Limits
from workloads.program.operators.registry import find
from workloads.program.program import PARAMETER, Program, last_uses

__all__ = ["BATCH_WORK_MAX", "HELD_BYTES_MAX", "STEP_LIMITS", "Budget", "budget_of"]

STEP_LIMITS = Limits(value_bytes_max=256 << 20, work_max=1 << 35)
"""Of one operator: no more than a referee takes from strangers, or there would be no dispute about it."""

BATCH_WORK_MAX = 1 << 38
"""Multiply-adds, or elements touched, of one run: some minutes of a core, and the least a verifier redoes."""

HELD_BYTES_MAX = 2 << 30
"""Of all values that a run holds at once, as float64."""

_BYTES_PER_ELEMENT = 8


@dataclass(frozen=True, slots=True)
class Budget:
    """The cost of one run.

    Args:
        work: multiply-adds, or elements touched.
        held_bytes: the most that it holds at once, values as float64.
        parameter_bytes: of the tensors, as they are stored.
        by_operator: work of each.
    """

    work: int
    held_bytes: int
    parameter_bytes: int
    by_operator: Counter[str]


def budget_of(program: Program) -> Budget:
    """The cost of one run of a program.

    Raises:
        ProgramRefused: a step breaks a rule, or the limits above are exceeded; names the first step.
    """
    specs = infer(program, STEP_LIMITS)
    first, last = len(program.inputs), last_uses(program)
    held = sum(spec.elements for spec in specs[:first]) * _BYTES_PER_ELEMENT
    most, work = held, Counter[str]()
    for index, step in enumerate(program.steps):
        found = find(step.op)
        taken = [specs[value] for value in step.inputs]
        output = specs[first + index]
        work[step.op] += found.work(*taken, output=output, **found.parse(step.attributes))
        held += output.elements * _BYTES_PER_ELEMENT
        most = max(most, held)
        if most > HELD_BYTES_MAX:
            raise ProgramRefused(f"step {index} ({step.op}): {most} bytes held exceed {HELD_BYTES_MAX}")
        if work.total() > BATCH_WORK_MAX:
            raise ProgramRefused(
                f"step {index} ({step.op}): {work.total()} multiply-adds exceed {BATCH_WORK_MAX}"
            )
        for value in {*step.inputs, first + index}:
            if value >= first and last[value] in {index, -1}:
                held -= specs[value].elements * _BYTES_PER_ELEMENT
    stored = sum(item.spec.size_bytes for item in program.inputs if item.source == PARAMETER)
    return Budget(work.total(), most, stored, work)
