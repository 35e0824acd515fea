"""Attention and rotary positions, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from workloads import exact
from workloads.exact.quantise import Precision
from workloads.exact.rope import RotaryTable, rotate
from workloads.program.operators.registry import (
    check_floating,
    flag,
    integer,
    operator,
    operator_of_several,
    precision,
    real,
    require,
)
from workloads.program.program import ValueSpec

__all__ = ["rotary_rows"]

_POSITIONS_MAX = 2**20


def _attention_spec(
    queries: ValueSpec, keys: ValueSpec, values: ValueSpec, *, causal: bool, **_: Any
) -> ValueSpec:
    check_floating(queries, keys, values)
    q, k, v = queries.shape, keys.shape, values.shape
    require(len(q) == len(k) == len(v) >= 3, "queries, keys and values must have three dimensions or more")
    require(q[:-3] == k[:-3] == v[:-3], f"batches {q[:-3]}, {k[:-3]} and {v[:-3]} must be equal")
    require(k[-3:-1] == v[-3:-1], f"keys {k} and values {v} must agree in heads and length")
    require(k[-1] == q[-1] > 0, f"keys of width {k[-1]} must have the queries' {q[-1]}")
    require(k[-3] > 0 and q[-3] % k[-3] == 0, f"{k[-3]} key heads must divide {q[-3]} heads")
    shortest = q[-2] if causal else 1
    require(k[-2] >= max(1, shortest), f"{k[-2]} keys are fewer than {shortest}")
    return ValueSpec("float64", (*q[:-1], v[-1]))


def _attention_work(
    queries: ValueSpec, keys: ValueSpec, values: ValueSpec, *, output: ValueSpec, **_: Any
) -> int:
    del output
    scores = queries.elements // queries.shape[-1] * keys.shape[-2]
    return scores * (queries.shape[-1] + values.shape[-1] + 32)


@operator(
    "attention",
    3,
    _attention_spec,
    _attention_work,
    causal=flag,
    scale=real(2.0**-60, 2.0**60),
    precision=precision,
)
def _attention(
    queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool, scale: float, precision: Precision
) -> Tensor:
    return exact.attention(queries, keys, values, causal=causal, scale=scale, precision=precision)


_OPERANDS = ("queries", "keys", "values")


def _attention_backward_spec(
    gradient: ValueSpec, *operands: ValueSpec, causal: bool, wanted: str, **_: Any
) -> ValueSpec:
    result = _attention_spec(*operands, causal=causal)
    check_floating(gradient)
    require(gradient.shape == result.shape, f"gradient of shape {gradient.shape} must have {result.shape}")
    return ValueSpec("float64", operands[_OPERANDS.index(wanted)].shape)


def _attention_backward_work(gradient: ValueSpec, *operands: ValueSpec, output: ValueSpec, **_: Any) -> int:
    del gradient
    return 3 * _attention_work(*operands, output=output)


@operator_of_several(
    "attention_backward",
    4,
    _attention_backward_spec,
    _attention_backward_work,
    _OPERANDS,
    causal=flag,
    scale=real(2.0**-60, 2.0**60),
    precision=precision,
)
def _attention_backward(
    gradient: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    causal: bool,
    scale: float,
    precision: Precision,
) -> Sequence[Tensor]:
    return exact.attention_backward(
        gradient, queries, keys, values, causal=causal, scale=scale, precision=precision
    )


def _rotary_spec(x: ValueSpec, *, theta: float, start: int, inverse: bool) -> ValueSpec:
    del theta, inverse
    check_floating(x)
    require(len(x.shape) >= 2 and x.shape[-1] > 0, "x must have positions and a width")
    require(x.shape[-1] % 2 == 0, f"width {x.shape[-1]} must be even")
    # The table takes time and memory for every position.
    require(start + x.shape[-2] <= _POSITIONS_MAX, f"positions must stay below {_POSITIONS_MAX}")
    require(x.shape[-1] <= 2**10, f"width {x.shape[-1]} must be at most {2**10}")
    return ValueSpec("float64", x.shape)


def _rotary_work(x: ValueSpec, *, output: ValueSpec, theta: float, start: int, inverse: bool) -> int:
    del theta, inverse
    # Rows of the table are made one after the other from position 0 with big integers.
    return output.elements + (start + x.shape[-2]) * x.shape[-1] * 1_000


@lru_cache(maxsize=8)
def _table(theta: float, width: int) -> RotaryTable:
    return RotaryTable(theta, width)


def rotary_rows(theta: float, width: int, start: int, count: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines from a position on: two of (count, width / 2) float64, not to be written to."""
    cosines, sines = _table(theta, width).rows(start, count)
    return torch.from_numpy(cosines), torch.from_numpy(sines)


@operator(
    "rotary",
    1,
    _rotary_spec,
    _rotary_work,
    theta=real(1.0, 1e9),
    start=integer(0, _POSITIONS_MAX),
    inverse=flag,
)
def _rotary(x: Tensor, *, theta: float, start: int, inverse: bool) -> Tensor:
    """Rotate (..., positions, width) in Hugging Face's layout: element i pairs with i + width / 2."""
    return rotate(x, *rotary_rows(theta, x.shape[-1], start, x.shape[-2]), inverse=inverse)
