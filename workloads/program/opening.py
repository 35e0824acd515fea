"""Showing what went into one operator of a program, by running only what leads to it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from workloads.program.interpreter import check_values, execute
from workloads.program.limits import Limits
from workloads.program.program import Program

__all__ = ["open_inputs"]


def open_inputs(
    program: Program, values: Sequence[Tensor], index: int, limits: Limits | None = None
) -> dict[int, Tensor]:
    """The values that the operator behind value ``index`` takes.

    Args:
        program: what was run.
        values: one for each of its inputs.
        index: of a value; nothing goes into an input.
        limits: what one step may cost.

    Returns:
        Value numbers, rising, and values.

    Raises:
        ValueError: the program has no such value.
        ProgramRefused: a value isn't what its input must be, or as `execute`.
        NumericsRefused: a value left the range of exact arithmetic.
    """
    if not 0 <= index < program.value_count:
        raise ValueError(f"index must be in [0, {program.value_count}), got {index}")
    check_values(program, values)
    first = len(program.inputs)
    if index < first:
        return {}
    wanted = set(program.steps[index - first].inputs)
    last = _last_uses_towards(program, wanted)
    held = dict(enumerate(values))
    for number in sorted(last):
        if number < first:
            continue
        step = program.steps[number - first]
        held[number] = execute(step, [held[value] for value in step.inputs], limits)
        for value in set(step.inputs):
            if last[value] == number and value not in wanted:
                del held[value]
    return {value: held[value] for value in sorted(wanted)}


def _last_uses_towards(program: Program, wanted: set[int]) -> dict[int, int]:
    """Each value that ``wanted`` depends on, and the last one of these made from it, or -1."""
    first = len(program.inputs)
    last = dict.fromkeys(wanted, -1)
    for number in range(max(wanted, default=-1), first - 1, -1):
        if number in last:
            for value in program.steps[number - first].inputs:
                last.setdefault(value, number)
    return last
