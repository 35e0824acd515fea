"""The simulated workload operator by operator: what a dispute about one of its chunks descends to.

The program has the shape of a real one: inputs from the job and from the model, operators that anybody
can run again one by one, and the chunk's digest as the last value. A referee needs no model, only the
operator's inputs.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from protocols.digest import tagged
from protocols.effects import PROGRAM_INDEX, Case, OpenValues, Trace
from protocols.events import Finding
from protocols.messages import OpenedValue
from protocols.units import FALSE_UNITS
from protocols.values import value_digest

__all__ = ["ROUNDS", "VALUES", "derive_unit", "final_digest", "judge", "open_values", "trace"]

ROUNDS = 6
"""Operators between the inputs and the digest; the number of values is odd on purpose."""

_INPUT, _UNITS, _WEIGHTS, _DERIVED, _EQUAL, _MIXED = range(6)
_DIGEST = _MIXED + ROUNDS + 1
VALUES = _DIGEST + 1
_STEP_INPUTS: dict[int, tuple[int, ...]] = {
    _DERIVED: (_INPUT,),
    _EQUAL: (_UNITS, _DERIVED),
    _MIXED: (_INPUT, _UNITS, _WEIGHTS, _DERIVED),
    **{_MIXED + 1 + number: (_MIXED + number,) for number in range(ROUNDS)},
    _DIGEST: (_EQUAL, _MIXED + ROUNDS),
}


@lru_cache(maxsize=65_536)
def derive_unit(input: bytes, index: int) -> int:
    """The only right output unit at ``index``."""
    return int.from_bytes(tagged("p2p-node/sim-unit/1", input, index.to_bytes(4, "little"))[:2], "little")


@dataclass(frozen=True, slots=True)
class _Program:
    """One chunk's program: which units it covers, in which profile of which model."""

    model: bytes
    profile: str
    chunk: int
    first: int
    end: int

    @property
    def digest(self) -> bytes:
        numbers = struct.pack("<3I", self.chunk, self.first, self.end)
        return tagged("p2p-node/sim-program/1", self.model, self.profile.encode(), numbers)

    def given(self, index: int, input: bytes, units: Sequence[int]) -> bytes:
        """An input of the program, as the contract or the model gives it."""
        if index == _INPUT:
            return input
        return _packed(units[: self.end]) if index == _UNITS else _weights(self.model)

    def execute(self, index: int, inputs: Sequence[bytes]) -> bytes:
        """Run the operator whose output is value ``index``."""
        if index == _DERIVED:
            return _packed([derive_unit(inputs[0], i) for i in range(self.first, self.end)])
        if index == _EQUAL:
            return bytes([inputs[0][4 * self.first :] == inputs[1]])
        if index == _MIXED:
            return tagged("p2p-node/sim-mix/1", self.profile.encode(), *inputs)
        if index == _DIGEST:
            return tagged("p2p-node/sim-chunk/1", inputs[1]) if inputs[0] == b"\1" else FALSE_UNITS
        return tagged("p2p-node/sim-round/1", bytes([index]), inputs[0])


def _program(task: Trace | OpenValues | Case, chunk_units: int) -> _Program:
    first = task.chunk * chunk_units
    end = min(len(task.units), first + chunk_units)
    return _Program(task.model, task.profile, task.chunk, first, end)


def _packed(units: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(units)}I", *units)


def _weights(model: bytes) -> bytes:
    return tagged("p2p-node/sim-weights/1", model)


def _context(model: bytes) -> bytes:
    return tagged("p2p-node/sim-context/1", model)


def _digest(data: bytes) -> bytes:
    return value_digest("uint8", (len(data),), data)


def _run(program: _Program, input: bytes, units: Sequence[int], variant: bytes, denies: bool) -> list[bytes]:
    values = [program.given(index, input, units) for index in (_INPUT, _UNITS, _WEIGHTS)]
    for index in range(_DERIVED, VALUES):
        output = program.execute(index, [values[i] for i in _STEP_INPUTS[index]])
        if variant and index == _MIXED + 1 + variant[0] % ROUNDS:
            output = tagged("p2p-node/sim-deviation/1", variant, output)
        if denies and index == _EQUAL:
            output = b"\1"
        values.append(output)
    return values


def final_digest(
    *,
    model: bytes,
    profile: str,
    input: bytes,
    units: Sequence[int],
    chunk: int,
    chunk_units: int,
    variant: bytes,
) -> bytes:
    """The chunk's digest as an executor gives it, which never finds its own units false."""
    first = chunk * chunk_units
    program = _Program(model, profile, chunk, first, min(len(units), first + chunk_units))
    return _run(program, input, units, variant, True)[_DIGEST]


def trace(
    task: Trace, *, chunk_units: int, variant: bytes = b"", denies: bool = False
) -> tuple[bytes, tuple[bytes, ...]]:
    """The program's digest and every value's, as `protocols.events.RunTraced` has them.

    Args:
        task: which chunk.
        chunk_units: units of a whole chunk.
        variant: deviates at the operator that its first byte names, as in `final_digest`.
        denies: claims that false units are right.
    """
    program = _program(task, chunk_units)
    values = _run(program, task.input, task.units, variant, denies)
    return program.digest, tuple(_digest(value) for value in values)


def open_values(
    task: OpenValues, *, chunk_units: int, variant: bytes = b"", denies: bool = False
) -> tuple[tuple[OpenedValue, ...], bytes]:
    """The inputs of the operator that makes one value, and the context, as `RunOpened` has them."""
    values = _run(_program(task, chunk_units), task.input, task.units, variant, denies)
    indices = sorted(_STEP_INPUTS.get(task.index, ()))
    opened = tuple(OpenedValue(i, "uint8", (len(values[i]),), values[i]) for i in indices)
    return opened, _context(task.model)


def judge(case: Case, *, chunk_units: int) -> tuple[Finding, str]:
    """Run one operator again; see `protocols.effects.Case`."""
    program = _program(case, chunk_units)
    if case.context != _context(case.model):
        return Finding.INCONCLUSIVE, "the context isn't the model's"
    is_program = (case.program, case.values_total) == (program.digest, VALUES)
    if case.index == PROGRAM_INDEX:
        return (Finding.ACQUITTED if is_program else Finding.GUILTY), "program"
    if not is_program or case.index >= VALUES:
        return Finding.INCONCLUSIVE, "another program"
    inputs = _STEP_INPUTS.get(case.index)
    if inputs is None:
        truth = program.given(case.index, case.input, case.units)
    elif tuple(value.index for value in case.values) != tuple(sorted(inputs)):
        return Finding.INCONCLUSIVE, "the operator takes other values"
    else:
        opened = {value.index: value.data for value in case.values}
        truth = program.execute(case.index, [opened[i] for i in inputs])
    return (Finding.ACQUITTED if _digest(truth) == case.claimed else Finding.GUILTY), f"value {case.index}"
