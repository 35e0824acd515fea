"""ONNX operators that move numbers about."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from workloads.errors import ProgramRefused
from workloads.program.aten.arguments import to_dimension
from workloads.program.builder import Value
from workloads.program.limits import STEP_INPUTS_MAX
from workloads.program.onnx.context import Context, Known, rule
from workloads.program.operators.shapes import broadcast

__all__: list[str] = []

_FAR = 2**31


@rule("Shape")
def _shape(c: Context) -> Known:
    sizes = c.shape(c.value())
    start, end = c.integer("start", 0), c.integer("end", len(sizes))
    return Known(torch.tensor(sizes[start:end], dtype=torch.int64))


@rule("Reshape")
def _reshape(c: Context) -> Value:
    x, wanted = c.value(), c.sizes(1, "shape")
    if wanted is None:
        raise ProgramRefused("a shape must be given")
    given = c.shape(x)
    if not c.integer("allowzero", 0):
        if any(size == 0 and place >= len(given) for place, size in enumerate(wanted)):
            raise ProgramRefused(f"shape {wanted} copies a size that isn't there")
        wanted = [given[place] if size == 0 else size for place, size in enumerate(wanted)]
    if wanted.count(-1) == 1:
        rest = math.prod(size for size in wanted if size != -1)
        wanted[wanted.index(-1)] = math.prod(given) // rest if rest > 0 else 0
    return c.reshaped(x, wanted)


@rule("Flatten")
def _flatten(c: Context) -> Value:
    shape = c.shape(c.value())
    axis = c.integer("axis", 1)
    axis = axis if axis == len(shape) else to_dimension(axis, len(shape))
    return c.reshaped(c.value(), (math.prod(shape[:axis]), math.prod(shape[axis:])))


@rule("Unsqueeze")
def _unsqueeze(c: Context) -> Value:
    x, axes = c.value(), c.sizes(1, "axes") or []
    rank = len(c.shape(x)) + len(axes)
    new = {to_dimension(axis, rank) for axis in axes}
    if len(new) != len(axes):
        raise ProgramRefused(f"axes={axes} must be distinct")
    sizes = iter(c.shape(x))
    return c.reshaped(x, [1 if place in new else next(sizes) for place in range(rank)])


@rule("Squeeze")
def _squeeze(c: Context) -> Value:
    x, axes = c.value(), c.sizes(1, "axes")
    shape = c.shape(x)
    gone = {to_dimension(axis, len(shape)) for axis in (axes if axes is not None else range(len(shape)))}
    if axes is not None and any(shape[axis] != 1 for axis in gone):
        raise ProgramRefused(f"axes={axes} of {list(shape)} must be of size 1")
    return c.reshaped(x, [size for place, size in enumerate(shape) if place not in gone or size != 1])


@rule("Transpose")
def _transpose(c: Context) -> Value:
    rank = len(c.shape(c.value()))
    return c.apply("permute", c.value(), order=c.integers("perm", range(rank)[::-1]))


@rule("Expand")
def _expand(c: Context) -> Value:
    x, wanted = c.value(), c.sizes(1) or []
    return c.apply("expand", x, shape=broadcast(c.shape(x), tuple(wanted)))


@rule("Concat")
def _concat(c: Context) -> Value:
    parts = c.alike(*c.values())
    return c.apply("concat", *parts, dim=c.axis(len(c.shape(parts[0]))))


def _cut(c: Context, x: Value, dim: int, start: int, stop: int) -> Value:
    return c.apply("slice", x, dim=dim, start=start, stop=stop, stride=1)


@rule("Split")
def _split(c: Context) -> list[Value]:
    x, count = c.value(), len(c.node.outputs)
    dim = c.axis(len(c.shape(x)), 0)
    size, sizes = c.shape(x)[dim], c.sizes(1, "split")
    c.ignore("num_outputs")
    if sizes is None:
        piece = -(-size // max(1, count))
        sizes = [max(0, min(piece, size - place * piece)) for place in range(count)]
    if len(sizes) != count or count > STEP_INPUTS_MAX:
        raise ProgramRefused(f"{len(sizes)} pieces must be {count}")
    places = [sum(sizes[:index]) for index in range(count)]
    return [_cut(c, x, dim, place, place + size) for place, size in zip(places, sizes, strict=True)]


@rule("Slice")
def _slice(c: Context) -> Value:
    x = c.value()
    starts, ends = c.sizes(1, "starts"), c.sizes(2, "ends")
    if starts is None or ends is None:
        raise ProgramRefused("starts and ends must be given")
    axes, steps = c.sizes(3, "axes") or list(range(len(starts))), c.sizes(4) or [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise ProgramRefused("starts, ends, axes and steps must be as many")
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        dim = to_dimension(axis, len(c.shape(x)))
        size = c.shape(x)[dim]
        if step == -1 and start in {-1, size - 1} and end < -size:
            x = c.apply("flip", x, dim=dim)
            continue
        if step < 1:
            raise ProgramRefused(f"steps={steps} must be positive, or turn a whole dimension round")
        first, last = _clipped(start, size), _clipped(end, size)
        x = c.apply("slice", x, dim=dim, start=first, stop=max(first, last), stride=min(step, _FAR))
    return x


def _clipped(index: int, size: int) -> int:
    return min(max(index + size if index < 0 else index, 0), size)


def _places(c: Context, index: Value, size: int) -> Value:
    """Indices counted from the front: ONNX counts negative ones from the end."""
    known = c.known(1) if c.is_known(1) else None
    if known is not None and (known >= 0).all():
        return index
    zero, whole = (c.apply("full", shape=(), value=float(each), dtype="int64") for each in (0, size))
    negative = c.apply("compare", index, zero, relation="less")
    return c.apply("where", negative, c.apply("add", index, whole), index)


@rule("Gather")
def _gather(c: Context) -> Value:
    x = c.value()
    shape = c.shape(x)
    dim = c.axis(len(shape), 0)
    index = _places(c, c.value(1), shape[dim])
    rows = c.shape(index)
    taken = c.apply("index_select", x, c.reshaped(index, (math.prod(rows),)), dim=dim)
    return c.reshaped(taken, (*shape[:dim], *rows, *shape[dim + 1 :]))


@rule("GatherElements")
def _gather_elements(c: Context) -> Value:
    x = c.value()
    dim = c.axis(len(c.shape(x)), 0)
    return c.apply("gather", x, _places(c, c.value(1), c.shape(x)[dim]), dim=dim)


@rule("Pad")
def _pad(c: Context) -> Value:
    c.only("mode", "constant")
    x, pads = c.value(), c.sizes(1, "pads")
    rank = len(c.shape(x))
    if pads is None or len(pads) != 2 * rank or c.has(3) or min(pads) < 0:
        raise ProgramRefused(f"pads={pads} must be two natural numbers for each of {rank} dimensions")
    value = c.real("value", 0.0) if c.opset < 11 else c.number(2) or 0.0
    return c.apply("pad", x, before=pads[:rank], after=pads[rank:], value=value)


@rule("ConstantOfShape")
def _filled(c: Context) -> Value:
    fill = c.tensor("value", torch.zeros(1))
    dtype = "float64" if fill.is_floating_point() else "int64"
    return c.apply("full", shape=tuple(c.sizes(0) or ()), value=float(fill.item()), dtype=dtype)


@rule("DepthToSpace")
def _depth_to_space(c: Context) -> Value:
    x, side, mode = c.value(), c.integer("blocksize"), c.word("mode", "DCR")
    batch, channels, height, width = _image(c, x)
    if side < 1 or channels % side**2:
        raise ProgramRefused(f"blocksize={side} doesn't fit {channels} channels")
    rest = channels // side**2
    split = (
        (batch, side, side, rest, height, width)
        if mode == "DCR"
        else (batch, rest, side, side, height, width)
    )
    order = (0, 3, 4, 1, 5, 2) if mode == "DCR" else (0, 1, 4, 2, 5, 3)
    moved = c.apply("permute", c.reshaped(x, split), order=order)
    return c.reshaped(moved, (batch, rest, height * side, width * side))


def _image(c: Context, x: Value) -> Sequence[int]:
    if len(c.shape(x)) != 4:
        raise ProgramRefused("x must be (batch, channels, height, width)")
    return c.shape(x)
