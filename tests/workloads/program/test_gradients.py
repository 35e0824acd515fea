"""Every gradient rule against torch's autograd in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from workloads.errors import ProgramRefused
from workloads.program import JOB, Builder, differentiable, execute, gradient, run, spec_of

IDS = torch.tensor([[0, 2, 2], [1, 0, 2]])
HEADS = {"causal": True, "scale": 0.5, "precision": "exact21"}
CONV = {"dilation": [1, 1], "groups": 1, "precision": "exact21"}

Case = tuple[str, list[Any], dict[str, Any], Callable[..., Tensor]]


def _rotated(x: Tensor) -> Tensor:
    angles = torch.arange(3.0).double()[:, None] * 100.0 ** (-torch.arange(2).double() / 2)
    low, high = x.chunk(2, -1)
    return torch.cat((low * angles.cos() - high * angles.sin(), high * angles.cos() + low * angles.sin()), -1)


# Shapes of float inputs, or tensors of ids; sizes that broadcast where the operator does.
CASES: list[Case] = [
    ("add", [(3, 4), (4,)], {}, torch.add),
    ("subtract", [(3, 1), (2, 3, 4)], {}, torch.sub),
    ("multiply", [(3, 4), (3, 1)], {}, torch.mul),
    ("divide", [(3, 4), (4,)], {}, torch.div),
    ("negate", [(3,)], {}, torch.neg),
    ("abs", [(3, 4)], {}, torch.abs),
    ("square", [(3, 4)], {}, torch.square),
    ("reciprocal", [(3, 4)], {}, torch.reciprocal),
    ("relu", [(3, 4)], {}, F.relu),
    ("scale", [(3, 4)], {"factor": -1.5}, lambda x: x * -1.5),
    ("shift", [(3, 4)], {"term": 2.0}, lambda x: x + 2.0),
    ("cast", [(3, 4)], {"dtype": "float64"}, lambda x: x),
    ("exp", [(3, 4)], {}, torch.exp),
    ("log", [(3, 4)], {}, torch.log),
    ("sqrt", [(3, 4)], {}, torch.sqrt),
    ("rsqrt", [(3, 4)], {}, torch.rsqrt),
    ("sin", [(3, 4)], {}, torch.sin),
    ("cos", [(3, 4)], {}, torch.cos),
    ("tanh", [(3, 4)], {}, torch.tanh),
    ("sigmoid", [(3, 4)], {}, torch.sigmoid),
    ("silu", [(3, 4)], {}, F.silu),
    ("gelu", [(3, 4)], {"approximate": "none"}, F.gelu),
    ("gelu", [(3, 4)], {"approximate": "tanh"}, lambda x: F.gelu(x, approximate="tanh")),
    ("reshape", [(3, 4)], {"shape": [2, 6]}, lambda x: x.reshape(2, 6)),
    ("permute", [(2, 3, 4)], {"order": [2, 0, 1]}, lambda x: x.permute(2, 0, 1)),
    ("expand", [(3, 1)], {"shape": [2, 3, 4]}, lambda x: x.expand(2, 3, 4)),
    ("slice", [(3, 7)], {"dim": 1, "start": 1, "stop": 6, "stride": 2}, lambda x: x[:, 1:6:2]),
    ("concat", [(3, 2), (3, 5)], {"dim": 1}, lambda x, y: torch.cat((x, y), 1)),
    ("flip", [(3, 4)], {"dim": 0}, lambda x: x.flip(0)),
    ("embedding", [(3, 4), IDS], {}, lambda w, ids: F.embedding(ids, w)),
    ("sum", [(2, 3, 4)], {"dims": [0, 2], "keepdim": False}, lambda x: x.sum((0, 2))),
    ("mean", [(2, 3, 4)], {"dims": [1], "keepdim": True}, lambda x: x.mean(1, keepdim=True)),
    ("cross_entropy", [(6, 3), IDS.reshape(-1)], {}, F.cross_entropy),
    ("softmax", [(3, 4)], {"dim": 1}, lambda x: x.softmax(1)),
    ("log_softmax", [(3, 4)], {"dim": 0}, lambda x: x.log_softmax(0)),
    ("rms_norm", [(3, 4), (4,)], {"epsilon": 1e-5}, lambda x, w: F.rms_norm(x, (4,), w, 1e-5)),
    ("rms_norm", [(3, 4)], {"epsilon": 1e-5}, lambda x: F.rms_norm(x, (4,), None, 1e-5)),
    ("layer_norm", [(3, 4), (4,), (4,)], {"epsilon": 1e-5}, lambda x, w, b: F.layer_norm(x, (4,), w, b)),
    (
        "group_norm",
        [(2, 4, 3), (4,), (4,)],
        {"epsilon": 1e-5, "groups": 2},
        lambda x, w, b: F.group_norm(x, 2, w, b),
    ),
    ("matmul", [(2, 3, 4), (4, 5)], {"precision": "exact21"}, torch.matmul),
    ("linear", [(2, 3, 4), (5, 4), (5,)], {"precision": "exact21"}, F.linear),
    (
        "attention",
        [(2, 4, 3, 4), (2, 2, 5, 4), (2, 2, 5, 6)],
        HEADS,
        lambda q, k, v: F.scaled_dot_product_attention(
            q, k, v, torch.ones(3, 5, dtype=torch.bool).tril(2), scale=0.5, enable_gqa=True
        ),
    ),
    ("rotary", [(2, 3, 4)], {"theta": 100.0, "start": 0, "inverse": False}, _rotated),
    (
        "conv",
        [(2, 3, 5, 4), (6, 3, 3, 2), (6,)],
        {**CONV, "stride": [2, 1], "padding": [1, 0]},
        lambda x, w, b: F.conv2d(x, w, b, stride=(2, 1), padding=(1, 0)),
    ),
]


def _values(shapes: list[Any]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    # Away from zero, so that abs, relu, log and divide are smooth there.
    return [
        shape if isinstance(shape, Tensor) else torch.rand(shape, generator=generator).double() + 0.25
        for shape in shapes
    ]


@pytest.mark.parametrize(("op", "shapes", "attributes", "native"), CASES, ids=lambda case: str(case)[:12])
def test_rule_agrees_with_autograd(
    op: str, shapes: list[Any], attributes: dict[str, Any], native: Callable[..., Tensor]
) -> None:
    values = _values(shapes)
    builder = Builder()
    inputs = [builder.input(f"x{i}", spec_of(value), JOB) for i, value in enumerate(values)]
    wanted = [number for number, value in enumerate(values) if value.is_floating_point()]
    weights = builder.input("weights", spec_of(native(*values)), JOB)
    result = builder.apply(op, *inputs, **attributes)
    product = builder.apply("multiply", result, weights)
    dims = range(len(builder.shape(product)))
    loss = builder.apply("sum", product, dims=dims, keepdim=False) if dims else product
    gradients = gradient(builder, loss, [inputs[number] for number in wanted])

    leaves = [value.clone().requires_grad_() if value.is_floating_point() else value for value in values]
    true_result = native(*leaves)
    weight = torch.linspace(0.5, 2.0, true_result.numel()).double().reshape(true_result.shape)
    (true_result * weight).sum().backward()

    outputs = [*values, weight, *run(builder.build(), [*values, weight])]
    torch.testing.assert_close(outputs[result], true_result.detach(), rtol=1e-5, atol=1e-6)
    for number, value in zip(wanted, gradients, strict=True):
        assert outputs[value].dtype == torch.float64
        torch.testing.assert_close(outputs[value], leaves[number].grad, rtol=1e-5, atol=2e-6)


def test_every_rule_is_tested() -> None:
    assert {case[0] for case in CASES} == set(differentiable())


def test_a_value_used_twice_collects_both_gradients() -> None:
    builder = Builder()
    x = builder.input("x", spec_of(torch.ones(3)), JOB)
    cubed = builder.apply("multiply", builder.apply("square", x), x)
    loss = builder.apply("sum", cubed, dims=[0], keepdim=False)
    (slope,) = gradient(builder, loss, [x])
    value = torch.tensor([1.0, 2.0, -3.0])
    outputs = [value, *run(builder.build(), [value])]
    assert outputs[slope].tolist() == [3.0, 12.0, 27.0]


def test_what_has_no_gradient_is_refused() -> None:
    builder = Builder()
    x = builder.input("x", spec_of(torch.ones(3)), JOB)
    y = builder.input("y", spec_of(torch.ones(3)), JOB)
    largest = builder.apply("max", x, dims=[0], keepdim=False)
    with pytest.raises(ProgramRefused, match="'max' has no gradient"):
        gradient(builder, largest, [x])
    total = builder.apply("sum", x, dims=[0], keepdim=False)
    with pytest.raises(ProgramRefused, match="doesn't depend on value 1"):
        gradient(builder, total, [y])
    with pytest.raises(ProgramRefused, match="must be a scalar"):
        gradient(builder, x, [x])


def test_optimiser_agrees_with_torch() -> None:
    generator = torch.Generator().manual_seed(3)
    parameter = torch.nn.Parameter(torch.randn(5, 3, generator=generator).double())
    optimiser = torch.optim.AdamW([parameter], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    held = [parameter.detach().clone(), torch.zeros(5, 3).double(), torch.zeros(5, 3).double()]
    builder = Builder()
    for step in range(1, 4):
        slope = torch.randn(5, 3, generator=generator).double()
        inputs = [
            builder.input(name, spec_of(held[0]), JOB)
            for name in ("parameter", "gradient", "mean", "variance")
        ]
        for wanted in ("parameter", "mean", "variance"):
            builder.apply(
                "adamw",
                *inputs,
                step=step,
                learning_rate=0.01,
                beta1=0.9,
                beta2=0.95,
                epsilon=1e-8,
                weight_decay=0.1,
                wanted=wanted,
            )
        held = [execute(item, [held[0], slope, held[1], held[2]]) for item in builder.build().steps]
        builder = Builder()
        parameter.grad = slope
        optimiser.step()
    torch.testing.assert_close(held[0], parameter.detach(), rtol=1e-12, atol=1e-12)
