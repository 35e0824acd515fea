"""Operators that contract: products whose sums are exact in any order (`workloads.exact`)."""

from __future__ import annotations

from torch import Tensor

from workloads import exact
from workloads.exact.quantise import Precision
from workloads.program.operators.registry import (
    check_floating,
    operator,
    precision,
    require,
)
from workloads.program.operators.shapes import broadcast
from workloads.program.program import ValueSpec

__all__: list[str] = []


def _matmul_spec(a: ValueSpec, b: ValueSpec, *, precision: Precision) -> ValueSpec:
    del precision
    check_floating(a, b)
    require(len(a.shape) >= 2 and len(b.shape) >= 2, "both inputs must have at least two dimensions")
    require(a.shape[-1] == b.shape[-2], f"inner sizes {a.shape[-1]} and {b.shape[-2]} must be equal")
    batch = broadcast(a.shape[:-2], b.shape[:-2])
    return ValueSpec("float64", (*batch, a.shape[-2], b.shape[-1]))


def _matmul_work(a: ValueSpec, b: ValueSpec, *, output: ValueSpec, precision: Precision) -> int:
    del precision
    return a.elements + b.elements + output.elements * a.shape[-1]


@operator("matmul", 2, _matmul_spec, _matmul_work, precision=precision)
def _matmul(a: Tensor, b: Tensor, *, precision: Precision) -> Tensor:
    return exact.matmul(a, b, precision=precision)


def _linear_spec(
    x: ValueSpec, weight: ValueSpec, bias: ValueSpec | None = None, *, precision: Precision
) -> ValueSpec:
    del precision
    check_floating(x, weight, *([] if bias is None else [bias]))
    require(len(weight.shape) == 2, f"weight of {len(weight.shape)} dimensions must have 2")
    outputs, inputs = weight.shape
    require(x.shape[-1:] == (inputs,), f"x of shape {x.shape} must end in {inputs}")
    require(bias is None or bias.shape == (outputs,), f"bias must have shape ({outputs},)")
    return ValueSpec("float64", (*x.shape[:-1], outputs))


def _linear_work(
    x: ValueSpec,
    weight: ValueSpec,
    bias: ValueSpec | None = None,
    *,
    output: ValueSpec,
    precision: Precision,
) -> int:
    del bias, precision
    return x.elements + weight.elements + output.elements * weight.shape[1]


@operator("linear", (2, 3), _linear_spec, _linear_work, precision=precision)
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, precision: Precision) -> Tensor:
    return exact.linear(x, weight, bias, precision=precision)
