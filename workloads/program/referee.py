"""Judging one value of a trace that somebody signed, without the model.

What the value must be follows from the contract, from the model's manifest, or from running one operator on
inputs that accuser and accused agree on. A referee decides nothing that it can't show: a case whose parts
don't fit, or an operator that is too large or refuses its inputs, is inconclusive and harms nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protocols.effects import PROGRAM_INDEX, Case
from protocols.events import Finding
from protocols.limits import OPERATOR_BYTES_MAX
from protocols.messages import OpenedValue
from protocols.values import value_bytes as size_of
from workloads.errors import WorkloadRefused
from workloads.program.interpreter import execute, infer
from workloads.program.limits import Limits
from workloads.program.program import DTYPES, Program, ValueSpec, spec_of, value_bytes, value_digest

__all__ = ["REFEREE_LIMITS", "Rebuilt", "judge", "opened_value", "read_opened"]

REFEREE_LIMITS = Limits(value_bytes_max=256 << 20, work_max=1 << 35)
"""A stranger's operator may cost a referee some seconds and a quarter of a gibibyte a value, no more."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A chunk's program as the contract and the model's manifest give it.

    Args:
        program: what every peer must have run.
        inputs: value digests of its inputs.
    """

    program: Program
    inputs: tuple[bytes, ...]


def judge(case: Case, rebuild: Callable[[Case], Rebuilt]) -> tuple[Finding, str]:
    """What is true of the value that ``case`` is about.

    Args:
        case: see `protocols.effects.Case`; that its values have the accused's digests was checked by those
            who know the signed root.
        rebuild: derives the chunk's program; raises `WorkloadRefused` if the case has none.

    Returns:
        The finding, and operator or rule for people.
    """
    try:
        rebuilt = rebuild(case)
        program = rebuilt.program
        is_program = (case.program, case.values_total) == (program.digest, program.value_count)
        if case.index == PROGRAM_INDEX:
            return _verdict(is_program), f"the program has {program.value_count} values"
        if not is_program:
            return Finding.INCONCLUSIVE, "the trace is of another program, which is to be judged first"
        if not 0 <= case.index < program.value_count:
            return Finding.INCONCLUSIVE, f"value {case.index} of {program.value_count} doesn't exist"
        step = case.index - len(program.inputs)
        if step < 0:
            given = program.inputs[case.index]
            truth = rebuilt.inputs[case.index]
            return _verdict(truth == case.claimed), f"{given.source} {given.name}"
        output = _execute(program, step, case.values)
    except WorkloadRefused as error:
        return Finding.INCONCLUSIVE, str(error)
    return _verdict(value_digest(output) == case.claimed), f"step {step} {program.steps[step].op}"


def opened_value(index: int, value: Tensor) -> OpenedValue:
    """A value as it is shown."""
    spec = spec_of(value)
    return OpenedValue(index, spec.dtype, spec.shape, value_bytes(value))


def read_opened(opened: OpenedValue) -> Tensor:
    """The tensor that was shown.

    Raises:
        WorkloadRefused: dtype, shape and bytes don't fit.
    """
    spec = ValueSpec(opened.dtype, opened.shape)
    if len(opened.data) != size_of(spec.dtype, spec.shape):
        raise WorkloadRefused(f"value {opened.index} of {len(opened.data)} bytes can't be {spec}")
    if not opened.data:
        return torch.empty(spec.shape, dtype=DTYPES[spec.dtype])
    return torch.frombuffer(bytearray(opened.data), dtype=DTYPES[spec.dtype]).reshape(spec.shape)


def _execute(program: Program, step: int, opened: Sequence[OpenedValue]) -> Tensor:
    wanted = program.steps[step].inputs
    if [value.index for value in opened] != sorted(set(wanted)):
        raise WorkloadRefused(f"step {step} takes values {sorted(set(wanted))}")
    if sum(len(value.data) for value in opened) > OPERATOR_BYTES_MAX:
        raise WorkloadRefused(f"step {step} was shown more than {OPERATOR_BYTES_MAX} bytes")
    specs = infer(program)
    values = {}
    for value in opened:
        tensor = read_opened(value)
        if spec_of(tensor) != specs[value.index]:
            raise WorkloadRefused(f"value {value.index} must be {specs[value.index]}")
        values[value.index] = tensor
    return execute(program.steps[step], [values[index] for index in wanted], REFEREE_LIMITS)


def _verdict(is_true: bool) -> Finding:
    return Finding.ACQUITTED if is_true else Finding.GUILTY
