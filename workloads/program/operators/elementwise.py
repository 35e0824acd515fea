"""Elementwise operators: what IEEE 754 rounds correctly, and the functions of `workloads.exact`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from workloads import exact
from workloads.program.operators.registry import FLOATING, check_floating, choice, operator, real, require
from workloads.program.operators.shapes import broadcast
from workloads.program.program import ValueSpec

__all__ = ["float_spec"]


def float_spec(*specs: ValueSpec, **_: Any) -> ValueSpec:
    """float64 of the shape that floating-point inputs broadcast to."""
    check_floating(*specs)
    return ValueSpec("float64", broadcast(*(spec.shape for spec in specs)))


def _number_spec(*specs: ValueSpec) -> ValueSpec:
    """As `float_spec`, or int64 if all inputs are."""
    if all(spec.dtype == "int64" for spec in specs):
        return ValueSpec("int64", broadcast(*(spec.shape for spec in specs)))
    return float_spec(*specs)


def _numbers(*tensors: Tensor) -> list[Tensor]:
    return [x.double() if x.is_floating_point() else x for x in tensors]


# Which zero a maximum of -0.0 and 0.0 is depends on the machine; adding 0.0 leaves only one zero.
_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "maximum": lambda x, y: torch.maximum(x, y) + 0,
    "minimum": lambda x, y: torch.minimum(x, y) + 0,
}


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: function(*_numbers(x, y))


for _name, _function in _BINARY.items():
    operator(_name, 2, _number_spec)(_binary(_function))


@operator("divide", 2, float_spec)
def _divide(x: Tensor, y: Tensor) -> Tensor:
    return x.double() / y.double()


def _function_work(*_: ValueSpec, output: ValueSpec, **__: Any) -> int:
    # A function out of tables and polynomials makes a few dozen passes.
    return 32 * output.elements


_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "negate": lambda x: -x,
    "abs": lambda x: x.abs(),
    "square": lambda x: x * x,
    "reciprocal": lambda x: 1.0 / x,
    "relu": lambda x: torch.clamp(x, min=0.0) + 0.0,
    "sign": lambda x: torch.sign(x) + 0.0,
}


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: function(x.double())


for _name, _single in _UNARY.items():
    operator(_name, 1, float_spec)(_unary(_single))

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": exact.exp,
    "log": exact.log,
    "sqrt": exact.sqrt,
    "rsqrt": exact.rsqrt,
    "sin": exact.sin,
    "cos": exact.cos,
    "tanh": exact.tanh,
    "sigmoid": exact.sigmoid,
    "silu": exact.silu,
    "erf": exact.erf,
}
for _name, _exact in _FUNCTIONS.items():
    operator(_name, 1, float_spec, _function_work)(_exact)

_FORM = choice("none", "tanh")


@operator("gelu", 1, float_spec, _function_work, approximate=_FORM)
def _gelu(x: Tensor, *, approximate: str) -> Tensor:
    return exact.gelu(x, approximate=approximate)


def _slope_spec(gradient: ValueSpec, x: ValueSpec, **_: Any) -> ValueSpec:
    require(gradient.shape == x.shape, f"gradient of shape {gradient.shape} must have {x.shape}")
    return float_spec(gradient, x)


@operator("silu_backward", 2, _slope_spec, _function_work)
def _silu_backward(gradient: Tensor, x: Tensor) -> Tensor:
    return exact.silu_backward(gradient, x)


@operator("gelu_backward", 2, _slope_spec, _function_work, approximate=_FORM)
def _gelu_backward(gradient: Tensor, x: Tensor, *, approximate: str) -> Tensor:
    return exact.gelu_backward(gradient, x, approximate=approximate)


_FACTOR = real(-(2.0**500), 2.0**500)


@operator("scale", 1, float_spec, factor=_FACTOR)
def _scale(x: Tensor, *, factor: float) -> Tensor:
    return x.double() * factor


@operator("shift", 1, float_spec, term=_FACTOR)
def _shift(x: Tensor, *, term: float) -> Tensor:
    return x.double() + term


def _clamp_spec(x: ValueSpec, *, low: float, high: float) -> ValueSpec:
    require(low <= high, f"low={low} must not exceed high={high}")
    return float_spec(x)


@operator("clamp", 1, _clamp_spec, low=_FACTOR, high=_FACTOR)
def _clamp(x: Tensor, *, low: float, high: float) -> Tensor:
    return torch.clamp(x.double(), low, high) + 0.0


_COMPARISONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "equal": torch.eq,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "not_equal": torch.ne,
}


def _compare_spec(x: ValueSpec, y: ValueSpec, *, relation: str) -> ValueSpec:
    del relation
    both_real = x.dtype in FLOATING and y.dtype in FLOATING
    require(both_real or x.dtype == y.dtype, f"{x.dtype} and {y.dtype} can't be compared")
    return ValueSpec("uint8", broadcast(x.shape, y.shape))


@operator("compare", 2, _compare_spec, relation=choice(*sorted(_COMPARISONS)))
def _compare(x: Tensor, y: Tensor, *, relation: str) -> Tensor:
    return _COMPARISONS[relation](*_numbers(x, y)).to(torch.uint8)
