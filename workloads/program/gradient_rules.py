"""The gradient of each differentiable operator, as steps; importing this module registers them."""

from __future__ import annotations

from collections.abc import Sequence

from workloads.program.builder import Value
from workloads.program.gradients import Emit, Node, rule

__all__: list[str] = []


def _reduced(node: Node, number: int, emit: Emit) -> Emit:
    """Sum what ``emit`` emits over the dimensions along which input ``number`` was broadcast."""

    def reduce() -> Value:
        gradient = emit()
        given, shape = node.shape(gradient), node.shape(node.inputs[number])
        if given == shape:
            return gradient
        extra = len(given) - len(shape)
        dims = [dim for dim, size in enumerate(given) if dim < extra or shape[dim - extra] != size]
        if dims:
            gradient = node.apply("sum", gradient, dims=dims, keepdim=True)
        return node.apply("reshape", gradient, shape=shape)

    return reduce


# --- Elementwise --------------------------------------------------------------------------------


@rule("add")
def _add(node: Node) -> Sequence[Emit]:
    return [_reduced(node, number, lambda: node.gradient) for number in range(2)]


@rule("subtract")
def _subtract(node: Node) -> Sequence[Emit]:
    return [
        _reduced(node, 0, lambda: node.gradient),
        _reduced(node, 1, lambda: node.apply("negate", node.gradient)),
    ]


@rule("multiply")
def _multiply(node: Node) -> Sequence[Emit]:
    x, y = node.inputs
    return [
        _reduced(node, 0, lambda: node.apply("multiply", node.gradient, y)),
        _reduced(node, 1, lambda: node.apply("multiply", node.gradient, x)),
    ]


@rule("divide")
def _divide(node: Node) -> Sequence[Emit]:
    _, y = node.inputs

    def of_divisor() -> Value:
        ratio = node.apply("divide", node.output, y)
        return node.apply("negate", node.apply("multiply", node.gradient, ratio))

    return [_reduced(node, 0, lambda: node.apply("divide", node.gradient, y)), _reduced(node, 1, of_divisor)]


@rule("negate")
def _negate(node: Node) -> Sequence[Emit]:
    return [lambda: node.apply("negate", node.gradient)]


@rule("abs")
def _abs(node: Node) -> Sequence[Emit]:
    return [lambda: node.apply("multiply", node.gradient, node.apply("sign", node.inputs[0]))]


@rule("square")
def _square(node: Node) -> Sequence[Emit]:
    return [lambda: _product(node, node.apply("scale", node.inputs[0], factor=2.0))]


@rule("reciprocal")
def _reciprocal(node: Node) -> Sequence[Emit]:
    return [lambda: node.apply("negate", _product(node, node.apply("square", node.output)))]


@rule("relu")
def _relu(node: Node) -> Sequence[Emit]:
    return [lambda: _product(node, node.apply("sign", node.output))]


@rule("scale")
def _scale(node: Node) -> Sequence[Emit]:
    return [lambda: node.apply("scale", node.gradient, factor=node.attributes["factor"])]


@rule("shift", "cast")
def _unchanged(node: Node) -> Sequence[Emit]:
    return [lambda: node.gradient]


@rule("exp")
def _exp(node: Node) -> Sequence[Emit]:
    return [lambda: _product(node, node.output)]


@rule("log")
def _log(node: Node) -> Sequence[Emit]:
    return [lambda: node.apply("divide", node.gradient, node.inputs[0])]


@rule("sqrt")
def _sqrt(node: Node) -> Sequence[Emit]:
    return [lambda: node.apply("scale", node.apply("divide", node.gradient, node.output), factor=0.5)]


@rule("rsqrt")
def _rsqrt(node: Node) -> Sequence[Emit]:
    return [
        lambda: node.apply(
            "scale", _product(node, node.apply("divide", node.output, node.inputs[0])), factor=-0.5
        )
    ]


@rule("sin")
def _sin(node: Node) -> Sequence[Emit]:
    return [lambda: _product(node, node.apply("cos", node.inputs[0]))]


@rule("cos")
def _cos(node: Node) -> Sequence[Emit]:
    return [lambda: node.apply("negate", _product(node, node.apply("sin", node.inputs[0])))]


@rule("tanh")
def _tanh(node: Node) -> Sequence[Emit]:
    return [lambda: _product(node, _one_minus(node, node.apply("square", node.output)))]


@rule("sigmoid")
def _sigmoid(node: Node) -> Sequence[Emit]:
    def emit() -> Value:
        slope = node.apply("multiply", node.output, _one_minus(node, node.output))
        return _product(node, slope)

    return [emit]


@rule("silu")
def _silu(node: Node) -> Sequence[Emit]:
    return [lambda: node.apply("silu_backward", node.gradient, node.inputs[0])]


@rule("gelu")
def _gelu(node: Node) -> Sequence[Emit]:
    return [lambda: node.apply("gelu_backward", node.gradient, node.inputs[0], **node.attributes)]


def _product(node: Node, factor: Value) -> Value:
    return node.apply("multiply", node.gradient, factor)


def _one_minus(node: Node, value: Value) -> Value:
    return node.apply("shift", node.apply("negate", value), term=1.0)


# --- Shapes -------------------------------------------------------------------------------------


@rule("reshape")
def _reshape(node: Node) -> Sequence[Emit]:
    return [lambda: node.apply("reshape", node.gradient, shape=node.shape(node.inputs[0]))]


@rule("permute")
def _permute(node: Node) -> Sequence[Emit]:
    order = node.attributes["order"]
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return [lambda: node.apply("permute", node.gradient, order=inverse)]


@rule("expand")
def _expand(node: Node) -> Sequence[Emit]:
    return [_reduced(node, 0, lambda: node.gradient)]


@rule("slice")
def _slice(node: Node) -> Sequence[Emit]:
    size = node.shape(node.inputs[0])[node.attributes["dim"]]
    return [lambda: node.apply("slice_backward", node.gradient, size=size, **node.attributes)]


@rule("concat")
def _concat(node: Node) -> Sequence[Emit]:
    dim = node.attributes["dim"]
    emits, start = [], 0
    for value in node.inputs:
        stop = start + node.shape(value)[dim]

        def emit(start: int = start, stop: int = stop) -> Value:
            return node.apply("slice", node.gradient, dim=dim, start=start, stop=stop, stride=1)

        emits.append(emit)
        start = stop
    return emits


@rule("flip")
def _flip(node: Node) -> Sequence[Emit]:
    return [lambda: node.apply("flip", node.gradient, dim=node.attributes["dim"])]


@rule("embedding")
def _embedding(node: Node) -> Sequence[Emit | None]:
    weight, ids = node.inputs
    rows = node.shape(weight)[0]
    return [lambda: node.apply("embedding_backward", node.gradient, ids, rows=rows), None]


# --- Reductions and norms -----------------------------------------------------------------------


def _spread(node: Node) -> Value:
    """The gradient of a reduced value, over the shape of what was reduced."""
    shape = node.shape(node.inputs[0])
    kept = [1 if dim in node.attributes["dims"] else size for dim, size in enumerate(shape)]
    return node.apply("expand", node.apply("reshape", node.gradient, shape=kept), shape=shape)


@rule("sum")
def _sum(node: Node) -> Sequence[Emit]:
    return [lambda: _spread(node)]


@rule("mean")
def _mean(node: Node) -> Sequence[Emit]:
    x = node.builder.specs[node.inputs[0]]
    result = node.builder.specs[node.output]
    return [lambda: node.apply("scale", _spread(node), factor=result.elements / x.elements)]


@rule("cross_entropy")
def _cross_entropy(node: Node) -> Sequence[Emit | None]:
    return [lambda: node.apply("cross_entropy_backward", node.gradient, *node.inputs), None]


@rule("softmax")
def _softmax(node: Node) -> Sequence[Emit]:
    return [lambda: node.apply("softmax_backward", node.gradient, node.output, dim=node.attributes["dim"])]


@rule("log_softmax")
def _log_softmax(node: Node) -> Sequence[Emit]:
    return [
        lambda: node.apply("log_softmax_backward", node.gradient, node.inputs[0], dim=node.attributes["dim"])
    ]


def _one_of(node: Node, op: str, inputs: Sequence[Value], wanted: str) -> Emit:
    attributes = dict(node.builder.steps[node.output - len(node.builder.inputs)].attributes)
    return lambda: node.apply(op, node.gradient, *inputs, wanted=wanted, **attributes)


@rule("rms_norm", "layer_norm", "group_norm")
def _norm(node: Node) -> Sequence[Emit]:
    op = node.builder.steps[node.output - len(node.builder.inputs)].op
    wanted = ("x", "weight", "bias")[: len(node.inputs)]
    return [_one_of(node, f"{op}_backward", node.inputs[:2], name) for name in wanted]


# --- Contractions -------------------------------------------------------------------------------


def _transposed(node: Node, value: Value) -> Value:
    rank = len(node.shape(value))
    return node.apply("permute", value, order=[*range(rank - 2), rank - 1, rank - 2])


def _as_rows(node: Node, value: Value) -> Value:
    """(..., width) as (rows, width)."""
    *_, width = shape = node.shape(value)
    if len(shape) == 2:
        return value
    rows = node.builder.specs[value].elements // max(width, 1)
    return node.apply("reshape", value, shape=[rows, width])


@rule("matmul")
def _matmul(node: Node) -> Sequence[Emit]:
    a, b = node.inputs
    precision = node.attributes["precision"].name
    return [
        _reduced(
            node, 0, lambda: node.apply("matmul", node.gradient, _transposed(node, b), precision=precision)
        ),
        _reduced(
            node, 1, lambda: node.apply("matmul", _transposed(node, a), node.gradient, precision=precision)
        ),
    ]


@rule("linear")
def _linear(node: Node) -> Sequence[Emit]:
    x, weight = node.inputs[:2]
    precision = node.attributes["precision"].name

    def of_x() -> Value:
        rows = node.apply("matmul", _as_rows(node, node.gradient), weight, precision=precision)
        shape = node.shape(x)
        return rows if len(shape) == 2 else node.apply("reshape", rows, shape=shape)

    def of_weight() -> Value:
        columns = node.apply("permute", _as_rows(node, node.gradient), order=[1, 0])
        return node.apply("matmul", columns, _as_rows(node, x), precision=precision)

    def of_bias() -> Value:
        return node.apply("sum", _as_rows(node, node.gradient), dims=[0], keepdim=False)

    return [of_x, of_weight, of_bias][: len(node.inputs)]


@rule("attention")
def _attention(node: Node) -> Sequence[Emit]:
    names = ("queries", "keys", "values")
    return [_one_of(node, "attention_backward", node.inputs, name) for name in names]


@rule("rotary")
def _rotary(node: Node) -> Sequence[Emit]:
    attributes = {**node.attributes, "inverse": not node.attributes["inverse"]}
    return [lambda: node.apply("rotary", node.gradient, **attributes)]


@rule("conv")
def _conv(node: Node) -> Sequence[Emit]:
    emits = [_one_of(node, "conv_backward", node.inputs[:2], name) for name in ("x", "weight")]
    dims = [0, *range(2, len(node.shape(node.output)))]
    bias: Emit = lambda: node.apply("sum", node.gradient, dims=dims, keepdim=False)  # noqa: E731
    return [*emits, bias][: len(node.inputs)]
