"""The operators of a Llama decoder in an exact profile, with the bits of `workloads.llama.exact_model`.

They are that module's rules cut into pieces small enough to be opened in a dispute: a piece takes some rows
of a sequence, or one group of heads, and weights as the model's file has them. What a piece returns is the
same however the sequence was cut, so executors that never cut anything can still be held to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workloads import exact
from workloads.errors import NumericsRefused
from workloads.exact.functions import EXP2_LIMIT, LOG2_E, exp2_inplace, root_mean_square, silu_times
from workloads.exact.linear import contract
from workloads.exact.quantise import EXPONENT_MAX, Float64, Precision, power_of_two, quantise, rounders
from workloads.exact.rope import RotaryTable
from workloads.program.limits import DIMENSION_MAX, STEP_INPUTS_MAX
from workloads.program.operators.registry import (
    check_floating,
    integer,
    operator,
    precision,
    real,
    require,
)
from workloads.program.program import ValueSpec

__all__ = ["POSITIONS_MAX"]

POSITIONS_MAX = 1 << 17
"""Positions whose rotations a referee works out; a table of all of them takes seconds."""

_WIDTH_MAX = 1 << 10
_CEILING = 2.0**EXPONENT_MAX
# As `workloads.exact.attention` has it: probabilities are multiples of 2**-30 of the largest.
_PROBABILITY_ROUNDER = 1.5 * 2.0 ** (52 - 30)
_POSITION = integer(0, POSITIONS_MAX - 1)
_INDEX = integer(0, DIMENSION_MAX)
_EPSILON = real(1e-12, 1.0)
_THETA = real(1.0, 1e9)


def _array(tensor: Tensor) -> Float64:
    """A floating value as float64, not to be written to.

    Raises:
        NumericsRefused: it holds NaN, Inf or more than 2**500.
    """
    array: Float64 = tensor.to(torch.float64).contiguous().numpy()
    # Written so that NaN fails too.
    if array.size and not (array.min() >= -_CEILING and array.max() <= _CEILING):
        raise NumericsRefused(f"operator input holds NaN, Inf or a magnitude above 2**{EXPONENT_MAX}")
    return array


def _product(rows: Float64, weight: Float64, exactness: Precision) -> Float64:
    """Rows times a weight (outputs, inputs), both quantised."""
    product: Float64 = exact.linear(
        torch.from_numpy(rows), torch.from_numpy(weight), precision=exactness
    ).numpy()
    # The sign of a zero depends on how a BLAS starts its sums.
    return product + 0.0


def _matrix(spec: ValueSpec, name: str) -> tuple[int, int]:
    check_floating(spec)
    require(len(spec.shape) == 2, f"{name} of shape {spec.shape} must have two dimensions")
    return spec.shape[0], spec.shape[1]


def _normed_shapes(stream: ValueSpec, gain: ValueSpec, weights: Sequence[ValueSpec]) -> tuple[int, list[int]]:
    rows, hidden = _matrix(stream, "stream")
    check_floating(gain)
    require(hidden > 0 and gain.shape == (hidden,), f"gain of shape {gain.shape} must be ({hidden},)")
    outputs = []
    for weight in weights:
        output, inner = _matrix(weight, "weight")
        require(inner == hidden, f"weight of shape {weight.shape} must take {hidden} inputs")
        outputs.append(output)
    return rows, outputs


def _normed(
    stream: Float64, gain: Float64, weights: Sequence[Tensor], epsilon: float, exactness: Precision
) -> Float64:
    """Projections side by side, divided by the root mean square of the quantised stream."""
    norm = root_mean_square(quantise(stream, exactness.bits), epsilon, exactness.inner_max)
    side_by_side = np.concatenate([_array(weight) for weight in weights])
    return _product(stream, side_by_side * gain, exactness) / norm


def _embed_spec(embedding: ValueSpec, tokens: ValueSpec, *, start: int, count: int) -> ValueSpec:
    vocabulary, hidden = _matrix(embedding, "embedding")
    require(vocabulary > 0, "embedding must hold a row")
    require(tokens.dtype == "int64" and len(tokens.shape) == 1, "tokens must be a list of int64")
    require(start + count <= tokens.shape[0], f"tokens {start} to {start + count} of {tokens.shape[0]}")
    return ValueSpec("float64", (count, hidden))


@operator("llama.embed", 2, _embed_spec, start=_INDEX, count=_INDEX)
def _embed(embedding: Tensor, tokens: Tensor, *, start: int, count: int) -> Tensor:
    # A token that doesn't exist is false by itself; its chunk must still be judged, not refused.
    wanted = tokens[start : start + count].clamp(0, embedding.shape[0] - 1)
    return torch.from_numpy(_array(embedding[wanted]) + 0.0)


def _project_spec(stream: ValueSpec, gain: ValueSpec, *weights: ValueSpec, **_: Any) -> ValueSpec:
    rows, outputs = _normed_shapes(stream, gain, weights)
    return ValueSpec("float64", (rows, sum(outputs)))


def _project_work(stream: ValueSpec, gain: ValueSpec, *weights: ValueSpec, **_: Any) -> int:
    return (stream.shape[0] + 1) * sum(weight.elements for weight in weights)


@operator("llama.project", (3, 5), _project_spec, work=_project_work, epsilon=_EPSILON, precision=precision)
def _project(stream: Tensor, gain: Tensor, *weights: Tensor, epsilon: float, precision: Precision) -> Tensor:
    """Norm, then projections side by side."""
    return torch.from_numpy(_normed(_array(stream), _array(gain), weights, epsilon, precision))


def _swiglu_spec(stream: ValueSpec, gain: ValueSpec, gate: ValueSpec, up: ValueSpec, **_: Any) -> ValueSpec:
    rows, (width, other) = _normed_shapes(stream, gain, (gate, up))
    require(width == other, f"gate and up of {width} and {other} outputs must have the same")
    return ValueSpec("float64", (rows, width))


@operator("llama.swiglu", 4, _swiglu_spec, work=_project_work, epsilon=_EPSILON, precision=precision)
def _swiglu(
    stream: Tensor, gain: Tensor, gate: Tensor, up: Tensor, *, epsilon: float, precision: Precision
) -> Tensor:
    """Norm, then the gated half of a feed-forward block."""
    both = _normed(_array(stream), _array(gain), (gate, up), epsilon, precision)
    return torch.from_numpy(silu_times(both[:, : len(gate)], both[:, len(gate) :]))


@lru_cache(maxsize=4)
def _table(theta: float, width: int) -> RotaryTable:
    return RotaryTable(theta, width)


def _rotated(heads: Float64, start: int, theta: float, scale: float) -> Float64:
    """Heads (rows, heads, width) of consecutive positions, rotated and scaled."""
    rows, _, width = heads.shape
    cosines, sines = (part[:, None, :] * scale for part in _table(theta, width).rows(start, rows))
    low, high = heads[..., : width // 2], heads[..., width // 2 :]
    return np.concatenate((low * cosines + high * -sines, high * cosines + low * sines), axis=-1)


def _heads_spec(projected: ValueSpec, columns: int, width: int, start: int, heads: int) -> ValueSpec:
    rows, given = _matrix(projected, "projected")
    require(0 < width <= _WIDTH_MAX and width % 2 == 0, f"width={width} must be even, {_WIDTH_MAX} at most")
    require(columns <= given, f"columns up to {columns} must be among {given}")
    require(start + rows <= POSITIONS_MAX, f"positions up to {start + rows} must be at most {POSITIONS_MAX}")
    return ValueSpec("float64", (rows, heads, width))


def _rotation_work(projected: ValueSpec, *, start: int, width: int, **_: Any) -> int:
    # A row of the table is built from the one before, in Python integers of 160 bits.
    return projected.elements + 1_000 * (start + projected.shape[0]) * width


def _queries_spec(
    projected: ValueSpec, *, start: int, column: int, heads: int, width: int, theta: float
) -> ValueSpec:
    return _heads_spec(projected, column + heads * width, width, start, heads)


@operator(
    "llama.queries",
    1,
    _queries_spec,
    work=_rotation_work,
    start=_POSITION,
    column=_INDEX,
    heads=_INDEX,
    width=_INDEX,
    theta=_THETA,
)
def _queries(projected: Tensor, *, start: int, column: int, heads: int, width: int, theta: float) -> Tensor:
    """Rotated queries that carry the softmax's base change and scale."""
    rows = _array(projected)[:, column : column + heads * width].reshape(len(projected), heads, width)
    scale = LOG2_E / float(np.sqrt(np.float64(width)))
    return torch.from_numpy(_rotated(rows, start, theta, scale))


def _keys_values_spec(
    projected: ValueSpec, *, start: int, key: int, value: int, width: int, theta: float
) -> ValueSpec:
    return _heads_spec(projected, max(key, value) + width, width, start, 2)


@operator(
    "llama.keys_values",
    1,
    _keys_values_spec,
    work=_rotation_work,
    start=_POSITION,
    key=_INDEX,
    value=_INDEX,
    width=_INDEX,
    theta=_THETA,
)
def _keys_values(projected: Tensor, *, start: int, key: int, value: int, width: int, theta: float) -> Tensor:
    """The rotated key and the value of one head, side by side."""
    rows = _array(projected)
    keys = _rotated(rows[:, None, key : key + width], start, theta, 1.0)
    return torch.from_numpy(np.concatenate((keys, rows[:, None, value : value + width]), axis=1))


def _attend_spec(queries: ValueSpec, *keys_values: ValueSpec, start: int, precision: Precision) -> ValueSpec:
    check_floating(queries, *keys_values)
    require(len(queries.shape) == 3, f"queries of shape {queries.shape} must have three dimensions")
    rows, heads, width = queries.shape
    for block in keys_values:
        require(
            len(block.shape) == 3 and block.shape[1:] == (2, width),
            f"keys and values of shape {block.shape} must be (rows, 2, {width})",
        )
    seen = sum(block.shape[0] for block in keys_values)
    require(seen == start + rows, f"{seen} keys must be the {start + rows} up to the last query")
    return ValueSpec("float64", (rows, heads * width))


def _attend_work(queries: ValueSpec, *keys_values: ValueSpec, **_: Any) -> int:
    rows, heads, width = queries.shape
    return rows * heads * (2 * width + 32) * sum(block.shape[0] for block in keys_values)


@operator(
    "llama.attend",
    (2, STEP_INPUTS_MAX),
    _attend_spec,
    work=_attend_work,
    start=_POSITION,
    precision=precision,
)
def _attend(queries: Tensor, *keys_values: Tensor, start: int, precision: Precision) -> Tensor:
    """Causal attention of some positions, for the query heads that share one key head."""
    rows, heads, width = queries.shape
    asked = quantise(_array(queries), precision.bits).reshape(rows * heads, width)
    both = np.concatenate([_array(block) for block in keys_values])
    constants = rounders(both, precision.bits)
    both = (both + constants) - constants
    scales = power_of_two(constants[:, 1, 0])
    keys, values = (torch.from_numpy(np.ascontiguousarray(both[:, i])) for i in (0, 1))
    values /= torch.from_numpy(scales)[:, None]
    weights: Float64 = contract(torch.from_numpy(asked), keys.t(), precision.inner_max).numpy()
    weights = weights.reshape(rows, heads, -1)
    np.copyto(weights, -np.inf, where=_later(start, rows)[:, None, :])
    weights -= np.maximum.reduce(weights, axis=-1, keepdims=True)
    np.maximum(weights, -EXP2_LIMIT, out=weights)
    exp2_inplace(weights)
    weights += _PROBABILITY_ROUNDER
    weights -= _PROBABILITY_ROUNDER
    total = np.add.reduce(weights, axis=-1, keepdims=True)
    weights = quantise(weights * scales, precision.bits).reshape(rows * heads, -1)
    mixed: Float64 = contract(torch.from_numpy(weights), values, precision.inner_max).numpy()
    mixed += 0.0
    return torch.from_numpy((mixed.reshape(rows, heads, width) / total).reshape(rows, -1))


def _later(start: int, rows: int) -> NDArray[np.bool_]:
    """(rows, start + rows): True where a key comes after its query."""
    return np.arange(start + rows) > np.arange(start, start + rows)[:, None]


def _add_linear_spec(stream: ValueSpec, weight: ValueSpec, *parts: ValueSpec, **_: Any) -> ValueSpec:
    rows, hidden = _matrix(stream, "stream")
    output, inner = _matrix(weight, "weight")
    shapes = [_matrix(part, "part") for part in parts]
    require(all(height == rows for height, _ in shapes), f"parts must have {rows} rows")
    require(sum(width for _, width in shapes) == inner, f"parts must be {inner} wide together")
    require(output == hidden, f"weight of {output} outputs must have {hidden}")
    return ValueSpec("float64", (rows, hidden))


def _add_linear_work(stream: ValueSpec, weight: ValueSpec, *parts: ValueSpec, **_: Any) -> int:
    return (stream.shape[0] + 1) * weight.elements


@operator(
    "llama.add_linear",
    (3, STEP_INPUTS_MAX),
    _add_linear_spec,
    work=_add_linear_work,
    precision=precision,
)
def _add_linear(stream: Tensor, weight: Tensor, *parts: Tensor, precision: Precision) -> Tensor:
    """The residual stream plus a projection of the parts side by side."""
    rows = np.concatenate([_array(part) for part in parts], axis=-1)
    return torch.from_numpy(_array(stream) + _product(rows, _array(weight), precision))


def _final_norm_spec(
    gain: ValueSpec, *streams: ValueSpec, first: int, count: int, epsilon: float, precision: Precision
) -> ValueSpec:
    check_floating(gain)
    shapes = [_matrix(stream, "stream") for stream in streams]
    hidden = shapes[0][1]
    require(hidden > 0 and gain.shape == (hidden,), f"gain of shape {gain.shape} must be ({hidden},)")
    require(all(width == hidden for _, width in shapes), f"streams must be {hidden} wide")
    rows = sum(height for height, _ in shapes)
    require(first + count <= rows, f"rows {first} to {first + count} must be among {rows}")
    return ValueSpec("float32", (count, hidden))


@operator(
    "llama.final_norm",
    (2, STEP_INPUTS_MAX),
    _final_norm_spec,
    first=_INDEX,
    count=_INDEX,
    epsilon=_EPSILON,
    precision=precision,
)
def _final_norm(
    gain: Tensor, *streams: Tensor, first: int, count: int, epsilon: float, precision: Precision
) -> Tensor:
    """Final hidden states of some rows of a stream that comes in blocks."""
    stream = np.concatenate([_array(block) for block in streams])[first : first + count]
    norm = root_mean_square(quantise(stream, precision.bits), epsilon, precision.inner_max)
    return torch.from_numpy((stream / norm * _array(gain)).astype(np.float32))


def _logits_spec(hidden: ValueSpec, head: ValueSpec, **_: Any) -> ValueSpec:
    rows, width = _matrix(hidden, "hidden")
    vocabulary, inner = _matrix(head, "head")
    require(width == inner, f"head of shape {head.shape} must take {width} inputs")
    return ValueSpec("float64", (rows, vocabulary))


def _logits_work(hidden: ValueSpec, head: ValueSpec, **_: Any) -> int:
    return (hidden.shape[0] + 1) * head.elements


@operator("llama.logits", 2, _logits_spec, work=_logits_work, precision=precision)
def _logits(hidden: Tensor, head: Tensor, *, precision: Precision) -> Tensor:
    return torch.from_numpy(_product(_array(hidden), _array(head), precision))
