"""The registry of operators: for each name its attributes, what it returns, what it costs and what it does.

An operator decides from specs and attributes alone whether it applies, what comes out and how much work it
is; only then may it run. Other modules register more operators with the `operator` decorator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from workloads.errors import ProgramRefused
from workloads.exact.quantise import EXACT14, EXACT21
from workloads.program.limits import ATTRIBUTE_BYTES_MAX, ATTRIBUTE_INTEGERS_MAX, RANK_MAX, STEP_INPUTS_MAX
from workloads.program.program import Attribute, ValueSpec

__all__ = [
    "FLOATING",
    "Kind",
    "Operator",
    "check_floating",
    "choice",
    "data",
    "find",
    "flag",
    "integer",
    "integers",
    "names",
    "operator",
    "operator_of_several",
    "precision",
    "real",
    "require",
    "text",
]

FLOATING = frozenset({"float64", "float32", "float16", "bfloat16"})

Kind = Callable[[Attribute], Any]
"""Turns an attribute into the Python value that an operator takes; raises ProgramRefused with the rule."""

Infer = Callable[..., ValueSpec]
Work = Callable[..., int]
Compute = Callable[..., Tensor]
ComputeAll = Callable[..., Sequence[Tensor]]


@dataclass(frozen=True, slots=True)
class Operator:
    """One entry.

    Args:
        name: as it stands in a step.
        inputs_min: fewest inputs.
        inputs_max: most inputs.
        attributes: the kind of each attribute; a step states all of them.
        infer: ``infer(*specs, **attributes)`` returns the output's spec or raises ProgramRefused.
        work: ``work(*specs, output=..., **attributes)`` returns multiply-adds or elements touched.
        compute: ``compute(*tensors, **attributes)`` returns the output.
        results: names of a function's several results, of which the attribute ``wanted`` picks one; else ().
        compute_all: ``compute_all(*tensors, **other_attributes)`` returns all of them, in that order.
    """

    name: str
    inputs_min: int
    inputs_max: int
    attributes: Mapping[str, Kind]
    infer: Infer
    work: Work
    compute: Compute
    results: tuple[str, ...] = ()
    compute_all: ComputeAll | None = None

    def parse(self, attributes: Sequence[tuple[str, Attribute]]) -> dict[str, Any]:
        """Python values of a step's attributes.

        Raises:
            ProgramRefused: one is missing, unknown or breaks its rule.
        """
        given = [name for name, _ in attributes]
        if given != sorted(self.attributes):
            raise ProgramRefused(f"{self.name} takes attributes {sorted(self.attributes)}, got {given}")
        parsed = {}
        for name, value in attributes:
            try:
                parsed[name] = self.attributes[name](value)
            except ProgramRefused as error:
                raise ProgramRefused(f"{self.name}: {name}={value!r} {error}") from error
        return parsed


_OPERATORS: dict[str, Operator] = {}


def operator(
    name: str,
    inputs: int | tuple[int, int],
    infer: Infer,
    work: Work | None = None,
    **attributes: Kind,
) -> Callable[[Compute], Compute]:
    """Register the decorated function as an operator.

    Args:
        name: new in the registry.
        inputs: how many it takes, or fewest and most.
        infer: as in `Operator`.
        work: as in `Operator`; by default the elements of inputs and output.
        attributes: as in `Operator`.

    Raises:
        ValueError: the name is taken, or the operator takes more inputs than a step may have.
    """
    inputs_min, inputs_max = (inputs, inputs) if isinstance(inputs, int) else inputs
    if name in _OPERATORS:
        raise ValueError(f"operator {name!r} is registered twice")
    if inputs_max > STEP_INPUTS_MAX:
        raise ValueError(f"operator {name!r} takes {inputs_max} inputs, more than {STEP_INPUTS_MAX}")

    def register(compute: Compute) -> Compute:
        _OPERATORS[name] = Operator(
            name, inputs_min, inputs_max, attributes, infer, work or _elements, compute
        )
        return compute

    return register


def operator_of_several(
    name: str,
    inputs: int | tuple[int, int],
    infer: Infer,
    work: Work,
    results: tuple[str, ...],
    **attributes: Kind,
) -> Callable[[ComputeAll], ComputeAll]:
    """Register a function of several results: each is a step of its own, by the attribute ``wanted``.

    A step has one output, so that a dispute can end at it. Whoever runs a whole program may call the function
    once for all steps that differ in ``wanted`` alone.

    Args:
        name: as in `operator`, and so for the others.
        inputs: see there.
        infer: see there; takes ``wanted`` too.
        work: see there; takes ``wanted`` too.
        results: their names, in the order in which the function returns them.
        attributes: see there.
    """

    def register(compute_all: ComputeAll) -> ComputeAll:
        def compute(*tensors: Tensor, wanted: str, **others: Any) -> Tensor:
            return compute_all(*tensors, **others)[results.index(wanted)]

        operator(name, inputs, infer, work, wanted=choice(*results), **attributes)(compute)
        _OPERATORS[name] = replace(_OPERATORS[name], results=results, compute_all=compute_all)
        return compute_all

    return register


def find(name: str) -> Operator:
    """The operator of that name.

    Raises:
        ProgramRefused: there is none.
    """
    found = _OPERATORS.get(name)
    if found is None:
        raise ProgramRefused(f"op {name!r} is not a known operator")
    return found


def names() -> list[str]:
    """All names, sorted."""
    return sorted(_OPERATORS)


def _elements(*specs: ValueSpec, output: ValueSpec, **_: Any) -> int:
    return output.elements + sum(spec.elements for spec in specs)


def require(condition: bool, rule: str) -> None:
    """Raise ProgramRefused with the rule and the values that break it, unless the condition holds."""
    if not condition:
        raise ProgramRefused(rule)


def check_floating(*specs: ValueSpec) -> None:
    """Raise ProgramRefused unless all are floating-point."""
    for spec in specs:
        require(spec.dtype in FLOATING, f"input of dtype {spec.dtype} must be floating-point")


# --- Kinds of attributes ------------------------------------------------------------------------


def integer(low: int, high: int) -> Kind:
    """An integer in [low, high]."""

    def parse(value: Attribute) -> int:
        require(isinstance(value, int) and low <= value <= high, f"must be an integer in [{low}, {high}]")
        return value  # type: ignore[return-value]

    return parse


def flag(value: Attribute) -> bool:
    """0 or 1."""
    require(value in {0, 1} and isinstance(value, int), "must be 0 or 1")
    return value == 1


def integers(low: int, high: int, count_max: int = RANK_MAX) -> Kind:
    """At most ``count_max`` integers in [low, high]."""

    def parse(value: Attribute) -> tuple[int, ...]:
        require(
            isinstance(value, tuple)
            and len(value) <= min(count_max, ATTRIBUTE_INTEGERS_MAX)
            and all(low <= item <= high for item in value),
            f"must be at most {count_max} integers in [{low}, {high}]",
        )
        return value  # type: ignore[return-value]

    return parse


def real(low: float, high: float) -> Kind:
    """A number in [low, high], written as ``float.hex`` writes it."""

    def parse(value: Attribute) -> float:
        require(isinstance(value, str) and len(value) <= 32, "must be text of float.hex")
        try:
            number = float.fromhex(str(value))
        except (ValueError, OverflowError) as error:
            raise ProgramRefused("must be text of float.hex") from error
        # One number, one spelling: else two programs of one computation would have two digests.
        require(number.hex() == value, f"must be written {number.hex()}")
        require(low <= number <= high, f"must be in [{low:g}, {high:g}]")
        return number

    return parse


def choice(*options: str) -> Kind:
    """One of some words."""

    def parse(value: Attribute) -> str:
        require(value in options, f"must be one of {options}")
        return str(value)

    return parse


def text(bytes_max: int = ATTRIBUTE_BYTES_MAX) -> Kind:
    """Text of at most ``bytes_max`` bytes in UTF-8."""

    def parse(value: Attribute) -> str:
        require(
            isinstance(value, str) and len(value.encode()) <= bytes_max, f"must be {bytes_max} bytes of text"
        )
        return str(value)

    return parse


def data(bytes_max: int = ATTRIBUTE_BYTES_MAX) -> Kind:
    """At most ``bytes_max`` bytes."""

    def parse(value: Attribute) -> bytes:
        require(isinstance(value, bytes) and len(value) <= bytes_max, f"must be at most {bytes_max} bytes")
        return value  # type: ignore[return-value]

    return parse


def precision(value: Attribute) -> Any:
    """The name of an exact profile, as its `Precision`."""
    profiles = {item.name: item for item in (EXACT14, EXACT21)}
    require(value in profiles, f"must be one of {sorted(profiles)}")
    return profiles[str(value)]
