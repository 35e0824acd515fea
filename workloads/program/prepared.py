"""Running a program many times, fast, with the bits of `workloads.program.interpreter`.

Everything that depends on the program alone is decided once. What the steps share is computed once: the
results of one function that several steps want, and the rounding of a tensor that several products contract.
Views stay views.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from workloads.exact.contraction import product, round_along
from workloads.exact.quantise import EXACT14, EXACT21, Precision
from workloads.exact.tensors import Rounded, vector
from workloads.program.interpreter import check_range, check_values, infer
from workloads.program.limits import Limits
from workloads.program.operators.registry import find
from workloads.program.program import Attribute, Program, Step

__all__ = ["Prepared"]

_PRECISIONS = (EXACT14.name, EXACT21.name)
# These only give values another shape or order, or round them.
_UNCHECKED = frozenset({"reshape", "permute", "expand", "slice", "concat", "flip", "rotary", "embedding"})


_Function = tuple[str, tuple[int, ...], tuple[tuple[str, Attribute], ...]]
"""A step without what tells it from others that take the same function's results."""


@dataclass(slots=True)
class _Memory:
    """What one run holds."""

    values: list[Tensor | None]
    shared: dict[_Function, Sequence[Tensor]] = field(default_factory=dict)
    shared_uses: Counter[_Function] = field(default_factory=Counter)
    rounded: dict[tuple[int, int, str], Rounded] = field(default_factory=dict)

    def take(self, value: int) -> Tensor:
        tensor = self.values[value]
        assert tensor is not None  # noqa: S101
        return tensor

    def drop(self, value: int) -> None:
        self.values[value] = None
        for dim in (-1, -2):
            for name in _PRECISIONS:
                self.rounded.pop((value, dim, name), None)


_Call = Callable[[_Memory], Tensor]


class Prepared:
    """A program, ready to run.

    Args:
        program: what to run.
        wanted: numbers of the values that a run returns.
        limits: what one step may cost.

    Raises:
        ProgramRefused: as `infer`.
    """

    def __init__(self, program: Program, wanted: Sequence[int], limits: Limits | None = None) -> None:
        infer(program, limits)
        self.program = program
        self._wanted = tuple(wanted)
        self._first = len(program.inputs)
        self._needed = self._needs()
        steps = [step for step, needed in zip(program.steps, self._needed, strict=True) if needed]
        self._roundings = Counter(key for step in steps for key in _roundings(step))
        self._functions = Counter(map(_function, steps))
        self._calls = [self._prepare(step) for step in program.steps]
        self._checked = [step.op not in _UNCHECKED for step in program.steps]
        self._dropped = self._drops()

    def run(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Run it.

        Args:
            values: one for each of its inputs.

        Returns:
            The wanted values, contiguous.

        Raises:
            ProgramRefused: a value isn't what its input must be.
            NumericsRefused: a value left the range of exact arithmetic.
        """
        check_values(self.program, values)
        memory = _Memory([*values, *[None] * len(self._calls)])
        with torch.no_grad():
            for index, call in enumerate(self._calls):
                if not self._needed[index]:
                    continue
                output = call(memory)
                if self._checked[index]:
                    check_range(output, f"output of {self.program.steps[index].op}")
                memory.values[self._first + index] = output
                for value in self._dropped[index]:
                    memory.drop(value)
        return [memory.take(value).contiguous() for value in self._wanted]

    def _needs(self) -> list[bool]:
        """For each step, whether what is wanted depends on it."""
        needed = set(self._wanted)
        for value in range(self.program.value_count - 1, self._first - 1, -1):
            if value in needed:
                needed.update(self.program.steps[value - self._first].inputs)
        return [self._first + index in needed for index in range(len(self.program.steps))]

    def _drops(self) -> list[list[int]]:
        """For each step, the values that nobody needs after it."""
        last = {value: value - self._first for value in range(self._first, self.program.value_count)}
        for index, step in enumerate(self.program.steps):
            last.update(dict.fromkeys(step.inputs, index))
        drops: list[list[int]] = [[] for _ in self.program.steps]
        for value, index in last.items():
            if value not in self._wanted:
                drops[index].append(value)
        return drops

    def _prepare(self, step: Step) -> _Call:
        found = find(step.op)
        attributes = found.parse(step.attributes)
        if step.op == "matmul":
            return self._matmul(step.inputs, attributes["precision"])
        if step.op == "linear":
            return self._linear(step.inputs, attributes["precision"])
        if found.compute_all is not None:
            place = found.results.index(attributes.pop("wanted"))
            return self._one_of(step, found.compute_all, attributes, place)
        compute, inputs = found.compute, step.inputs
        return lambda memory: compute(*map(memory.take, inputs), **attributes)

    def _matmul(self, inputs: tuple[int, ...], precision: Precision) -> _Call:
        a, b = inputs

        def call(memory: _Memory) -> Tensor:
            left = self._round(memory, a, -1, precision)
            return product(left, self._round(memory, b, -2, precision), precision)

        return call

    def _linear(self, inputs: tuple[int, ...], precision: Precision) -> _Call:
        x, weight, *bias = inputs

        def call(memory: _Memory) -> Tensor:
            rows = self._round(memory, x, -1, precision)
            columns = self._round(memory, weight, -1, precision)
            result = product(rows, Rounded(columns.values.t(), columns.grain.t()), precision)
            if bias:
                result += vector("bias", memory.take(bias[0]), result.shape[-1])
            return result

        return call

    def _one_of(
        self, step: Step, compute_all: Callable[..., Sequence[Tensor]], attributes: dict[str, Any], place: int
    ) -> _Call:
        key = _function(step)
        uses = self._functions[key]

        def call(memory: _Memory) -> Tensor:
            results = memory.shared.get(key)
            if results is None:
                results = memory.shared[key] = compute_all(*map(memory.take, step.inputs), **attributes)
            memory.shared_uses[key] += 1
            if memory.shared_uses[key] == uses:
                del memory.shared[key]
            return results[place]

        return call

    def _round(self, memory: _Memory, value: int, dim: int, precision: Precision) -> Rounded:
        key = (value, dim, precision.name)
        known = memory.rounded.get(key)
        if known is None:
            known = round_along("operand", memory.take(value), dim, precision.bits)
            if self._roundings[key] > 1:
                memory.rounded[key] = known
        return known


def _roundings(step: Step) -> list[tuple[int, int, str]]:
    """Which roundings of which values a product takes."""
    if step.op not in {"matmul", "linear"}:
        return []
    name = str(dict(step.attributes)["precision"])
    dims = (-1, -2) if step.op == "matmul" else (-1, -1)
    return [(value, dim, name) for value, dim in zip(step.inputs, dims, strict=False)]


def _function(step: Step) -> _Function:
    return step.op, step.inputs, tuple(item for item in step.attributes if item[0] != "wanted")
