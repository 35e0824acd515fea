"""Writing programs: each call adds one step and returns the number of its value."""

from __future__ import annotations

from collections.abc import Sequence

from workloads.errors import ProgramRefused
from workloads.program.interpreter import infer_step
from workloads.program.limits import PROGRAM_BYTES_MAX, STEPS_MAX, Limits
from workloads.program.program import Attribute, Program, ProgramInput, Step, ValueSpec

__all__ = ["Argument", "Builder", "Value", "to_attribute"]

Value = int
"""The number of a value in the program being built."""

Argument = int | float | str | bytes | bool | Sequence[int]


class Builder:
    """A program in the making. Inputs come first: none can be added once there is a step.

    Args:
        limits: what one step may cost.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self.inputs: list[ProgramInput] = []
        self.steps: list[Step] = []
        self.specs: list[ValueSpec] = []
        self._references = 0

    def input(self, name: str, spec: ValueSpec, source: str) -> Value:
        """Declare an input.

        Raises:
            ValueError: there is a step already.
        """
        if self.steps:
            raise ValueError(f"input {name!r} must come before the first step")
        self.inputs.append(ProgramInput(name, spec, source))
        self.specs.append(spec)
        return len(self.specs) - 1

    def apply(self, op: str, *inputs: Value, **attributes: Argument) -> Value:
        """Add a step; floats become ``float.hex`` text, flags 0 or 1, sequences tuples.

        Raises:
            ProgramRefused: the step breaks a rule of its operator.
        """
        plain = tuple(sorted((name, to_attribute(value)) for name, value in attributes.items()))
        return self.append(Step(op, inputs, plain))

    def append(self, step: Step) -> Value:
        """Add a step as it is.

        Raises:
            ProgramRefused: as `apply`.
        """
        # A stranger's description may ask for more steps than fit in memory.
        self._references += len(step.inputs)
        if len(self.steps) >= STEPS_MAX or self._references > PROGRAM_BYTES_MAX:
            raise ProgramRefused(f"program has more than {STEPS_MAX} steps or {PROGRAM_BYTES_MAX} references")
        spec = infer_step(step, [self.specs[value] for value in step.inputs], self._limits)
        self.steps.append(step)
        self.specs.append(spec)
        return len(self.specs) - 1

    def shape(self, value: Value) -> tuple[int, ...]:
        """The shape of a value."""
        return self.specs[value].shape

    def build(self) -> Program:
        """The program as it stands."""
        return Program(tuple(self.inputs), tuple(self.steps))


def to_attribute(value: Argument) -> Attribute:
    """A Python value as it stands in a step."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, int | str | bytes):
        return value
    return tuple(value)
