"""Running a program in torch's own float32 kernels: fast, and with bits that differ from machine to machine.

What steps call float64 is float32 here. Operators without a counterpart below run as they are defined and are
rounded. A program that chooses by its values (`CHOOSING`) has no native run: what it gives may jump where two
machines differ by a rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workloads.errors import InputRefused
from workloads.exact.quantise import EXACT21
from workloads.program.interpreter import check_values, infer
from workloads.program.operators.registry import find
from workloads.program.program import Program, Step, last_uses

__all__ = ["CHOOSING", "NativeRun", "check_continuous", "inner_value"]

CHOOSING = frozenset({"argmax", "compare", "sign"})


def check_continuous(program: Program) -> None:
    """Hold a program against what a native run needs.

    Raises:
        InputRefused: a step chooses by values; names it.
    """
    specs = infer(program)
    for number, step in enumerate(program.steps):
        is_of_floats = any(specs[value].dtype not in {"int64", "uint8"} for value in step.inputs)
        if step.op in CHOOSING and is_of_floats:
            raise InputRefused(f"step {number} ({step.op}) chooses by its values: run it in an exact profile")


def inner_value(program: Program) -> int:
    """A value that goes into the outputs and that nobody has from them: the last that a product contracts.

    Raises:
        InputRefused: every product is of the program's inputs.
    """
    for step in reversed(program.steps):
        if any(name == "precision" for name, _ in step.attributes):
            inner = [value for value in step.inputs if value >= len(program.inputs)]
            if inner and not set(inner) & set(program.steps[-1].inputs):
                return inner[0]
    raise InputRefused(
        "the outputs give away all that is computed, so that a check could be had without work: run the "
        "program in an exact profile"
    )


class NativeRun:
    """A program in float32.

    Args:
        program: what to run.
        wanted: numbers of the values that a run returns.

    Raises:
        ProgramRefused: as `infer`.
    """

    def __init__(self, program: Program, wanted: Sequence[int]) -> None:
        infer(program)
        self.program = program
        self._wanted = tuple(wanted)
        self._first = len(program.inputs)
        needed = set(wanted)
        for value in range(program.value_count - 1, self._first - 1, -1):
            if value in needed:
                needed.update(program.steps[value - self._first].inputs)
        self._calls = [
            (index, step, _call(step))
            for index, step in enumerate(program.steps)
            if self._first + index in needed
        ]
        last = last_uses(program)
        self._dropped: list[list[int]] = [[] for _ in program.steps]
        for value in needed - set(wanted):
            if last[value] >= 0:
                self._dropped[last[value]].append(value)

    def run(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Run it.

        Args:
            values: one for each of its inputs.

        Returns:
            The wanted values, contiguous; floats are float32.

        Raises:
            ProgramRefused: a value isn't what its input must be.
            NumericsRefused: a value left the range of an operator without a counterpart.
        """
        check_values(self.program, values)
        held = {number: _narrow(value) for number, value in enumerate(values)}
        with torch.inference_mode():
            for index, step, call in self._calls:
                held[self._first + index] = _narrow(call(*(held[value] for value in step.inputs)))
                for value in self._dropped[index]:
                    held.pop(value, None)
        return [held[value].contiguous() for value in self._wanted]


def _narrow(x: Tensor) -> Tensor:
    return x.to(torch.float32) if x.is_floating_point() else x


def _call(step: Step) -> Callable[..., Tensor]:
    found = find(step.op)
    attributes = found.parse(step.attributes)
    native = _NATIVE.get(step.op)
    if native is not None:
        attributes.pop("precision", None)
        return lambda *inputs: native(*inputs, **attributes)
    if "precision" in attributes:
        attributes["precision"] = EXACT21
    return lambda *inputs: found.compute(*inputs, **attributes)


def _scalar(value: float) -> Tensor:
    # What float32 can't hold becomes infinite here, where a number would be an error.
    return torch.tensor(value, dtype=torch.float32)


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, **geometry: Any) -> Tensor:
    return (F.conv1d if x.dim() == 3 else F.conv2d)(x, weight, bias, **geometry)


def _conv_transpose(x: Tensor, weight: Tensor, bias: Tensor | None = None, **geometry: Any) -> Tensor:
    return (F.conv_transpose1d if x.dim() == 3 else F.conv_transpose2d)(x, weight, bias, **geometry)


def _attention(queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool, scale: float) -> Tensor:
    count, length = queries.shape[-2], keys.shape[-2]
    # torch's causal mask starts at the first key; ours ends at the last.
    mask = torch.ones(count, length, dtype=torch.bool).tril(length - count) if causal else None
    grouped = queries.shape[-3] != keys.shape[-3]
    return F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, scale=scale, enable_gqa=grouped
    )


def _layer_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, epsilon: float
) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, epsilon)


def _rms_norm(x: Tensor, weight: Tensor | None = None, *, epsilon: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, epsilon)


def _group_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, groups: int, epsilon: float
) -> Tensor:
    return F.group_norm(x, groups, weight, bias, epsilon)


def _sum(x: Tensor, *, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    return x.sum(dims, keepdim=keepdim)


def _mean(x: Tensor, *, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    return x.mean(dims, keepdim=keepdim)


def _max(x: Tensor, *, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    return x.amax(dims, keepdim=keepdim)


def _max_pool2d(x: Tensor, *, kernel: Any, stride: Any, padding: Any) -> Tensor:
    return F.max_pool2d(x, kernel, stride, padding)


def _avg_pool2d(x: Tensor, *, kernel: Any, stride: Any, padding: Any) -> Tensor:
    return F.avg_pool2d(x, kernel, stride, padding)


_NATIVE: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "subtract": torch.subtract,
    "multiply": torch.multiply,
    "divide": torch.divide,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "negate": torch.neg,
    "abs": torch.abs,
    "square": torch.square,
    "reciprocal": torch.reciprocal,
    "relu": torch.relu,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "sin": torch.sin,
    "cos": torch.cos,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "erf": torch.erf,
    "gelu": F.gelu,
    "scale": lambda x, *, factor: x * _scalar(factor),
    "shift": lambda x, *, term: x + _scalar(term),
    "clamp": lambda x, *, low, high: x.clamp(_scalar(low), _scalar(high)),
    "matmul": torch.matmul,
    "linear": F.linear,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "attention": _attention,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "softmax": torch.softmax,
    "log_softmax": torch.log_softmax,
    "sum": _sum,
    "mean": _mean,
    "max": _max,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
}
