"""Rules for what works element by element."""

from __future__ import annotations

from workloads.errors import ProgramRefused
from workloads.program.aten.arguments import OPERATORS, Arguments, Rule, rule
from workloads.program.builder import Value

__all__: list[str] = []

for _name in ("relu", "sigmoid", "tanh", "silu", "exp", "log", "sqrt", "rsqrt", "sin", "cos", "erf", "abs",
              "reciprocal", "square", "sign"):  # fmt: skip
    OPERATORS[f"{_name}.default"] = lambda a, op=_name: a.builder.apply(op, a.real(a.tensor()))  # type: ignore[misc]
OPERATORS["neg.default"] = lambda a: a.builder.apply("negate", a.real(a.tensor()))


@rule("gelu.default")
def _gelu(a: Arguments) -> Value:
    return a.builder.apply("gelu", a.tensor(), approximate=a.word("approximate", "none"))


@rule("clamp.default", "hardtanh.default", "clamp_min.default")
def _clamp(a: Arguments) -> Value:
    names = ("min_val", "max_val") if a.has("min_val") else ("min", "max")
    low, high = a.number(names[0], -(2.0**500)), a.number(names[1], 2.0**500)
    return a.builder.apply("clamp", a.tensor(), low=float(low), high=float(high))


@rule("leaky_relu.default")
def _leaky_relu(a: Arguments) -> Value:
    x, slope = a.tensor(), float(a.number("negative_slope", 0.01))
    below = a.builder.apply("relu", a.builder.apply("negate", x))
    return a.builder.apply(
        "subtract", a.builder.apply("relu", x), a.builder.apply("scale", below, factor=slope)
    )


@rule("pow.Tensor_Scalar")
def _power(a: Arguments) -> Value:
    x, exponent = a.real(a.tensor()), a.number("exponent")
    named = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}
    if exponent in named:
        return a.builder.apply(named[exponent], x)
    if exponent == 3:
        return a.builder.apply("multiply", a.builder.apply("square", x), x)
    raise ProgramRefused(f"exponent={exponent!r} must be one of {[3, *named]}")


def _binary(op: str) -> Rule:
    def write(a: Arguments) -> Value:
        a.none("rounding_mode")
        alpha = a.integer("alpha", 1) if op in {"add", "subtract"} else 1
        if alpha != 1:
            raise ProgramRefused(f"alpha={alpha} isn't supported")
        x, y = a.tensor(), a.operand("other")
        kinds = {a.builder.specs[value].dtype for value in (x, y)}
        # Integers stay integers among themselves; beside a floating value they become floating.
        if kinds != {"int64"} or op == "divide":
            x, y = a.real(x), a.real(y)
        return a.builder.apply(op, x, y)

    return write


for _name, _op in (("add", "add"), ("sub", "subtract"), ("mul", "multiply"), ("div", "divide")):
    for _overload in ("Tensor", "Scalar"):
        OPERATORS[f"{_name}.{_overload}"] = _binary(_op)
OPERATORS["maximum.default"] = _binary("maximum")
OPERATORS["minimum.default"] = _binary("minimum")


@rule("rsub.Scalar", "rsub.Tensor")
def _reversed_subtract(a: Arguments) -> Value:
    x, y = a.real(a.tensor()), a.real(a.operand("other"))
    return a.builder.apply("subtract", y, x)


def _comparison(relation: str) -> Rule:
    def write(a: Arguments) -> Value:
        x, y = a.tensor(), a.operand("other")
        if a.builder.specs[x].dtype != a.builder.specs[y].dtype:
            x, y = a.real(x), a.real(y)
        return a.builder.apply("compare", x, y, relation=relation)

    return write


for _name, _op in (
    ("eq", "equal"),
    ("ne", "not_equal"),
    ("gt", "greater"),
    ("ge", "greater_equal"),
    ("lt", "less"),
    ("le", "less_equal"),
):
    for _overload in ("Tensor", "Scalar"):
        OPERATORS[f"{_name}.{_overload}"] = _comparison(_op)


@rule("where.self")
def _where(a: Arguments) -> Value:
    condition = a.tensor("condition")
    return a.builder.apply("where", condition, *a.alike(a.operand("self"), a.operand("other")))


@rule("masked_fill.Scalar")
def _masked_fill(a: Arguments) -> Value:
    mask = a.tensor("mask")
    return a.builder.apply("where", mask, *a.alike(a.operand("value"), a.tensor()))
