"""The arguments of an exported graph's nodes, taken by name and type, and the rules that take them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workloads.errors import ProgramRefused
from workloads.program.builder import Builder, Value
from workloads.program.operators.registry import FLOATING

__all__ = ["OPERATORS", "Arguments", "Ref", "Rule", "apply", "rule", "to_dimension"]


@dataclass(frozen=True, slots=True)
class Ref:
    """A value of the program, where a graph's argument is a tensor.

    Args:
        value: its number.
        epsilon: the spacing of one in the type that the graph gives it, 0 if that isn't floating.
    """

    value: Value
    epsilon: float = 0.0


class Arguments:
    """The arguments of one node by name; each that a rule doesn't take must have its default."""

    def __init__(self, builder: Builder, given: Mapping[str, Any], precision: str) -> None:
        self.builder = builder
        self.precision = precision
        self._given = dict(given)

    def tensor(self, name: str = "self") -> Value:
        """A tensor, which must be given."""
        return self.ref(name).value

    def ref(self, name: str) -> Ref:
        """A tensor and its type in the graph."""
        found = self._given.pop(name, None)
        if not isinstance(found, Ref):
            raise ProgramRefused(f"{name} must be a tensor, got {found!r}")
        return found

    def optional(self, name: str) -> Value | None:
        """A tensor or None."""
        if self._given.get(name) is None:
            self._given.pop(name, None)
            return None
        return self.tensor(name)

    def tensors(self, name: str) -> list[Value]:
        """A list of tensors."""
        found = self._given.pop(name, None)
        if not isinstance(found, list) or not all(isinstance(item, Ref) for item in found):
            raise ProgramRefused(f"{name} must be tensors, got {found!r}")
        return [item.value for item in found]

    def optional_tensors(self, name: str) -> list[Value | None]:
        """A list of tensors, some of which may be None."""
        found = self._given.pop(name, None)
        if not isinstance(found, list) or not all(item is None or isinstance(item, Ref) for item in found):
            raise ProgramRefused(f"{name} must be tensors, got {found!r}")
        return [None if item is None else item.value for item in found]

    def integer(self, name: str, default: int | None = None) -> int:
        """An integer."""
        found = self._given.pop(name, default)
        if type(found) is not int:
            raise ProgramRefused(f"{name} must be an integer, got {found!r}")
        return found

    def integers(self, name: str, default: Sequence[int] | None = None) -> list[int]:
        """A list of integers; None is the default."""
        found = self._given.pop(name, None)
        if found is None:
            found = default
        if isinstance(found, int):
            found = [found]
        if not isinstance(found, Sequence) or not all(type(item) is int for item in found):
            raise ProgramRefused(f"{name} must be integers, got {found!r}")
        return list(found)

    def number(self, name: str, default: float | None = None) -> float | int:
        """A finite number."""
        found = self._given.pop(name, None)
        if found is None:
            found = default
        if not isinstance(found, int | float) or isinstance(found, bool) or not math.isfinite(found):
            raise ProgramRefused(f"{name} must be a finite number, got {found!r}")
        return found

    def numbers(self, name: str) -> list[float | int]:
        """A list of finite numbers."""
        found = self._given.pop(name, None)
        if not isinstance(found, list) or not all(
            type(item) in {int, float} and math.isfinite(item) for item in found
        ):
            raise ProgramRefused(f"{name} must be finite numbers, got {found!r}")
        return found

    def flag(self, name: str, default: bool = False) -> bool:
        """A truth value."""
        found = self._given.pop(name, default)
        if type(found) is not bool:
            raise ProgramRefused(f"{name} must be true or false, got {found!r}")
        return found

    def word(self, name: str, default: str) -> str:
        """A word."""
        found = self._given.pop(name, default)
        if not isinstance(found, str):
            raise ProgramRefused(f"{name} must be text, got {found!r}")
        return found

    def operand(self, name: str) -> Value:
        """A tensor, or a number made into one."""
        if isinstance(self._given.get(name), Ref):
            return self.tensor(name)
        number = self.number(name)
        kind = "int64" if isinstance(number, int) else "float64"
        return self.builder.apply("full", shape=(), value=float(number), dtype=kind)

    def dimension(self, rank: int, name: str = "dim", default: int | None = None) -> int:
        """One of ``rank`` dimensions, counted from the end if negative."""
        return to_dimension(self.integer(name, default), rank)

    def dimensions(self, rank: int, name: str = "dim") -> list[int]:
        """Some of ``rank`` dimensions, sorted; all if none is named."""
        return sorted(to_dimension(dim, rank) for dim in self.integers(name, ()) or range(rank))

    def has(self, name: str) -> bool:
        """Whether the argument was given."""
        return name in self._given

    def ignore(self, *names: str) -> None:
        """Arguments that change no value."""
        for name in names:
            self._given.pop(name, None)

    def none(self, *names: str) -> None:
        """Arguments that must not be given."""
        for name in names:
            found = self._given.pop(name, None)
            if found not in (None, False, 0, [], 0.0):
                raise ProgramRefused(f"{name}={found!r} isn't supported")

    def check_used(self) -> None:
        """See that every argument was taken."""
        if self._given:
            raise ProgramRefused(f"argument {min(self._given)!r} isn't supported")

    def shape(self, value: Value) -> tuple[int, ...]:
        """Of a value."""
        return self.builder.shape(value)

    def real(self, value: Value) -> Value:
        """The value as a floating one."""
        return value if self.builder.specs[value].dtype in FLOATING else self._double(value)

    def alike(self, *values: Value) -> list[Value]:
        """The values as they are if they have one type, else all as float64."""
        if len({self.builder.specs[value].dtype for value in values}) == 1:
            return list(values)
        return [self._double(value) for value in values]

    def _double(self, value: Value) -> Value:
        if self.builder.specs[value].dtype == "float64":
            return value
        return self.builder.apply("cast", value, dtype="float64")


Rule = Callable[[Arguments], Value | list[Value] | None]

OPERATORS: dict[str, Rule] = {}
"""Rules by the name of an operator and its overload, without the namespace ``aten``."""


def apply(target: str, arguments: Arguments) -> list[Value]:
    """Write the steps of one node.

    Args:
        target: its operator, as the graph names it.
        arguments: its arguments.

    Returns:
        One value for each output.

    Raises:
        ProgramRefused: the operator isn't listed, or not with these arguments.
    """
    name = target.removeprefix("torch.ops.aten.")
    found = OPERATORS.get(name) if target.startswith("torch.ops.aten.") else None
    if found is None:
        hint = ""
        if name.partition(".")[0].endswith("_"):
            hint = "; run_decompositions({}) before saving turns what works in place into what doesn't"
        raise ProgramRefused(f"operator {target} isn't among those of exported programs{hint}")
    try:
        result = found(arguments)
        arguments.check_used()
    except ProgramRefused as error:
        raise ProgramRefused(f"operator {target}: {error}") from error
    if result is None:
        return []
    return result if isinstance(result, list) else [result]


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the decorated function for these operators."""

    def register(function: Rule) -> Rule:
        for name in names:
            OPERATORS[name] = function
        return function

    return register


def to_dimension(dim: int, rank: int) -> int:
    """One of ``rank`` dimensions, counted from the end if negative.

    Raises:
        ProgramRefused: there is no such dimension.
    """
    if not -rank <= dim < rank:
        raise ProgramRefused(f"dim={dim} must be in [{-rank}, {rank})")
    return dim % rank
