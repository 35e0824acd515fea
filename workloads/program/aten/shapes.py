"""Rules for what moves numbers about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from workloads.errors import ProgramRefused
from workloads.program.aten.arguments import OPERATORS, Arguments, Rule, rule, to_dimension
from workloads.program.builder import Value
from workloads.program.limits import STEP_INPUTS_MAX
from workloads.program.operators.registry import FLOATING

__all__ = ["reshaped"]


@rule("alias.default", "clone.default", "contiguous.default", "detach.default", "lift_fresh_copy.default",
       "dropout.default", "_assert_tensor_metadata.default")  # fmt: skip
def _same(a: Arguments) -> Value | None:
    """What changes no value. Dropout does only while training."""
    a.none("train")
    a.ignore("memory_format", "p", "size", "stride", "dtype", "device", "layout")
    if a.has("a"):  # A check of the exporter, without an output.
        a.ignore("a")
        return None
    return a.tensor("input" if a.has("input") else "self")


@rule("to.dtype", "to.dtype_layout", "to.device", "_to_copy.default", "type_as.default")
def _to(a: Arguments) -> Value:
    dtype = a.word("dtype", "float64")
    a.ignore("device", "layout", "non_blocking", "copy", "memory_format", "pin_memory", "other")
    x = a.tensor()
    given = a.builder.specs[x].dtype
    if dtype in FLOATING:
        return a.real(x)
    return x if given == dtype else a.builder.apply("cast", x, dtype=dtype)


def reshaped(a: Arguments, x: Value, shape: Sequence[int]) -> Value:
    """``x`` in another shape, of which one size may be -1: what is left."""
    if list(shape).count(-1) == 1:
        known = math.prod(size for size in shape if size != -1)
        elements = math.prod(a.shape(x))
        shape = [elements // known if size == -1 and known else size for size in shape]
    return a.builder.apply("reshape", x, shape=tuple(shape))


@rule("view.default", "reshape.default", "_unsafe_view.default")
def _reshape(a: Arguments) -> Value:
    sizes = a.integers("size" if a.has("size") else "shape")
    return reshaped(a, a.tensor(), sizes)


@rule("flatten.using_ints")
def _flatten(a: Arguments) -> Value:
    x = a.tensor()
    shape = a.shape(x)
    start, end = (
        a.dimension(len(shape), name, default) for name, default in (("start_dim", 0), ("end_dim", -1))
    )
    return reshaped(a, x, (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]))


@rule("unflatten.int")
def _unflatten(a: Arguments) -> Value:
    x = a.tensor()
    shape = a.shape(x)
    dim = a.dimension(len(shape))
    return reshaped(a, x, (*shape[:dim], *a.integers("sizes"), *shape[dim + 1 :]))


@rule("unsqueeze.default")
def _unsqueeze(a: Arguments) -> Value:
    x = a.tensor()
    shape = a.shape(x)
    dim = a.dimension(len(shape) + 1)
    return reshaped(a, x, (*shape[:dim], 1, *shape[dim:]))


@rule("squeeze.dim", "squeeze.dims")
def _squeeze(a: Arguments) -> Value:
    x = a.tensor()
    shape = a.shape(x)
    gone = {to_dimension(dim, len(shape)) for dim in a.integers("dim")}
    return reshaped(a, x, [size for dim, size in enumerate(shape) if dim not in gone or size != 1])


@rule("permute.default")
def _permute(a: Arguments) -> Value:
    x = a.tensor()
    rank = len(a.shape(x))
    return a.builder.apply("permute", x, order=[to_dimension(dim, rank) for dim in a.integers("dims")])


def _swapped(a: Arguments, x: Value, first: int, second: int) -> Value:
    order = list(range(len(a.shape(x))))
    order[first], order[second] = order[second], order[first]
    return a.builder.apply("permute", x, order=order)


@rule("transpose.int")
def _transpose(a: Arguments) -> Value:
    x = a.tensor()
    rank = len(a.shape(x))
    return _swapped(a, x, a.dimension(rank, "dim0"), a.dimension(rank, "dim1"))


@rule("t.default", "numpy_T.default")
def _matrix_transpose(a: Arguments) -> Value:
    x = a.tensor()
    if len(a.shape(x)) != 2:
        raise ProgramRefused("a tensor to transpose must have two dimensions")
    return _swapped(a, x, 0, 1)


@rule("expand.default")
def _expand(a: Arguments) -> Value:
    x, sizes = a.tensor(), a.integers("size")
    a.ignore("implicit")
    known = (1,) * (len(sizes) - len(a.shape(x))) + a.shape(x)
    shape = [old if size == -1 else size for size, old in zip(sizes, known, strict=True)]
    return a.builder.apply("expand", x, shape=shape)


@rule("cat.default", "concat.default")
def _concat(a: Arguments) -> Value:
    parts = a.alike(*a.tensors("tensors"))
    return a.builder.apply("concat", *parts, dim=a.dimension(len(a.shape(parts[0])), default=0))


@rule("stack.default")
def _stack(a: Arguments) -> Value:
    parts = a.alike(*a.tensors("tensors"))
    shape = a.shape(parts[0])
    dim = a.dimension(len(shape) + 1, default=0)
    rows = [reshaped(a, part, (*shape[:dim], 1, *shape[dim:])) for part in parts]
    return a.builder.apply("concat", *rows, dim=dim)


def _sliced(a: Arguments, x: Value, dim: int, start: int, stop: int, stride: int = 1) -> Value:  # noqa: PLR0917
    return a.builder.apply("slice", x, dim=dim, start=start, stop=stop, stride=stride)


def _pieces(a: Arguments, x: Value, dim: int, sizes: Sequence[int]) -> list[Value]:
    if len(sizes) > STEP_INPUTS_MAX:
        raise ProgramRefused(f"{len(sizes)} pieces are more than {STEP_INPUTS_MAX}")
    stops = list(accumulate(sizes))
    return [_sliced(a, x, dim, stop - size, stop) for stop, size in zip(stops, sizes, strict=True)]


def _even(size: int, piece: int) -> list[int]:
    if piece < 1:
        raise ProgramRefused(f"pieces of {piece} must be at least 1")
    count = -(-size // piece)
    if count > STEP_INPUTS_MAX:
        raise ProgramRefused(f"{count} pieces are more than {STEP_INPUTS_MAX}")
    return [min(piece, size - start) for start in range(0, size, piece)]


@rule("split.Tensor", "chunk.default")
def _split(a: Arguments) -> list[Value]:
    x = a.tensor()
    dim = a.dimension(len(a.shape(x)), default=0)
    size = a.shape(x)[dim]
    piece = -(-size // max(1, a.integer("chunks"))) if a.has("chunks") else a.integer("split_size")
    return _pieces(a, x, dim, _even(size, piece))


@rule("split_with_sizes.default")
def _split_with_sizes(a: Arguments) -> list[Value]:
    x = a.tensor()
    dim = a.dimension(len(a.shape(x)), default=0)
    return _pieces(a, x, dim, a.integers("split_sizes"))


@rule("unbind.int")
def _unbind(a: Arguments) -> list[Value]:
    x = a.tensor()
    shape = a.shape(x)
    dim = a.dimension(len(shape), default=0)
    rest = (*shape[:dim], *shape[dim + 1 :])
    return [reshaped(a, piece, rest) for piece in _pieces(a, x, dim, _even(shape[dim], 1))]


@rule("slice.Tensor")
def _slice(a: Arguments) -> Value:
    x = a.tensor()
    dim = a.dimension(len(a.shape(x)), default=0)
    size = a.shape(x)[dim]
    start, stop = (
        _clipped(int(a.number(name, default)), size) for name, default in (("start", 0), ("end", size))
    )
    return _sliced(a, x, dim, start, max(start, stop), a.integer("step", 1))


def _clipped(index: int, size: int) -> int:
    return min(max(index + size if index < 0 else index, 0), size)


@rule("select.int")
def _select(a: Arguments) -> Value:
    x = a.tensor()
    shape = a.shape(x)
    dim = a.dimension(len(shape))
    index = to_dimension(a.integer("index"), shape[dim])
    return reshaped(a, _sliced(a, x, dim, index, index + 1), (*shape[:dim], *shape[dim + 1 :]))


@rule("index_select.default")
def _index_select(a: Arguments) -> Value:
    x = a.tensor()
    return a.builder.apply("index_select", x, a.tensor("index"), dim=a.dimension(len(a.shape(x))))


@rule("index.Tensor")
def _index(a: Arguments) -> Value:
    x, indices = a.tensor(), a.optional_tensors("indices")
    places = [dim for dim, index in enumerate(indices) if index is not None]
    if len(places) != 1:
        raise ProgramRefused(f"{len(places)} index tensors must be 1")
    (dim,) = places
    index = indices[dim] or 0
    rows, shape = a.shape(index), a.shape(x)
    taken = a.builder.apply("index_select", x, reshaped(a, index, (math.prod(rows),)), dim=dim)
    return reshaped(a, taken, (*shape[:dim], *rows, *shape[dim + 1 :]))


@rule("gather.default")
def _gather(a: Arguments) -> Value:
    a.none("sparse_grad")
    x = a.tensor()
    return a.builder.apply("gather", x, a.tensor("index"), dim=a.dimension(len(a.shape(x))))


@rule("embedding.default")
def _embedding(a: Arguments) -> Value:
    a.ignore("padding_idx", "scale_grad_by_freq", "sparse")
    return a.builder.apply("embedding", a.tensor("weight"), a.tensor("indices"))


@rule("pad.default", "constant_pad_nd.default")
def _pad(a: Arguments) -> Value:
    if a.word("mode", "constant") != "constant":
        raise ProgramRefused("mode must be 'constant'")
    x, margins, value = a.tensor(), a.integers("pad"), float(a.number("value", 0.0))
    rank = len(a.shape(x))
    if len(margins) % 2 or len(margins) > 2 * rank or min(margins, default=0) < 0:
        raise ProgramRefused(f"pad={margins} must be pairs of natural numbers, {rank} at most")
    # Pairs come from the last dimension on.
    pairs = [(0, 0)] * (rank - len(margins) // 2) + list(zip(margins[::2], margins[1::2], strict=True))[::-1]
    before, after = zip(*pairs, strict=True)
    return a.builder.apply("pad", x, before=before, after=after, value=value)


_FACTORY = ("dtype", "layout", "device", "pin_memory", "memory_format")


@rule("arange.default", "arange.start", "arange.start_step")
def _arange(a: Arguments) -> Value:
    dtype = a.word("dtype", "int64")
    a.ignore(*_FACTORY)
    start, end, step = a.integer("start", 0), a.integer("end"), a.integer("step", 1)
    if not step:
        raise ProgramRefused("step must not be 0")
    count = max(0, -(-(end - start) // step))
    numbers = a.builder.apply("arange", start=start, count=count, stride=step)
    return a.real(numbers) if dtype in FLOATING else numbers


def _filled(value: float | None, *, like: bool) -> Rule:
    def write(a: Arguments) -> Value:
        shape = a.shape(a.tensor()) if like else a.integers("size", ())
        number = a.number("fill_value") if value is None else value
        dtype = a.word("dtype", "int64" if isinstance(number, int) else "float64")
        a.ignore(*_FACTORY)
        kind = "float64" if dtype in FLOATING else dtype
        return a.builder.apply("full", shape=tuple(shape), value=float(number), dtype=kind)

    return write


OPERATORS["full.default"] = _filled(None, like=False)
OPERATORS["zeros.default"] = _filled(0.0, like=False)
OPERATORS["ones.default"] = _filled(1.0, like=False)
OPERATORS["full_like.default"] = _filled(None, like=True)
OPERATORS["zeros_like.default"] = _filled(0.0, like=True)
OPERATORS["ones_like.default"] = _filled(1.0, like=True)
