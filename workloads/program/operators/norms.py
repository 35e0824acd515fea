"""Norms and softmax, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from workloads import exact
from workloads.program.limits import RANK_MAX
from workloads.program.operators.reductions import dimension, function_work
from workloads.program.operators.registry import (
    check_floating,
    integer,
    operator,
    operator_of_several,
    real,
    require,
)
from workloads.program.program import ValueSpec

__all__ = ["EPSILON"]

EPSILON = real(2.0**-60, 1.0)
_DIMENSION = integer(0, RANK_MAX - 1)
_GROUPS = integer(1, 2**16)


def _check_vectors(size: int, *vectors: ValueSpec) -> None:
    for vector in vectors:
        check_floating(vector)
        require(vector.shape == (size,), f"gain or bias of shape {vector.shape} must have ({size},)")


def _row_norm_spec(x: ValueSpec, *vectors: ValueSpec, epsilon: float) -> ValueSpec:
    del epsilon
    check_floating(x)
    _check_vectors(dimension(x, max(len(x.shape) - 1, 0)), *vectors)
    return ValueSpec("float64", x.shape)


def _row_norm_backward_spec(
    gradient: ValueSpec, x: ValueSpec, *vectors: ValueSpec, epsilon: float, wanted: str
) -> ValueSpec:
    result = _row_norm_spec(x, *vectors, epsilon=epsilon)
    check_floating(gradient)
    require(gradient.shape == x.shape, f"gradient of shape {gradient.shape} must have {x.shape}")
    return result if wanted == "x" else ValueSpec("float64", x.shape[-1:])


@operator("rms_norm", (1, 2), _row_norm_spec, function_work, epsilon=EPSILON)
def _rms_norm(x: Tensor, weight: Tensor | None = None, *, epsilon: float) -> Tensor:
    return exact.rms_norm(x, weight, epsilon=epsilon)


@operator_of_several(
    "rms_norm_backward",
    (2, 3),
    _row_norm_backward_spec,
    function_work,
    ("x", "weight"),
    epsilon=EPSILON,
)
def _rms_norm_backward(
    gradient: Tensor, x: Tensor, weight: Tensor | None = None, *, epsilon: float
) -> Sequence[Tensor]:
    return exact.rms_norm_backward(gradient, x, weight, epsilon=epsilon)


@operator("layer_norm", (1, 3), _row_norm_spec, function_work, epsilon=EPSILON)
def _layer_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, epsilon: float
) -> Tensor:
    return exact.layer_norm(x, weight, bias, epsilon=epsilon)


_NORM_RESULTS = ("x", "weight", "bias")


@operator_of_several(
    "layer_norm_backward", (2, 3), _row_norm_backward_spec, function_work, _NORM_RESULTS, epsilon=EPSILON
)
def _layer_norm_backward(
    gradient: Tensor, x: Tensor, weight: Tensor | None = None, *, epsilon: float
) -> Sequence[Tensor]:
    return exact.layer_norm_backward(gradient, x, weight, epsilon=epsilon)


def _group_norm_spec(x: ValueSpec, *vectors: ValueSpec, groups: int, epsilon: float) -> ValueSpec:
    del epsilon
    check_floating(x)
    require(len(x.shape) >= 2 and x.elements > 0, "x must have channels and not be empty")
    require(x.shape[1] % groups == 0, f"groups={groups} must divide {x.shape[1]} channels")
    _check_vectors(x.shape[1], *vectors)
    return ValueSpec("float64", x.shape)


@operator("group_norm", (1, 3), _group_norm_spec, function_work, groups=_GROUPS, epsilon=EPSILON)
def _group_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, groups: int, epsilon: float
) -> Tensor:
    return exact.group_norm(x, groups, weight, bias, epsilon=epsilon)


def _group_norm_backward_spec(
    gradient: ValueSpec, x: ValueSpec, *vectors: ValueSpec, groups: int, epsilon: float, wanted: str
) -> ValueSpec:
    result = _group_norm_spec(x, *vectors, groups=groups, epsilon=epsilon)
    check_floating(gradient)
    require(gradient.shape == x.shape, f"gradient of shape {gradient.shape} must have {x.shape}")
    return result if wanted == "x" else ValueSpec("float64", x.shape[1:2])


@operator_of_several(
    "group_norm_backward",
    (2, 3),
    _group_norm_backward_spec,
    function_work,
    _NORM_RESULTS,
    groups=_GROUPS,
    epsilon=EPSILON,
)
def _group_norm_backward(
    gradient: Tensor, x: Tensor, weight: Tensor | None = None, *, groups: int, epsilon: float
) -> Sequence[Tensor]:
    return exact.group_norm_backward(gradient, x, groups, weight, epsilon=epsilon)


def _softmax_spec(*specs: ValueSpec, dim: int) -> ValueSpec:
    check_floating(*specs)
    dimension(specs[0], dim)
    require(all(spec.shape == specs[0].shape for spec in specs), "inputs must have one shape")
    return ValueSpec("float64", specs[0].shape)


@operator("softmax", 1, _softmax_spec, function_work, dim=_DIMENSION)
def _softmax(x: Tensor, *, dim: int) -> Tensor:
    return exact.softmax(x, dim)


@operator("softmax_backward", 2, _softmax_spec, dim=_DIMENSION)
def _softmax_backward(gradient: Tensor, result: Tensor, *, dim: int) -> Tensor:
    return exact.softmax_backward(gradient, result, dim)


@operator("log_softmax", 1, _softmax_spec, function_work, dim=_DIMENSION)
def _log_softmax(x: Tensor, *, dim: int) -> Tensor:
    return exact.log_softmax(x, dim)


@operator("log_softmax_backward", 2, _softmax_spec, function_work, dim=_DIMENSION)
def _log_softmax_backward(gradient: Tensor, x: Tensor, *, dim: int) -> Tensor:
    return exact.log_softmax_backward(gradient, x, dim)
