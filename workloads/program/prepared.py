"""Running a program many times, fast, with the bits of `workloads.program.interpreter`.

Everything that depends on the program alone is decided once. What the steps share is computed once: the
results of one function that several steps want, and the rounding of a tensor that several products contract.
Views stay views.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from workloads import exact
from workloads.exact.contraction import product, round_along
from workloads.exact.kernels import kernels
from workloads.exact.kernels.library import Panels
from workloads.exact.kernels.products import Packed
from workloads.exact.kernels.training import TrainingKernels, training_kernels
from workloads.exact.quantise import EXACT14, EXACT21, Precision
from workloads.exact.rope import rotate
from workloads.exact.slices import Arithmetic, arithmetic_for
from workloads.exact.tensors import Rounded, vector
from workloads.program.interpreter import check_range, check_values, infer
from workloads.program.limits import Limits
from workloads.program.operators.registry import find
from workloads.program.operators.transformer import rotary_rows
from workloads.program.program import Attribute, Program, Step

__all__ = ["Prepared"]

_LEFT, _RIGHT = 0, 1
_PRECISIONS = (EXACT14.name, EXACT21.name)
# These move values; or they can't grow them far, or only grow them where the next operator sees it.
_UNCHECKED = frozenset(
    {
        *("reshape", "permute", "expand", "slice", "concat", "flip", "rotary", "embedding"),
        *("linear", "matmul", "attention", "attention_backward", "rms_norm", "rms_norm_backward"),
        *("silu", "silu_backward", "softmax", "cross_entropy_backward", "embedding_backward"),
    }
)


_Function = tuple[str, tuple[int, ...], tuple[tuple[str, Attribute], ...]]
"""A step without what tells it from others that take the same function's results."""


_Rounding = tuple[int, int, str]
"""A value, the dimension along which it is rounded, and a profile."""

_Use = tuple[str, tuple[tuple[str, Attribute], ...]]
_TO_FLOAT32: _Use = ("cast", (("dtype", "float32"),))


@dataclass(slots=True)
class _Memory:
    """What one run holds."""

    values: list[Tensor | None]
    shared: dict[_Function, Sequence[Tensor]] = field(default_factory=dict)
    shared_uses: Counter[_Function] = field(default_factory=Counter)
    rounded: dict[_Rounding, Rounded] = field(default_factory=dict)
    panels: dict[_Rounding, Panels] = field(default_factory=dict)
    packed: dict[tuple[int, int, int, str], Packed] = field(default_factory=dict)

    def take(self, value: int) -> Tensor:
        tensor = self.values[value]
        assert tensor is not None  # noqa: S101
        return tensor

    def drop(self, value: int) -> None:
        self.values[value] = None
        for dim in (-1, -2):
            for name in _PRECISIONS:
                self.rounded.pop((value, dim, name), None)
                self.panels.pop((value, dim, name), None)
                for side in (_LEFT, _RIGHT):
                    self.packed.pop((side, value, dim, name), None)


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
        self._specs = infer(program, limits)
        self.program = program
        self._wanted = tuple(wanted)
        self._first = len(program.inputs)
        self._users: defaultdict[int, list[_Use]] = defaultdict(list)
        self._results: defaultdict[_Function, list[int]] = defaultdict(list)
        for value, step in enumerate(program.steps, start=self._first):
            self._results[_function(step)].append(value)
            for taken in step.inputs:
                self._users[taken].append((step.op, step.attributes))
        self._rooms = [torch.empty(0, dtype=torch.float64) for _ in (_LEFT, _RIGHT)]
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
                output = self._made(index, output)
                if self._checked[index]:
                    check_range(output, f"output of {self.program.steps[index].op}")
                memory.values[self._first + index] = output
                for value in self._dropped[index]:
                    memory.drop(value)
        return [memory.take(value).contiguous() for value in self._wanted]

    def _made(self, index: int, output: Tensor) -> Tensor:
        """What is kept of a step's result."""
        return output

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
            if self._needed[index]:
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
            compute_all = _COMPILED_ALL.get(step.op, found.compute_all)
            if step.op == "adamw" and self._is_rounded(step):
                compute_all = _adamw_float32
            return self._one_of(step, compute_all, attributes, place)
        compute, inputs = _COMPILED.get(step.op, found.compute), step.inputs
        return lambda memory: compute(*map(memory.take, inputs), **attributes)

    def _matmul(self, inputs: tuple[int, ...], precision: Precision) -> _Call:
        a, b = inputs
        is_matrix = len(self._specs[a].shape) == len(self._specs[b].shape) == 2

        def call(memory: _Memory) -> Tensor:
            if is_matrix:
                quick = self._multiply(memory, (a, -1), (b, -2), precision)
                if quick is not None:
                    return quick
            left = self._round(memory, a, -1, precision)
            return product(left, self._round(memory, b, -2, precision), precision)

        return call

    def _linear(self, inputs: tuple[int, ...], precision: Precision) -> _Call:
        x, weight, *bias = inputs

        def call(memory: _Memory) -> Tensor:
            result = self._multiply(memory, (x, -1), (weight, -1), precision)
            if result is None:
                rows = self._round(memory, x, -1, precision)
                columns = self._round(memory, weight, -1, precision)
                result = product(rows, Rounded(columns.values.t(), columns.grain.t()), precision)
            if bias:
                result += vector("bias", memory.take(bias[0]), result.shape[-1])
            return result

        return call

    def _multiply(
        self, memory: _Memory, left: tuple[int, int], right: tuple[int, int], precision: Precision
    ) -> Tensor | None:
        """The product by compiled code; None where there is none.

        Args:
            memory: of the run.
            left: value (..., inner) and the dimension that is contracted, -1.
            right: value (inner, columns) and -2, or (columns, inner) and -1.
            precision: the profile.
        """
        if precision == EXACT14:
            return self._multiply_digits(memory, left[0], *right)
        compiled = _kernels(memory.take(left[0]), memory.take(right[0]))
        if compiled is None:
            return None
        products = compiled.products
        packed = []
        for side, (value, dim) in enumerate((left, right)):
            key = (value, dim, precision.name)
            known = memory.packed.get((side, *key))
            if known is None:
                kept = self._roundings[key] > 1
                matrix = memory.take(value)
                if side == _LEFT:
                    x = matrix.reshape(-1, matrix.shape[-1])
                    known = products.pack_left("operand", x, precision.bits, self._room(side, kept))
                else:
                    x = matrix if dim == -2 else matrix.mT
                    known = products.pack_right("operand", x, precision.bits, self._room(side, kept))
                if kept:
                    memory.packed[side, *key] = known
                else:
                    self._rooms[side] = known.room
            packed.append(known)
        result = products.multiply(packed[_LEFT], packed[_RIGHT], precision)
        return result.view(*memory.take(left[0]).shape[:-1], -1)

    def _room(self, side: int, is_kept: bool) -> Tensor | None:
        """Room for what one product takes: fresh memory costs more than what is done in it."""
        return None if is_kept else self._rooms[side]

    def _multiply_digits(self, memory: _Memory, rows: int, matrix: int, dim: int) -> Tensor | None:
        """The product in 16-bit integers, the fastest for exact14; None where it can't be had.

        Args:
            memory: of the run.
            rows: value (..., inner).
            matrix: value (inner, columns), or with ``dim`` -1 (columns, inner).
            dim: of the matrix along which it is contracted.
        """
        x, loaded = memory.take(rows), kernels()
        if loaded is None or _kernels(x, memory.take(matrix)) is None:
            return None
        key = (matrix, dim, EXACT14.name)
        panels = memory.panels.get(key)
        if panels is None:
            outputs = memory.take(matrix).to(torch.float64)
            panels = loaded.pack((outputs if dim == -1 else outputs.mT).numpy(), EXACT14.bits)
            if panels is None:
                return None
            if self._roundings[key] > 1:
                memory.panels[key] = panels
        flat = x.to(torch.float64).reshape(-1, x.shape[-1]).numpy()
        found = loaded.multiply(flat, panels)
        return None if found is None else torch.from_numpy(found).view(*x.shape[:-1], -1)

    def _is_rounded(self, step: Step) -> bool:
        """Whether an optimiser step is one of float32 state whose results are only used in float32."""
        parameter, _, *moments = step.inputs
        return all(self._specs[value].dtype == "float32" for value in (parameter, *moments)) and all(
            value not in self._wanted and set(self._users[value]) <= {_TO_FLOAT32}
            for value in self._results[_function(step)]
        )

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


# --- Compiled code where there is some -----------------------------------------------------------


def _kernels(*tensors: Tensor) -> TrainingKernels | None:
    if any(x.device.type != "cpu" or not x.numel() for x in tensors):
        return None
    # The kernels give the roundings of float64 products; digits are for other hardware.
    if arithmetic_for(tensors[0].device, EXACT21) is not Arithmetic.FLOAT64:
        return None
    return training_kernels()


def _silu(x: Tensor) -> Tensor:
    compiled = _kernels(x)
    return exact.silu(x) if compiled is None else compiled.silu(x)


def _silu_backward(gradient: Tensor, x: Tensor) -> Tensor:
    compiled = _kernels(x)
    return (exact.silu_backward if compiled is None else compiled.silu_backward)(gradient, x)


def _attention(queries: Tensor, keys: Tensor, values: Tensor, **settings: Any) -> Tensor:
    compiled = _kernels(queries, keys, values)
    return (exact.attention if compiled is None else compiled.attention)(queries, keys, values, **settings)


def _attention_backward(*operands: Tensor, **settings: Any) -> Sequence[Tensor]:
    compiled = _kernels(*operands)
    return (exact.attention_backward if compiled is None else compiled.attention_backward)(
        *operands, **settings
    )


def _rotary(x: Tensor, *, theta: float, start: int, inverse: bool) -> Tensor:
    compiled = _kernels(x)
    rows = rotary_rows(theta, x.shape[-1], start, x.shape[-2])
    return (rotate if compiled is None else compiled.rotary)(x, *rows, inverse=inverse)


def _rms_norm(*operands: Tensor, **settings: Any) -> Tensor:
    compiled = _kernels(*operands)
    return (exact.rms_norm if compiled is None else compiled.rms_norm)(*operands, **settings)


def _rms_norm_backward(*operands: Tensor, **settings: Any) -> Sequence[Tensor]:
    compiled = _kernels(*operands)
    return (exact.rms_norm_backward if compiled is None else compiled.rms_norm_backward)(
        *operands, **settings
    )


def _adamw_float32(*state: Tensor, **settings: Any) -> Sequence[Tensor]:
    compiled = _kernels(*state)
    if compiled is not None:
        return compiled.adamw_float32(*state, **settings)
    beta1, beta2 = settings.pop("beta1"), settings.pop("beta2")
    return exact.adamw_step(*state, betas=(beta1, beta2), **settings)


_COMPILED: dict[str, Callable[..., Tensor]] = {
    "silu": _silu,
    "silu_backward": _silu_backward,
    "attention": _attention,
    "rms_norm": _rms_norm,
    "rotary": _rotary,
}
_COMPILED_ALL: dict[str, Callable[..., Sequence[Tensor]]] = {
    "attention_backward": _attention_backward,
    "rms_norm_backward": _rms_norm_backward,
}


def _roundings(step: Step) -> list[_Rounding]:
    """Which roundings of which values a product takes."""
    if step.op not in {"matmul", "linear"}:
        return []
    name = str(dict(step.attributes)["precision"])
    dims = (-1, -2) if step.op == "matmul" else (-1, -1)
    return [(value, dim, name) for value, dim in zip(step.inputs, dims, strict=False)]


def _function(step: Step) -> _Function:
    return step.op, step.inputs, tuple(item for item in step.attributes if item[0] != "wanted")
