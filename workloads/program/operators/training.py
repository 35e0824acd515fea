"""Operators of a training step: the gradient of an embedding and the optimiser."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from workloads import exact
from workloads.program.limits import DIMENSION_MAX
from workloads.program.operators.registry import (
    check_floating,
    integer,
    operator,
    operator_of_several,
    real,
    require,
)
from workloads.program.program import ValueSpec

__all__: list[str] = []


def _embedding_backward_spec(gradient: ValueSpec, ids: ValueSpec, *, rows: int) -> ValueSpec:
    check_floating(gradient)
    require(ids.dtype == "int64", f"ids of dtype {ids.dtype} must be int64")
    require(
        len(gradient.shape) >= 1 and gradient.shape[:-1] == ids.shape,
        f"gradient of shape {gradient.shape} must have a row for each of {ids.shape}",
    )
    return ValueSpec("float64", (rows, gradient.shape[-1]))


@operator("embedding_backward", 2, _embedding_backward_spec, rows=integer(1, DIMENSION_MAX))
def _embedding_backward(gradient: Tensor, ids: Tensor, *, rows: int) -> Tensor:
    return exact.embedding_backward(gradient, ids, rows)


def _adamw_spec(parameter: ValueSpec, *others: ValueSpec, **_: object) -> ValueSpec:
    check_floating(parameter, *others)
    require(
        all(spec.shape == parameter.shape for spec in others),
        "parameter, gradient, mean and variance must have one shape",
    )
    return ValueSpec("float64", parameter.shape)


def _adamw_work(parameter: ValueSpec, *_: ValueSpec, output: ValueSpec, **__: object) -> int:
    del output
    return 32 * parameter.elements


_BETA = real(0.0, 1.0 - 2.0**-30)


@operator_of_several(
    "adamw",
    4,
    _adamw_spec,
    _adamw_work,
    ("parameter", "mean", "variance"),
    step=integer(1, 2**40),
    learning_rate=real(0.0, 2.0**10),
    beta1=_BETA,
    beta2=_BETA,
    epsilon=real(2.0**-100, 1.0),
    weight_decay=real(0.0, 2.0**10),
)
def _adamw(
    parameter: Tensor,
    gradient: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    step: int,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
) -> Sequence[Tensor]:
    return exact.adamw_step(
        parameter,
        gradient,
        mean,
        variance,
        step=step,
        learning_rate=learning_rate,
        betas=(beta1, beta2),
        epsilon=epsilon,
        weight_decay=weight_decay,
    )
