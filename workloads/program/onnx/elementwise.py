"""ONNX operators that work element by element."""

from __future__ import annotations

from functools import reduce

from workloads.errors import ProgramRefused
from workloads.program.aten import Ref
from workloads.program.builder import Value
from workloads.program.onnx.context import OPERATORS, Context, Rule, rule

__all__: list[str] = []

_LARGEST = 2.0**500
_CASTS = {1: "float64", 10: "float64", 11: "float64", 16: "float64", 6: "int64", 7: "int64", 9: "uint8"}


def _function(op: str) -> Rule:
    return lambda c: c.apply(op, c.floating(c.value()))


for _name, _op in (
    *(
        (name, name.lower())
        for name in ("Relu", "Sigmoid", "Tanh", "Exp", "Log", "Sqrt", "Sin", "Cos", "Erf")
    ),
    *(("Abs", "abs"), ("Reciprocal", "reciprocal"), ("Neg", "negate"), ("Sign", "sign")),
):
    OPERATORS[_name] = _function(_op)


@rule("Identity", "Dropout")
def _same(c: Context) -> Value:
    # Dropout does nothing but while training, which is its third input.
    if c.node.op == "Dropout" and c.number(2):
        raise ProgramRefused("dropout is for training")
    c.ignore("ratio", "seed")
    return c.value()


def _binary(op: str) -> Rule:
    def write(c: Context) -> Value:
        values = c.alike(*c.values())
        if op == "divide" and c.dtype(values[0]) == "int64":
            raise ProgramRefused("integers are only divided where they are constant")
        return reduce(lambda x, y: c.apply(op, x, y), values)

    return write


for _name, _op in (
    *(("Add", "add"), ("Sub", "subtract"), ("Mul", "multiply"), ("Div", "divide")),
    *(("Max", "maximum"), ("Min", "minimum"), ("Sum", "add")),
):
    OPERATORS[_name] = _binary(_op)


@rule("Pow")
def _power(c: Context) -> Value:
    return c.aten("pow.Tensor_Scalar", {"self": Ref(c.value()), "exponent": c.number(1)})


def _comparison(relation: str) -> Rule:
    return lambda c: c.apply("compare", *c.alike(c.value(0), c.value(1)), relation=relation)


for _name, _op in (
    ("Equal", "equal"),
    ("Greater", "greater"),
    ("GreaterOrEqual", "greater_equal"),
    ("Less", "less"),
    ("LessOrEqual", "less_equal"),
):
    OPERATORS[_name] = _comparison(_op)


@rule("Where")
def _where(c: Context) -> Value:
    return c.apply("where", c.value(0), *c.alike(c.value(1), c.value(2)))


def _truth(c: Context, number: int) -> Value:
    return c.apply("full", shape=(), value=float(number), dtype="uint8")


@rule("Not")
def _not(c: Context) -> Value:
    return c.apply("compare", c.value(), _truth(c, 0), relation="equal")


@rule("And")
def _and(c: Context) -> Value:
    return c.apply("where", c.value(0), c.value(1), _truth(c, 0))


@rule("Or")
def _or(c: Context) -> Value:
    return c.apply("where", c.value(0), _truth(c, 1), c.value(1))


@rule("Clip")
def _clip(c: Context) -> Value:
    if c.opset < 11:
        low, high = c.real("min", -_LARGEST), c.real("max", _LARGEST)
    else:
        low, high = (
            limit if found is None else min(max(found, -_LARGEST), _LARGEST)
            for found, limit in ((c.number(1), -_LARGEST), (c.number(2), _LARGEST))
        )
    return c.apply("clamp", c.floating(c.value()), low=low, high=high)


@rule("Gelu")
def _gelu(c: Context) -> Value:
    return c.apply("gelu", c.value(), approximate=c.word("approximate", "none"))


@rule("LeakyRelu")
def _leaky(c: Context) -> Value:
    return c.aten("leaky_relu.default", {"self": Ref(c.value()), "negative_slope": c.real("alpha", 0.01)})


def _hard(c: Context, x: Value, slope: float, offset: float) -> Value:
    return c.apply(
        "clamp", c.apply("shift", c.apply("scale", x, factor=slope), term=offset), low=0.0, high=1.0
    )


@rule("HardSigmoid")
def _hard_sigmoid(c: Context) -> Value:
    return _hard(c, c.value(), c.real("alpha", 0.2), c.real("beta", 0.5))


@rule("HardSwish")
def _hard_swish(c: Context) -> Value:
    return c.apply("multiply", c.value(), _hard(c, c.value(), 1 / 6, 0.5))


@rule("Cast")
def _cast(c: Context) -> Value:
    kind, x = _CASTS.get(c.integer("to")), c.value()
    c.ignore("saturate")
    if kind is None:
        raise ProgramRefused("values are cast to numbers and truth values only")
    if kind == "float64":
        return c.floating(x)
    if kind == c.dtype(x):
        return x
    if kind == "uint8":
        zero = c.apply("full", shape=(), value=0.0, dtype="int64" if c.dtype(x) == "int64" else "float64")
        return c.apply("compare", x, zero, relation="not_equal")
    return c.apply("cast", x, dtype=kind)
