"""Rules for contractions, norms, reductions and pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence

from workloads.errors import ProgramRefused
from workloads.program.aten.arguments import OPERATORS, Arguments, Rule, rule
from workloads.program.aten.shapes import reshaped
from workloads.program.builder import Value

__all__: list[str] = []


@rule("linear.default")
def _linear(a: Arguments) -> Value:
    operands = [a.tensor("input"), a.tensor("weight"), a.optional("bias")]
    return a.builder.apply("linear", *_present(operands), precision=a.precision)


def _present(operands: Sequence[Value | None]) -> list[Value]:
    given = [operand for operand in operands if operand is not None]
    if operands[: len(given)] != given:
        raise ProgramRefused("a bias without a weight isn't supported")
    return given


@rule("matmul.default", "mm.default", "bmm.default")
def _matmul(a: Arguments) -> Value:
    second = "other" if a.has("other") else "mat2"
    return a.builder.apply("matmul", a.tensor(), a.tensor(second), precision=a.precision)


@rule("addmm.default")
def _addmm(a: Arguments) -> Value:
    if a.number("beta", 1) != 1 or a.number("alpha", 1) != 1:
        raise ProgramRefused("beta and alpha must be 1")
    product = a.builder.apply("matmul", a.tensor("mat1"), a.tensor("mat2"), precision=a.precision)
    return a.builder.apply("add", a.tensor(), product)


def _spread(values: Sequence[int], rank: int) -> list[int]:
    return list(values) * rank if len(values) == 1 else list(values)


@rule("conv1d.default", "conv2d.default")
def _conv(a: Arguments) -> Value:
    operands = [a.tensor("input"), a.tensor("weight"), a.optional("bias")]
    rank = len(a.shape(operands[1] or 0)) - 2
    return a.builder.apply(
        "conv",
        *_present(operands),
        stride=_spread(a.integers("stride", [1]), rank),
        padding=_spread(a.integers("padding", [0]), rank),
        dilation=_spread(a.integers("dilation", [1]), rank),
        groups=a.integer("groups", 1),
        precision=a.precision,
    )


@rule("conv_transpose1d.default", "conv_transpose2d.input")
def _conv_transpose(a: Arguments) -> Value:
    operands = [a.tensor("input"), a.tensor("weight"), a.optional("bias")]
    rank = len(a.shape(operands[1] or 0)) - 2
    return a.builder.apply(
        "conv_transpose",
        *_present(operands),
        stride=_spread(a.integers("stride", [1]), rank),
        padding=_spread(a.integers("padding", [0]), rank),
        output_padding=_spread(a.integers("output_padding", [0]), rank),
        dilation=_spread(a.integers("dilation", [1]), rank),
        groups=a.integer("groups", 1),
        precision=a.precision,
    )


@rule("scaled_dot_product_attention.default")
def _attention(a: Arguments) -> Value:
    a.none("attn_mask", "dropout_p")
    a.ignore("enable_gqa")
    query, key, value = (a.tensor(name) for name in ("query", "key", "value"))
    q, k = a.shape(query), a.shape(key)
    causal = a.flag("is_causal")
    # torch lines the first query up with the first key, the exact library the last with the last.
    if causal and q[-2] != k[-2]:
        raise ProgramRefused(f"causal attention of {q[-2]} queries over {k[-2]} keys isn't supported")
    scale = float(a.number("scale", 1 / math.sqrt(q[-1])))
    return a.builder.apply("attention", query, key, value, causal=causal, scale=scale, precision=a.precision)


# --- Norms, reductions, pooling -----------------------------------------------------------------


def _last_only(a: Arguments, x: Value) -> None:
    shape = a.integers("normalized_shape")
    if shape != list(a.shape(x)[-1:]):
        raise ProgramRefused(f"normalized_shape={shape} must be the last dimension")


@rule("layer_norm.default")
def _layer_norm(a: Arguments) -> Value:
    a.ignore("cudnn_enable")
    operands = [a.tensor("input"), a.optional("weight"), a.optional("bias")]
    _last_only(a, operands[0] or 0)
    return a.builder.apply("layer_norm", *_present(operands), epsilon=float(a.number("eps", 1e-5)))


@rule("rms_norm.default")
def _rms_norm(a: Arguments) -> Value:
    x = a.ref("input")
    operands = [x.value, a.optional("weight")]
    _last_only(a, x.value)
    return a.builder.apply("rms_norm", *_present(operands), epsilon=float(a.number("eps", x.epsilon)))


@rule("group_norm.default")
def _group_norm(a: Arguments) -> Value:
    a.ignore("cudnn_enabled")
    operands = [a.tensor("input"), a.optional("weight"), a.optional("bias")]
    return a.builder.apply(
        "group_norm",
        *_present(operands),
        groups=a.integer("num_groups"),
        epsilon=float(a.number("eps", 1e-5)),
    )


@rule("batch_norm.default")
def _batch_norm(a: Arguments) -> Value:
    a.none("training")
    a.ignore("momentum", "cudnn_enabled")
    x = a.tensor("input")
    mean, variance, epsilon = a.tensor("running_mean"), a.tensor("running_var"), float(a.number("eps"))
    column = (-1, *[1] * (len(a.shape(x)) - 2))
    scale = a.builder.apply("rsqrt", a.builder.apply("shift", variance, term=epsilon))
    weight, bias = a.optional("weight"), a.optional("bias")
    if weight is not None:
        scale = a.builder.apply("multiply", scale, weight)
    centred = a.builder.apply("subtract", x, reshaped(a, mean, column))
    result = a.builder.apply("multiply", centred, reshaped(a, scale, column))
    return result if bias is None else a.builder.apply("add", result, reshaped(a, bias, column))


def _softmax(op: str) -> Rule:
    def write(a: Arguments) -> Value:
        a.none("half_to_float")
        a.ignore("dtype")
        x = a.tensor()
        return a.builder.apply(op, x, dim=a.dimension(len(a.shape(x))))

    return write


for _name in ("softmax", "log_softmax"):
    OPERATORS[f"{_name}.int"] = OPERATORS[f"_{_name}.default"] = _softmax(_name)


def _reduction(op: str) -> Rule:
    def write(a: Arguments) -> Value:
        a.ignore("dtype")
        x = a.real(a.tensor())
        dims = a.dimensions(len(a.shape(x)))
        return a.builder.apply(op, x, dims=dims, keepdim=a.flag("keepdim"))

    return write


for _name, _op in (("sum.dim_IntList", "sum"), ("sum.default", "sum"), ("mean.dim", "mean"),
                   ("mean.default", "mean"), ("amax.default", "max")):  # fmt: skip
    OPERATORS[_name] = _reduction(_op)


@rule("var.correction", "var.dim", "var.default")
def _var(a: Arguments) -> Value:
    x = a.tensor()
    correction = (
        int(a.flag("unbiased", default=True)) if a.has("unbiased") else int(a.number("correction", 1))
    )
    dims = a.dimensions(len(a.shape(x)))
    return a.builder.apply("var", x, dims=dims, correction=correction, keepdim=a.flag("keepdim"))


@rule("argmax.default")
def _argmax(a: Arguments) -> Value:
    x = a.tensor()
    return a.builder.apply("argmax", x, dim=a.dimension(len(a.shape(x))), keepdim=a.flag("keepdim"))


def _pool(op: str) -> Rule:
    def write(a: Arguments) -> Value:
        a.none("ceil_mode", "divisor_override")
        if not a.flag("count_include_pad", True) or _spread(a.integers("dilation", [1]), 2) != [1, 1]:
            raise ProgramRefused("count_include_pad must be true and dilation 1")
        kernel = _spread(a.integers("kernel_size"), 2)
        stride = _spread(a.integers("stride", ()) or kernel, 2)
        padding = _spread(a.integers("padding", [0]), 2)
        return a.builder.apply(op, a.tensor(), kernel=kernel, stride=stride, padding=padding)

    return write


OPERATORS["max_pool2d.default"] = _pool("max_pool2d")
OPERATORS["avg_pool2d.default"] = _pool("avg_pool2d")


@rule("adaptive_avg_pool2d.default")
def _adaptive_avg_pool2d(a: Arguments) -> Value:
    return a.builder.apply("adaptive_avg_pool2d", a.tensor(), size=_spread(a.integers("output_size"), 2))


@rule("upsample_nearest2d.vec", "upsample_bilinear2d.vec")
def _upsample(a: Arguments) -> Value:
    x = a.tensor("input")
    sides = a.shape(x)[2:]
    size = a.integers("output_size", ())
    if not size:
        factors = a.numbers("scale_factors")
        if len(factors) != 2 or any(factor != int(factor) for factor in factors):
            raise ProgramRefused(f"scale_factors={factors!r} must be two whole numbers")
        size = [side * int(factor) for side, factor in zip(sides, factors, strict=True)]
    a.none("scale_factors")
    if a.has("align_corners"):
        return a.builder.apply("interpolate_bilinear", x, size=size, align_corners=a.flag("align_corners"))
    return a.builder.apply("interpolate_nearest", x, size=size)
