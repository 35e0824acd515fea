"""Running programs: shapes first, then values one by one, each dropped after its last use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from workloads.errors import NumericsRefused, ProgramRefused
from workloads.exact.quantise import EXPONENT_MAX
from workloads.program.limits import Limits
from workloads.program.operators.registry import Operator, find
from workloads.program.program import (
    DIGEST_SPEC,
    DTYPES,
    Program,
    Step,
    ValueSpec,
    last_uses,
    spec_of,
    value_digest,
)

__all__ = ["check_range", "execute", "infer", "infer_step", "run", "trace"]

_BYTES_PER_ELEMENT_MAX = 8
_CEILING = 2.0**EXPONENT_MAX


def infer_step(step: Step, specs: Sequence[ValueSpec], limits: Limits | None = None) -> ValueSpec:
    """What a step returns for inputs of these specs, decided without running it.

    Args:
        step: the step.
        specs: of its inputs, in its order.
        limits: what it may cost.

    Raises:
        ProgramRefused: the operator is unknown, an attribute or input breaks its rules, or it costs too much.
    """
    found = find(step.op)
    return _infer(found, step, specs, found.parse(step.attributes), limits or Limits())


def _infer(
    found: Operator, step: Step, specs: Sequence[ValueSpec], attributes: dict[str, object], limits: Limits
) -> ValueSpec:
    if not found.inputs_min <= len(specs) <= found.inputs_max:
        raise ProgramRefused(
            f"{step.op} takes {found.inputs_min} to {found.inputs_max} inputs, got {len(specs)}"
        )
    try:
        output = found.infer(*specs, **attributes)
    except ProgramRefused as error:
        shapes = ", ".join(f"{spec.dtype}{list(spec.shape)}" for spec in specs)
        raise ProgramRefused(f"{step.op} of {shapes or 'nothing'}: {error}") from error
    for spec in (*specs, output):
        size = spec.elements * _BYTES_PER_ELEMENT_MAX
        if size > limits.value_bytes_max:
            raise ProgramRefused(
                f"{step.op} has a value of {size} bytes as float64, more than {limits.value_bytes_max}"
            )
    work = found.work(*specs, output=output, **attributes)
    if work > limits.work_max:
        raise ProgramRefused(f"{step.op} is {work} multiply-adds, more than {limits.work_max}")
    return output


def infer(program: Program, limits: Limits | None = None) -> tuple[ValueSpec, ...]:
    """Specs of all values of a program.

    Raises:
        ProgramRefused: a step breaks a rule, or the last value isn't a digest.
    """
    specs = [item.spec for item in program.inputs]
    for index, step in enumerate(program.steps):
        try:
            specs.append(infer_step(step, [specs[value] for value in step.inputs], limits))
        except ProgramRefused as error:
            raise ProgramRefused(f"step {index}: {error}") from error
    if specs[-1] != DIGEST_SPEC:
        raise ProgramRefused(f"program ends in {specs[-1]}, must end in {DIGEST_SPEC}")
    return tuple(specs)


def execute(step: Step, inputs: Sequence[Tensor], limits: Limits | None = None) -> Tensor:
    """Run one operator, as a referee does for strangers: its cost is decided before it runs.

    Args:
        step: the operator and its attributes.
        inputs: its inputs; left as they are.
        limits: what it may cost.

    Returns:
        Its output, contiguous, of the spec that `infer_step` gives.

    Raises:
        ProgramRefused: as `infer_step`, or an index among the values is out of range.
        NumericsRefused: an input holds what exact arithmetic doesn't cover.
    """
    for number, value in enumerate(inputs):
        check_range(value, f"input {number} of {step.op}")
    return _execute(step, inputs, limits or Limits())


def check_range(value: Tensor, name: str) -> None:
    """Refuse floating-point values that exact arithmetic doesn't cover.

    Raises:
        NumericsRefused: ``value`` holds NaN, Inf or a magnitude above 2**500.
    """
    if value.is_floating_point() and value.numel():
        low, high = torch.aminmax(value)
        # Written so that NaN fails too.
        if not (float(low) >= -_CEILING and float(high) <= _CEILING):
            raise NumericsRefused(f"{name} holds NaN, Inf or a magnitude above 2**{EXPONENT_MAX}")


def _execute(step: Step, inputs: Sequence[Tensor], limits: Limits) -> Tensor:
    found = find(step.op)
    attributes = found.parse(step.attributes)
    expected = _infer(found, step, [spec_of(value) for value in inputs], attributes, limits)
    with torch.no_grad():
        output = found.compute(*inputs, **attributes)
    check_range(output, f"output of {step.op}")
    if output.dtype != DTYPES[expected.dtype] or tuple(output.shape) != expected.shape:
        raise AssertionError(f"{step.op} returned {spec_of(output)}, must be {expected}")
    return output.contiguous()


def run(program: Program, values: Sequence[Tensor], limits: Limits | None = None) -> Iterator[Tensor]:
    """Run a program and yield each step's output in order.

    Args:
        program: what to run.
        values: one for each of its inputs.
        limits: what one step may cost.

    Raises:
        ProgramRefused: a value isn't what its input must be, or as `execute`.
        NumericsRefused: a value left the range of exact arithmetic.
    """
    check_values(program, values)
    held: list[Tensor | None] = list(values)
    last = last_uses(program)
    for index, step in enumerate(program.steps):
        # The type checker can't know that nothing is taken after its last use.
        inputs = [held[value] for value in step.inputs]
        output = _execute(step, inputs, limits or Limits())  # type: ignore[arg-type]
        for value in step.inputs:
            if last[value] == index:
                held[value] = None
        held.append(output if last[len(held)] >= 0 else None)
        yield output


def trace(program: Program, values: Sequence[Tensor], limits: Limits | None = None) -> list[bytes]:
    """The value digests of all values of a program, inputs first: what a dispute is about.

    Raises:
        ProgramRefused: as `run`.
        NumericsRefused: as `run`.
    """
    check_values(program, values)
    digests = [value_digest(value) for value in values]
    digests.extend(value_digest(output) for output in run(program, values, limits))
    return digests


def check_values(program: Program, values: Sequence[Tensor]) -> None:
    """See that there is a value of the right spec for each input.

    Raises:
        ProgramRefused: there isn't.
    """
    if len(values) != len(program.inputs):
        raise ProgramRefused(f"program takes {len(program.inputs)} values, got {len(values)}")
    for item, value in zip(program.inputs, values, strict=True):
        if spec_of(value) != item.spec:
            raise ProgramRefused(f"input {item.name!r} is {spec_of(value)}, must be {item.spec}")
        check_range(value, f"input {item.name!r}")
