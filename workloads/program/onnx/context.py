"""One node's inputs and attributes as rules take them, and the steps that they write."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from workloads.errors import ProgramRefused
from workloads.program import aten
from workloads.program.aten import Arguments
from workloads.program.aten.arguments import to_dimension
from workloads.program.builder import Builder, Value
from workloads.program.onnx.model import Node
from workloads.program.operators.registry import FLOATING
from workloads.program.program import spec_of

__all__ = ["OPERATORS", "Context", "Known", "Operand", "Rule", "rule"]


@dataclass(frozen=True, slots=True)
class Known:
    """A tensor that is known beforehand.

    Args:
        tensor: what it holds.
        value: its number in the program, if it has one.
    """

    tensor: Tensor
    value: Value | None = None


Operand = Value | Known
"""A tensor in the graph."""


class Context:
    """What a rule sees of its node; each attribute that it doesn't take must not be there.

    Args:
        builder: takes the steps.
        node: the operator.
        operands: its inputs, None where one is left out.
        opset: version of the operators.
        precision: of contractions.
    """

    def __init__(
        self,
        builder: Builder,
        node: Node,
        operands: Sequence[Operand | None],
        opset: int,
        precision: str,
    ) -> None:
        self.builder = builder
        self.node = node
        self.opset = opset
        self.precision = precision
        self._operands = list(operands)
        self._attributes: dict[str, Any] = dict(node.attributes)

    # --- Inputs ----------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """Inputs that are named, left out or not."""
        return len(self._operands)

    def has(self, place: int) -> bool:
        """Whether an input is there."""
        return place < len(self._operands) and self._operands[place] is not None

    def value(self, place: int = 0) -> Value:
        """An input as a value of the program."""
        if not self.has(place):
            raise ProgramRefused(f"input {place} is missing")
        found = self._operands[place]
        if isinstance(found, Known):
            return found.value if found.value is not None else self.constant(found.tensor)
        assert found is not None  # noqa: S101
        return found

    def values(self) -> list[Value]:
        """All inputs, none of which may be left out."""
        return [self.value(place) for place in range(self.count)]

    def known(self, place: int) -> Tensor | None:
        """What an input holds, if it is there.

        Raises:
            ProgramRefused: only a run would tell.
        """
        if not self.has(place):
            return None
        found = self._operands[place]
        if not isinstance(found, Known):
            raise ProgramRefused(f"input {place} must be constant: sizes and places must be fixed")
        return found.tensor

    def is_known(self, place: int) -> bool:
        """Whether what an input holds is known beforehand."""
        return place < len(self._operands) and isinstance(self._operands[place], Known)

    def sizes(self, place: int, attribute: str = "") -> list[int] | None:
        """Integers that newer versions take as an input and older ones as an attribute."""
        if attribute and attribute in self._attributes:
            return self.integers(attribute)
        found = self.known(place)
        if found is None:
            return None
        if found.is_floating_point():
            raise ProgramRefused(f"input {place} must be integers")
        return [int(number) for number in found.reshape(-1).tolist()]

    def number(self, place: int) -> float | None:
        """A single number, if it is there."""
        found = self.known(place)
        if found is None:
            return None
        if found.numel() != 1:
            raise ProgramRefused(f"input {place} must be one number")
        return float(found.reshape(()).item())

    # --- Attributes ------------------------------------------------------------------------------

    def integer(self, name: str, default: int | None = None) -> int:
        """An integer."""
        found = self._attributes.pop(name, default)
        if type(found) is not int:
            raise ProgramRefused(f"{name} must be an integer, got {str(found)[:40]}")
        return found

    def real(self, name: str, default: float) -> float:
        """A finite number."""
        found = self._attributes.pop(name, default)
        if type(found) not in {int, float} or not math.isfinite(found):
            raise ProgramRefused(f"{name} must be a finite number, got {str(found)[:40]}")
        return float(found)

    def integers(self, name: str, default: Sequence[int] | None = None) -> list[int]:
        """Integers."""
        found = self._attributes.pop(name, default)
        if not isinstance(found, list | tuple | range) or not all(type(item) is int for item in found):
            raise ProgramRefused(f"{name} must be integers, got {str(found)[:40]}")
        return list(found)

    def word(self, name: str, default: str) -> str:
        """A word."""
        found = self._attributes.pop(name, default)
        if not isinstance(found, str):
            raise ProgramRefused(f"{name} must be a word, got {str(found)[:40]}")
        return found

    def tensor(self, name: str, default: Tensor) -> Tensor:
        """A tensor of one number."""
        found = self._attributes.pop(name, default)
        if not isinstance(found, Tensor) or found.numel() != 1:
            raise ProgramRefused(f"{name} must be one number")
        return found

    def put_back(self, **taken: Sequence[int]) -> None:
        """Attributes that were taken, for a rule that takes them again."""
        self._attributes.update(taken)

    def only(self, name: str, *allowed: Any) -> None:
        """See that an attribute isn't there, or has one of these values."""
        if name in self._attributes and self._attributes.pop(name) not in allowed:
            raise ProgramRefused(f"{name}={str(self.node.attributes[name])[:40]} isn't supported")

    def ignore(self, *names: str) -> None:
        """Attributes that change no value."""
        for name in names:
            self._attributes.pop(name, None)

    def axis(self, rank: int, default: int | None = None) -> int:
        """One of ``rank`` dimensions."""
        return to_dimension(self.integer("axis", default), rank)

    def check_used(self) -> None:
        """See that every attribute was taken."""
        if self._attributes:
            raise ProgramRefused(f"attribute {min(self._attributes)!r} isn't supported")

    # --- Steps -----------------------------------------------------------------------------------

    def shape(self, value: Value) -> tuple[int, ...]:
        """Of a value."""
        return self.builder.shape(value)

    def dtype(self, value: Value) -> str:
        """Of a value."""
        return self.builder.specs[value].dtype

    def apply(self, op: str, *inputs: Value, **attributes: Any) -> Value:
        """Add one step of the program."""
        return self.builder.apply(op, *inputs, **attributes)

    def aten(self, target: str, given: Mapping[str, Any]) -> Value:
        """Add what an operator of exported graphs is: many of ONNX's are the same by another name."""
        (value,) = aten.apply(f"torch.ops.aten.{target}", Arguments(self.builder, given, self.precision))
        return value

    def reshaped(self, x: Value, shape: Sequence[int]) -> Value:
        """A value in another shape."""
        return x if tuple(shape) == self.shape(x) else self.apply("reshape", x, shape=tuple(shape))

    def floating(self, x: Value) -> Value:
        """A value as float64, if it isn't floating already."""
        return x if self.dtype(x) in FLOATING else self.apply("cast", x, dtype="float64")

    def alike(self, *values: Value) -> list[Value]:
        """Values of one type: as they are, or all floating."""
        if len({self.dtype(value) for value in values}) == 1:
            return list(values)
        return [self.floating(value) for value in values]

    def constant(self, tensor: Tensor) -> Value:
        """A value for what is known: one step, or one for each number."""
        spec = spec_of(tensor)
        if spec.dtype in FLOATING:
            tensor, spec = tensor.double(), spec_of(tensor.double())
        numbers = tensor.reshape(-1).tolist()
        if len(set(numbers)) == 1 or not spec.shape:
            return self.apply("full", shape=spec.shape, value=float(numbers[0]), dtype=spec.dtype)
        parts = [self.apply("full", shape=(1,), value=float(each), dtype=spec.dtype) for each in numbers]
        return self.reshaped(self.apply("concat", *parts, dim=0), spec.shape)


Rule = Callable[[Context], Operand | list[Value]]

OPERATORS: dict[str, Rule] = {}
"""Rules by operator."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the decorated function for these operators."""

    def register(function: Rule) -> Rule:
        for name in names:
            OPERATORS[name] = function
        return function

    return register
