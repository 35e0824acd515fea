"""ONNX operators that contract, normalise, reduce, pool and resize."""

from __future__ import annotations

import math
from collections.abc import Sequence

from workloads.errors import ProgramRefused
from workloads.program.aten.arguments import to_dimension
from workloads.program.builder import Value
from workloads.program.onnx.context import OPERATORS, Context, Rule, rule

__all__: list[str] = []

_LOWEST = -(2.0**499)
"""Stands for minus infinity around what a maximum is taken of."""


@rule("MatMul")
def _matmul(c: Context) -> Value:
    return c.apply("matmul", c.floating(c.value(0)), c.floating(c.value(1)), precision=c.precision)


def _turned(c: Context, x: Value, is_turned: int) -> Value:
    return c.apply("permute", x, order=(1, 0)) if is_turned else x


@rule("Gemm")
def _gemm(c: Context) -> Value:
    a = _turned(c, c.value(0), c.integer("transA", 0))
    is_turned, alpha, beta = c.integer("transB", 0), c.real("alpha", 1.0), c.real("beta", 1.0)
    if alpha == beta == 1 and is_turned and c.has(2) and len(c.shape(c.value(2))) == 1:
        return c.apply("linear", a, c.value(1), c.value(2), precision=c.precision)
    result = c.apply("matmul", a, _turned(c, c.value(1), is_turned), precision=c.precision)
    if alpha != 1:
        result = c.apply("scale", result, factor=alpha)
    if not c.has(2):
        return result
    bias = c.value(2) if beta == 1 else c.apply("scale", c.value(2), factor=beta)
    return c.apply("add", result, bias)


@rule("Einsum")
def _einsum(c: Context) -> Value:
    """Of two tensors: batch, contracted and free dimensions, brought into the order of a product."""
    equation = c.word("equation", "").replace(" ", "")
    terms, arrow, output = equation.partition("->")
    left, comma, right = terms.partition(",")
    letters = [*left, *right, *output]
    plain = all(len(set(part)) == len(part) for part in (left, right, output))
    if not (arrow and comma and c.count == 2 and plain and all(x.isalpha() for x in letters)):
        raise ProgramRefused(f"equation {equation[:80]!r} must be a product of two tensors")
    sizes: dict[str, int] = {}
    for part, value in ((left, c.value(0)), (right, c.value(1))):
        if len(part) != len(c.shape(value)):
            raise ProgramRefused(f"equation {equation[:80]!r} doesn't fit {list(c.shape(value))}")
        for letter, size in zip(part, c.shape(value), strict=True):
            if sizes.setdefault(letter, size) != size:
                raise ProgramRefused(f"equation {equation[:80]!r}: {letter} has two sizes")
    batch = [x for x in left if x in right and x in output]
    inner = [x for x in left if x in right and x not in output]
    rows, columns = ([x for x in one if x not in other] for one, other in ((left, right), (right, left)))
    if sorted(output) != sorted([*batch, *rows, *columns]):
        raise ProgramRefused(f"equation {equation[:80]!r} sums a dimension of one tensor alone")

    def grouped(value: Value, part: str, *groups: Sequence[str]) -> Value:
        order = [part.index(letter) for group in groups for letter in group]
        shape = [math.prod(sizes[letter] for letter in group) for group in groups[1:]]
        moved = c.apply("permute", c.floating(value), order=order)
        return c.reshaped(moved, [*(sizes[letter] for letter in groups[0]), *shape])

    product = c.apply(
        "matmul",
        grouped(c.value(0), left, batch, rows, inner),
        grouped(c.value(1), right, batch, inner, columns),
        precision=c.precision,
    )
    made = [*batch, *rows, *columns]
    product = c.reshaped(product, [sizes[letter] for letter in made])
    return c.apply("permute", product, order=[made.index(letter) for letter in output])


# --- Convolution and pooling --------------------------------------------------------------------


def _padded(c: Context, x: Value, kernel: Sequence[int], fill: float) -> tuple[Value, list[int]]:
    """Padding as ONNX states it: what is the same on both sides is left to the operator."""
    rank = len(kernel)
    mode, pads = c.word("auto_pad", "NOTSET"), c.integers("pads", [0] * 2 * rank)
    if mode in {"SAME_UPPER", "SAME_LOWER"}:
        steps, spread = c.integers("strides", [1] * rank), c.integers("dilations", [1] * rank)
        c.put_back(strides=steps, dilations=spread)
        total = [
            max(0, (-(-size // step) - 1) * step + gap * (width - 1) + 1 - size)
            for size, width, step, gap in zip(c.shape(x)[2:], kernel, steps, spread, strict=True)
        ]
        less, more = [each // 2 for each in total], [each - each // 2 for each in total]
        pads = [*less, *more] if mode == "SAME_UPPER" else [*more, *less]
    elif mode not in {"NOTSET", "VALID"}:
        raise ProgramRefused(f"auto_pad={mode[:40]} isn't supported")
    if len(pads) != 2 * rank or min(pads, default=0) < 0:
        raise ProgramRefused(f"pads={pads} must be two natural numbers for each of {rank} dimensions")
    before, after = pads[:rank], pads[rank:]
    if before == after:
        return x, before
    x = x if c.dtype(x) == "float64" else c.apply("cast", x, dtype="float64")
    x = c.apply("pad", x, before=[0, 0, *before], after=[0, 0, *after], value=fill)
    return x, [0] * rank


@rule("Conv")
def _conv(c: Context) -> Value:
    kernel = c.shape(c.value(1))[2:]
    rank = len(kernel)
    c.ignore("kernel_shape")
    x, padding = _padded(c, c.value(0), kernel, 0.0)
    return c.apply(
        "conv",
        x,
        *(c.value(place) for place in (1, 2) if c.has(place)),
        stride=c.integers("strides", [1] * rank),
        padding=padding,
        dilation=c.integers("dilations", [1] * rank),
        groups=c.integer("group", 1),
        precision=c.precision,
    )


@rule("ConvTranspose")
def _conv_transpose(c: Context) -> Value:
    rank = len(c.shape(c.value(1))) - 2
    c.ignore("kernel_shape")
    c.only("auto_pad", "NOTSET")
    pads = c.integers("pads", [0] * 2 * rank)
    if pads[:rank] != pads[rank:]:
        raise ProgramRefused(f"pads={pads} must be the same on both sides")
    return c.apply(
        "conv_transpose",
        *(c.value(place) for place in (0, 1, 2) if c.has(place)),
        stride=c.integers("strides", [1] * rank),
        padding=pads[:rank],
        output_padding=c.integers("output_padding", [0] * rank),
        dilation=c.integers("dilations", [1] * rank),
        groups=c.integer("group", 1),
        precision=c.precision,
    )


def _pool(op: str) -> Rule:
    def write(c: Context) -> Value:
        kernel = c.integers("kernel_shape")
        c.only("ceil_mode", 0)
        c.only("storage_order", 0)
        with_margins = c.integer("count_include_pad", 0)
        x, padding = _padded(c, c.value(), kernel, _LOWEST if op == "max_pool2d" else 0.0)
        c.only("dilations", [1] * len(kernel))
        if op == "avg_pool2d" and not with_margins and (any(padding) or x != c.value()):
            raise ProgramRefused("count_include_pad must be 1 where there is padding")
        if len(c.node.outputs) != 1:
            raise ProgramRefused("places of maxima aren't supported")
        return c.apply(op, x, kernel=kernel, stride=c.integers("strides", [1] * len(kernel)), padding=padding)

    return write


OPERATORS["MaxPool"] = _pool("max_pool2d")
OPERATORS["AveragePool"] = _pool("avg_pool2d")


def _over_image(op: str) -> Rule:
    return lambda c: c.apply(op, c.value(), dims=tuple(range(2, len(c.shape(c.value())))), keepdim=True)


OPERATORS["GlobalAveragePool"] = _over_image("mean")
OPERATORS["GlobalMaxPool"] = _over_image("max")


@rule("Resize", "Upsample")
def _resize(c: Context) -> Value:
    x = c.value()
    shape = c.shape(x)
    is_old = c.node.op == "Upsample" or c.opset < 11
    scales, sizes = c.known(1 if is_old else 2), None if is_old else c.sizes(3)
    if sizes is None:
        if scales is None or scales.numel() != len(shape):
            raise ProgramRefused("scales or sizes must be given for every dimension")
        sizes = [int(size * factor) for size, factor in zip(shape, scales.tolist(), strict=True)]
    if len(shape) != 4 or tuple(sizes[:2]) != shape[:2]:
        raise ProgramRefused(f"{list(shape)} can only be resized in height and width, not to {sizes}")
    mode, places = c.word("mode", "nearest"), c.word("coordinate_transformation_mode", "half_pixel")
    for name, allowed in (("antialias", 0), ("exclude_outside", 0), ("keep_aspect_ratio_policy", "stretch")):
        c.only(name, allowed)
    rounding = c.word("nearest_mode", "floor" if is_old else "round_prefer_floor")
    c.ignore("cubic_coeff_a", "extrapolation_value")
    if mode == "nearest" and (is_old or (places, rounding) == ("asymmetric", "floor")):
        return c.apply("interpolate_nearest", x, size=sizes[2:])
    # Each pixel becomes a block: all the ways to place pixels agree.
    if (
        mode == "nearest"
        and rounding == "round_prefer_floor"
        and places == "half_pixel"
        and all(size % before == 0 for size, before in zip(sizes, shape, strict=True))
    ):
        return c.apply("interpolate_nearest", x, size=sizes[2:])
    corners = places == "align_corners"
    if mode == "linear" and (corners or places in {"half_pixel", "pytorch_half_pixel"}):
        return c.apply("interpolate_bilinear", x, size=sizes[2:], align_corners=corners)
    raise ProgramRefused(f"mode={mode}, {places}, {rounding} isn't supported")


# --- Norms and reductions -----------------------------------------------------------------------


@rule("BatchNormalization")
def _batch_norm(c: Context) -> Value:
    c.only("training_mode", 0)
    c.ignore("momentum", "spatial")
    x, epsilon = c.value(0), c.real("epsilon", 1e-5)
    column = (-1, *[1] * (len(c.shape(x)) - 2))
    gain, bias, mean, variance = (
        c.reshaped(c.value(place), (c.shape(c.value(place))[0], *column[1:])) for place in (1, 2, 3, 4)
    )
    scale = c.apply("multiply", c.apply("rsqrt", c.apply("shift", variance, term=epsilon)), gain)
    return c.apply("add", c.apply("multiply", c.apply("subtract", x, mean), scale), bias)


@rule("InstanceNormalization")
def _instance_norm(c: Context) -> Value:
    channels = c.shape(c.value())[1]
    return c.apply(
        "group_norm",
        *(c.value(place) for place in (0, 1, 2)),
        groups=channels,
        epsilon=c.real("epsilon", 1e-5),
    )


@rule("LayerNormalization")
def _layer_norm(c: Context) -> Value:
    rank = len(c.shape(c.value()))
    if c.axis(rank, -1) != rank - 1:
        raise ProgramRefused("axis must be the last")
    c.ignore("stash_type")
    operands = [c.value(place) for place in (0, 1, 2) if c.has(place)]
    return c.apply("layer_norm", *operands, epsilon=c.real("epsilon", 1e-5))


def _softmax(op: str) -> Rule:
    def write(c: Context) -> Value:
        rank = len(c.shape(c.value()))
        dim = c.axis(rank, 1 if c.opset < 13 else -1)
        if c.opset < 13 and dim != rank - 1:
            raise ProgramRefused("before operator set 13, axis must be the last")
        return c.apply(op, c.floating(c.value()), dim=dim)

    return write


OPERATORS["Softmax"] = _softmax("softmax")
OPERATORS["LogSoftmax"] = _softmax("log_softmax")


def _reduction(op: str) -> Rule:
    def write(c: Context) -> Value:
        x = c.floating(c.value())
        rank, axes = len(c.shape(x)), c.sizes(1, "axes")
        if not axes:
            if c.integer("noop_with_empty_axes", 0):
                return x
            axes = list(range(rank))
        c.ignore("noop_with_empty_axes")
        dims = sorted({to_dimension(axis, rank) for axis in axes})
        return c.apply(op, x, dims=dims, keepdim=bool(c.integer("keepdims", 1)))

    return write


for _name, _op in (("ReduceMean", "mean"), ("ReduceSum", "sum"), ("ReduceMax", "max")):
    OPERATORS[_name] = _reduction(_op)


@rule("ArgMax")
def _argmax(c: Context) -> Value:
    c.only("select_last_index", 0)
    x = c.value()
    return c.apply("argmax", x, dim=c.axis(len(c.shape(x)), 0), keepdim=bool(c.integer("keepdims", 1)))
