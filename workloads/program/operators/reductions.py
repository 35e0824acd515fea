"""Operators over whole dimensions: sums that are exact in any order, maxima, softmax and cross-entropy."""

from __future__ import annotations

from torch import Tensor

from workloads import exact
from workloads.program.limits import RANK_MAX
from workloads.program.operators.registry import (
    check_floating,
    flag,
    integer,
    integers,
    operator,
    require,
)
from workloads.program.program import ValueSpec

__all__ = ["dimension", "function_work"]

_DIMENSION = integer(0, RANK_MAX - 1)


def dimension(spec: ValueSpec, dim: int) -> int:
    """Size of a dimension, which must exist and not be empty.

    Raises:
        ProgramRefused: it doesn't, or is.
    """
    require(dim < len(spec.shape), f"dim={dim} must be below {len(spec.shape)}")
    require(spec.shape[dim] > 0, f"dim={dim} must not be empty")
    return spec.shape[dim]


def function_work(*specs: ValueSpec, output: ValueSpec, **_: object) -> int:
    """Elements times the few dozen passes that a function out of tables makes."""
    return 32 * max(output.elements, *(spec.elements for spec in specs))


def _reduced(x: ValueSpec, dims: tuple[int, ...], *, keepdim: bool) -> tuple[int, ...]:
    require(tuple(sorted(set(dims))) == dims, f"dims={dims} must be sorted and distinct")
    require(len(dims) > 0, "dims must name a dimension")
    for dim in dims:
        dimension(x, dim)
    if keepdim:
        return tuple(1 if dim in dims else size for dim, size in enumerate(x.shape))
    return tuple(size for dim, size in enumerate(x.shape) if dim not in dims)


def _reduce_spec(x: ValueSpec, *, dims: tuple[int, ...], keepdim: bool) -> ValueSpec:
    check_floating(x)
    return ValueSpec("float64", _reduced(x, dims, keepdim=keepdim))


_DIMS = integers(0, RANK_MAX - 1)


@operator("sum", 1, _reduce_spec, dims=_DIMS, keepdim=flag)
def _sum(x: Tensor, *, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    return exact.sum(x, dims, keepdim=keepdim)


@operator("mean", 1, _reduce_spec, dims=_DIMS, keepdim=flag)
def _mean(x: Tensor, *, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    return exact.mean(x, dims, keepdim=keepdim)


@operator("max", 1, _reduce_spec, dims=_DIMS, keepdim=flag)
def _max(x: Tensor, *, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    return exact.max(x, dims, keepdim=keepdim)


def _var_spec(x: ValueSpec, *, dims: tuple[int, ...], keepdim: bool, correction: int) -> ValueSpec:
    result = _reduce_spec(x, dims=dims, keepdim=keepdim)
    require(x.elements > correction * result.elements, f"correction={correction} leaves nothing to divide by")
    return result


@operator("var", 1, _var_spec, dims=_DIMS, keepdim=flag, correction=integer(0, 1))
def _var(x: Tensor, *, dims: tuple[int, ...], keepdim: bool, correction: int) -> Tensor:
    return exact.var(x, dims, correction=correction, keepdim=keepdim)


def _argmax_spec(x: ValueSpec, *, dim: int, keepdim: bool) -> ValueSpec:
    check_floating(x)
    return ValueSpec("int64", _reduced(x, (dim,), keepdim=keepdim))


@operator("argmax", 1, _argmax_spec, dim=_DIMENSION, keepdim=flag)
def _argmax(x: Tensor, *, dim: int, keepdim: bool) -> Tensor:
    return exact.argmax(x, dim, keepdim=keepdim)


def _targets_spec(logits: ValueSpec, targets: ValueSpec) -> None:
    check_floating(logits)
    require(len(logits.shape) == 2 and logits.elements > 0, "logits must have two dimensions, not empty")
    require(
        targets == ValueSpec("int64", logits.shape[:1]),
        f"targets must be int64 of shape {logits.shape[:1]}",
    )


def _loss_spec(logits: ValueSpec, targets: ValueSpec) -> ValueSpec:
    _targets_spec(logits, targets)
    return ValueSpec("float64", ())


@operator("cross_entropy", 2, _loss_spec, function_work)
def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return exact.cross_entropy(logits, targets).reshape(())


def _loss_backward_spec(gradient: ValueSpec, logits: ValueSpec, targets: ValueSpec) -> ValueSpec:
    _targets_spec(logits, targets)
    check_floating(gradient)
    require(gradient.shape == (), f"gradient of shape {gradient.shape} must be a scalar")
    return ValueSpec("float64", logits.shape)


@operator("cross_entropy_backward", 3, _loss_backward_spec, function_work)
def _cross_entropy_backward(gradient: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    return exact.cross_entropy_backward(gradient, logits, targets)
