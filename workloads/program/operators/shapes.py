"""Operators that move numbers about and change none: the same bits on any machine by nature."""

from __future__ import annotations

import torch
from torch import Tensor

from workloads.program.limits import DIMENSION_MAX, RANK_MAX
from workloads.program.operators.registry import (
    choice,
    integer,
    integers,
    operator,
    real,
    require,
)
from workloads.program.program import DTYPES, ValueSpec

__all__ = ["broadcast"]

_DIMENSION = integer(0, RANK_MAX - 1)
_SIZE = integer(0, DIMENSION_MAX)
_SIZES = integers(0, DIMENSION_MAX)


def broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that all broadcast to, by numpy's rules.

    Raises:
        ProgramRefused: two sizes of one dimension differ and neither is 1.
    """
    rank = max((len(shape) for shape in shapes), default=0)
    result = [1] * rank
    for shape in shapes:
        for place, size in enumerate(shape, start=rank - len(shape)):
            if size != 1:
                require(result[place] in {1, size}, f"shapes {shapes} don't broadcast")
                result[place] = size
    return tuple(result)


def _dimension(spec: ValueSpec, dim: int) -> int:
    require(dim < len(spec.shape), f"dim={dim} must be below {len(spec.shape)}")
    return spec.shape[dim]


def _with_size(spec: ValueSpec, dim: int, size: int) -> ValueSpec:
    return ValueSpec(spec.dtype, (*spec.shape[:dim], size, *spec.shape[dim + 1 :]))


def _reshape_spec(x: ValueSpec, *, shape: tuple[int, ...]) -> ValueSpec:
    result = ValueSpec(x.dtype, shape)
    require(result.elements == x.elements, f"{x.elements} elements can't have shape {shape}")
    return result


@operator("reshape", 1, _reshape_spec, shape=_SIZES)
def _reshape(x: Tensor, *, shape: tuple[int, ...]) -> Tensor:
    return x.reshape(shape)


def _permute_spec(x: ValueSpec, *, order: tuple[int, ...]) -> ValueSpec:
    require(sorted(order) == list(range(len(x.shape))), f"order {order} must name each dimension once")
    return ValueSpec(x.dtype, tuple(x.shape[dim] for dim in order))


@operator("permute", 1, _permute_spec, order=integers(0, RANK_MAX - 1))
def _permute(x: Tensor, *, order: tuple[int, ...]) -> Tensor:
    return x.permute(order)


def _expand_spec(x: ValueSpec, *, shape: tuple[int, ...]) -> ValueSpec:
    require(broadcast(x.shape, shape) == shape, f"shape {x.shape} doesn't expand to {shape}")
    return ValueSpec(x.dtype, shape)


@operator("expand", 1, _expand_spec, shape=_SIZES)
def _expand(x: Tensor, *, shape: tuple[int, ...]) -> Tensor:
    return x.expand(shape)


def _slice_spec(x: ValueSpec, *, dim: int, start: int, stop: int, stride: int) -> ValueSpec:
    size = _dimension(x, dim)
    require(start <= stop <= size, f"start={start}, stop={stop} must be in order and at most {size}")
    return _with_size(x, dim, -(-(stop - start) // stride))


@operator("slice", 1, _slice_spec, dim=_DIMENSION, start=_SIZE, stop=_SIZE, stride=integer(1, DIMENSION_MAX))
def _slice(x: Tensor, *, dim: int, start: int, stop: int, stride: int) -> Tensor:
    return x[(slice(None),) * dim + (slice(start, stop, stride),)]


def _slice_backward_spec(
    gradient: ValueSpec, *, dim: int, start: int, stop: int, stride: int, size: int
) -> ValueSpec:
    given = _dimension(gradient, dim)
    require(start <= stop <= size, f"start={start}, stop={stop} must be in order and at most {size}")
    require(given == -(-(stop - start) // stride), f"{given} slices don't fill [{start}, {stop})")
    return _with_size(gradient, dim, size)


@operator(
    "slice_backward",
    1,
    _slice_backward_spec,
    dim=_DIMENSION,
    start=_SIZE,
    stop=_SIZE,
    stride=integer(1, DIMENSION_MAX),
    size=_SIZE,
)
def _slice_backward(x: Tensor, *, dim: int, start: int, stop: int, stride: int, size: int) -> Tensor:
    result = x.new_zeros((*x.shape[:dim], size, *x.shape[dim + 1 :]))
    result[(slice(None),) * dim + (slice(start, stop, stride),)] = x
    return result


def _concat_spec(*specs: ValueSpec, dim: int) -> ValueSpec:
    first = specs[0]
    total = 0
    for spec in specs:
        total += _dimension(spec, dim)
        require(
            spec.dtype == first.dtype and _with_size(spec, dim, 0) == _with_size(first, dim, 0),
            "all inputs must agree but in one dimension",
        )
    return _with_size(first, dim, total)


@operator("concat", (1, 4096), _concat_spec, dim=_DIMENSION)
def _concat(*inputs: Tensor, dim: int) -> Tensor:
    return torch.cat(inputs, dim)


def _flip_spec(x: ValueSpec, *, dim: int) -> ValueSpec:
    _dimension(x, dim)
    return x


@operator("flip", 1, _flip_spec, dim=_DIMENSION)
def _flip(x: Tensor, *, dim: int) -> Tensor:
    return x.flip(dim)


_INTEGERS = {"int64": (-(2.0**53), 2.0**53), "uint8": (0.0, 255.0)}


def _check_fill(dtype: str, value: float) -> None:
    """See that a number written in a step fits the type of the tensor that it fills."""
    if dtype in _INTEGERS:
        low, high = _INTEGERS[dtype]
        require(value == int(value) and low <= value <= high, f"value={value} must be whole and fit {dtype}")
    elif dtype != "float64":
        largest = torch.finfo(DTYPES[dtype]).max
        require(abs(value) <= largest, f"value={value} must fit {dtype}")


def _pad_spec(x: ValueSpec, *, before: tuple[int, ...], after: tuple[int, ...], value: float) -> ValueSpec:
    rank = len(x.shape)
    require(len(before) == len(after) == rank, f"before and after must each have {rank} integers")
    _check_fill(x.dtype, value)
    sizes = zip(before, x.shape, after, strict=True)
    return ValueSpec(x.dtype, tuple(low + size + high for low, size, high in sizes))


@operator("pad", 1, _pad_spec, before=_SIZES, after=_SIZES, value=real(-1e300, 1e300))
def _pad(x: Tensor, *, before: tuple[int, ...], after: tuple[int, ...], value: float) -> Tensor:
    sizes = [low + size + high for low, size, high in zip(before, x.shape, after, strict=True)]
    result = torch.full(sizes, value if x.is_floating_point() else int(value), dtype=x.dtype)
    result[tuple(slice(low, low + size) for low, size in zip(before, x.shape, strict=True))] = x
    return result


def _gather_spec(x: ValueSpec, index: ValueSpec, *, dim: int) -> ValueSpec:
    _dimension(x, dim)
    require(index.dtype == "int64", f"index of dtype {index.dtype} must be int64")
    require(len(index.shape) == len(x.shape), "index must have as many dimensions as the input")
    for place, (taken, size) in enumerate(zip(index.shape, x.shape, strict=True)):
        require(place == dim or taken <= size, f"index shape {index.shape} exceeds {x.shape}")
    return ValueSpec(x.dtype, index.shape)


@operator("gather", 2, _gather_spec, dim=_DIMENSION)
def _gather(x: Tensor, index: Tensor, *, dim: int) -> Tensor:
    _check_ids(index, x.shape[dim])
    return x.gather(dim, index)


def _index_select_spec(x: ValueSpec, index: ValueSpec, *, dim: int) -> ValueSpec:
    _dimension(x, dim)
    require(index.dtype == "int64" and len(index.shape) == 1, "index must be int64 of one dimension")
    return _with_size(x, dim, index.shape[0])


@operator("index_select", 2, _index_select_spec, dim=_DIMENSION)
def _index_select(x: Tensor, index: Tensor, *, dim: int) -> Tensor:
    _check_ids(index, x.shape[dim])
    return x.index_select(dim, index)


def _embedding_spec(weight: ValueSpec, ids: ValueSpec) -> ValueSpec:
    require(len(weight.shape) == 2, f"weight of {len(weight.shape)} dimensions must have 2")
    require(ids.dtype == "int64", f"ids of dtype {ids.dtype} must be int64")
    return ValueSpec("float64" if weight.dtype != "int64" else "int64", (*ids.shape, weight.shape[1]))


@operator("embedding", 2, _embedding_spec)
def _embedding(weight: Tensor, ids: Tensor) -> Tensor:
    _check_ids(ids, weight.shape[0])
    rows = weight[ids]
    return rows.double() if weight.is_floating_point() else rows.long()


def _check_ids(ids: Tensor, count: int) -> None:
    if ids.numel():
        low, high = int(ids.min()), int(ids.max())
        require(low >= 0 and high < count, f"ids in [{low}, {high}] must be in [0, {count})")


def _where_spec(condition: ValueSpec, x: ValueSpec, y: ValueSpec) -> ValueSpec:
    require(condition.dtype == "uint8", f"condition of dtype {condition.dtype} must be uint8")
    require(x.dtype == y.dtype, f"dtypes {x.dtype} and {y.dtype} must be equal")
    return ValueSpec(x.dtype, broadcast(condition.shape, x.shape, y.shape))


@operator("where", 3, _where_spec)
def _where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.where(condition != 0, x, y)


def _cast_spec(x: ValueSpec, *, dtype: str) -> ValueSpec:
    # A float64 that doesn't fit an integer turns into whatever the machine likes.
    require(
        not (dtype in {"int64", "uint8"} and x.dtype not in {"int64", "uint8"}),
        f"{x.dtype} can't be cast to {dtype}",
    )
    require(not (dtype == "uint8" and x.dtype == "int64"), "int64 can't be cast to uint8")
    return ValueSpec(dtype, x.shape)


@operator("cast", 1, _cast_spec, dtype=choice(*sorted(DTYPES)))
def _cast(x: Tensor, *, dtype: str) -> Tensor:
    return x.to(DTYPES[dtype])


def _full_spec(*, shape: tuple[int, ...], value: float, dtype: str) -> ValueSpec:
    _check_fill(dtype, value)
    return ValueSpec(dtype, shape)


_FULL_DTYPES = choice("float64", "float32", "int64", "uint8")


@operator("full", 0, _full_spec, shape=_SIZES, value=real(-(2.0**53), 2.0**53), dtype=_FULL_DTYPES)
def _full(*, shape: tuple[int, ...], value: float, dtype: str) -> Tensor:
    filled: float | int = value if dtype.startswith("float") else int(value)
    return torch.full(shape, filled, dtype=DTYPES[dtype])


def _arange_spec(*, start: int, count: int, stride: int) -> ValueSpec:
    return ValueSpec("int64", (count,))


_WHOLE = integer(-(2**40), 2**40)


@operator("arange", 0, _arange_spec, start=_WHOLE, count=integer(0, 2**20), stride=_WHOLE)
def _arange(*, start: int, count: int, stride: int) -> Tensor:
    return torch.arange(count, dtype=torch.int64) * stride + start


def _tril_spec(*, rows: int, columns: int, diagonal: int) -> ValueSpec:
    return ValueSpec("uint8", (rows, columns))


@operator("tril_mask", 0, _tril_spec, rows=_SIZE, columns=_SIZE, diagonal=_WHOLE)
def _tril_mask(*, rows: int, columns: int, diagonal: int) -> Tensor:
    return torch.ones(rows, columns, dtype=torch.uint8).tril(diagonal)


def _one_hot_spec(ids: ValueSpec, *, classes: int) -> ValueSpec:
    require(ids.dtype == "int64", f"ids of dtype {ids.dtype} must be int64")
    return ValueSpec("float64", (*ids.shape, classes))


@operator("one_hot", 1, _one_hot_spec, classes=_SIZE)
def _one_hot(ids: Tensor, *, classes: int) -> Tensor:
    _check_ids(ids, classes)
    return torch.nn.functional.one_hot(ids, classes).double()
