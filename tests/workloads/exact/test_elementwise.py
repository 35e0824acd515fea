"""Elementwise functions against the processor's long double, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from workloads import exact
from workloads.errors import NumericsRefused
from workloads.exact.cases import numbers
from workloads.exact.elementary import raw_exp2_short
from workloads.exact.functions import exp2_inplace

SPREAD = torch.cat(
    [
        numbers("near", 3000, 2).flatten(),
        numbers("tiny", 1000, 2).flatten() * 2.0**-40,
        torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0**-300], dtype=torch.float64),
    ]
)
POSITIVE = torch.cat(
    [
        SPREAD.abs() + 2.0**-60,
        1.0 + SPREAD * 2.0**-30,
        torch.tensor([2.0**499, 2.0**-900, 1.0, 2.0**0.5], dtype=torch.float64),
    ]
)


def logistic(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize(
    ("ours", "reference", "inputs", "bound"),
    [
        (exact.exp, np.exp, SPREAD * 10, 3e-16),
        (exact.exp2, np.exp2, SPREAD * 10, 3e-16),
        (exact.log, np.log, POSITIVE, 5e-16),
        (exact.sqrt, np.sqrt, POSITIVE, 1.2e-16),
        (exact.rsqrt, lambda x: 1 / np.sqrt(x), POSITIVE[POSITIVE < 2.0**400], 2.3e-16),
        (exact.tanh, np.tanh, SPREAD, 3e-14),
        (exact.sigmoid, logistic, SPREAD * 8, 5e-16),
        (exact.silu, lambda x: x * logistic(x), SPREAD * 8, 5e-16),
    ],
)
def test_relative_error(
    ours: Callable[[Tensor], Tensor], reference: Callable[[Any], Any], inputs: Tensor, bound: float
) -> None:
    wanted = reference(inputs.numpy().astype(np.longdouble))
    found = ours(inputs).numpy().astype(np.longdouble)
    assert np.abs(found - wanted).max(where=wanted == 0, initial=0) == 0
    nonzero = wanted != 0
    assert (np.abs(found - wanted)[nonzero] / np.abs(wanted[nonzero])).max() < bound


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
def test_waves(scale: float) -> None:
    x = SPREAD * scale
    long = x.numpy().astype(np.longdouble)
    assert np.abs(exact.sin(x).numpy() - np.sin(long)).max() < 3e-16
    assert np.abs(exact.cos(x).numpy() - np.cos(long)).max() < 3e-16


def test_normal_distribution() -> None:
    x = torch.cat([numbers("normal", 60, 5).flatten(), torch.linspace(-11.9, 8, 200).double()])
    x = x[x > -12]
    with mpmath.workprec(150):
        for value, gelu, erf in zip(x.tolist(), exact.gelu(x).tolist(), exact.erf(x).tolist(), strict=True):
            wanted = value * mpmath.ncdf(value)
            assert abs(gelu - wanted) <= 5e-16 * abs(wanted)
            assert abs(erf - mpmath.erf(value)) < 3e-16


def test_gelu_tanh_form() -> None:
    x = numbers("gelu", 500, 5)
    long = x.numpy().astype(np.longdouble)
    inner = np.sqrt(2 / np.longdouble(np.pi)) * (long + np.longdouble(0.044715) * long**3)
    wanted = long * logistic(2 * np.clip(inner, -5000, 5000))
    assert np.abs(exact.gelu(x, approximate="tanh").numpy() - wanted).max() < 5e-15
    with pytest.raises(ValueError, match="approximate"):
        exact.gelu(x, approximate="fast")


def test_large_arguments_saturate() -> None:
    huge = torch.tensor([2.0**500, -(2.0**500)], dtype=torch.float64)
    assert exact.exp(huge).tolist() == exact.exp(huge.clamp(-693, 693)).tolist()
    assert exact.tanh(huge).tolist() == [1.0, -1.0]
    assert exact.sigmoid(huge)[0] == 1.0
    for function in (exact.silu, exact.gelu, lambda x: exact.gelu(x, approximate="tanh")):
        assert function(huge)[0] == 2.0**500
        assert abs(float(function(huge)[1])) < 1e120
        assert torch.isfinite(function(huge)).all()
    for function in (exact.silu_backward, exact.gelu_backward):
        assert torch.isfinite(function(torch.ones_like(huge), huge)).all()


def test_the_short_power_is_the_hot_path_s() -> None:
    x = numbers("short", 2000, 3).flatten()
    hot = x.numpy().copy()
    exp2_inplace(hot)
    assert raw_exp2_short(x).numpy().tobytes() == hot.tobytes()


def test_blocks_and_shapes_make_no_difference() -> None:
    x = numbers("blocks", 5, 9001)
    for function in (exact.exp, exact.gelu, exact.sin):
        whole = function(x)
        assert whole.shape == x.shape
        assert torch.equal(torch.stack([function(row) for row in x]), whole)
        assert torch.equal(function(x.t()).t(), whole)
        assert function(x[:0]).shape == (0, 9001)


@pytest.mark.parametrize(
    "name", ["exp", "log", "sqrt", "rsqrt", "sin", "cos", "tanh", "sigmoid", "silu", "gelu"]
)
def test_numbers_without_dimensions_and_none_at_all(name: str) -> None:
    function: Callable[[Tensor], Tensor] = getattr(exact, name)
    one = torch.tensor(0.7, dtype=torch.float64)
    assert torch.equal(function(one), function(one[None])[0])
    for shape in ((0,), (2, 0)):
        assert function(torch.empty(shape)).shape == shape


@pytest.mark.parametrize(
    ("function", "value", "rule"),
    [
        (exact.log, 0.0, r"log needs at least 2\*\*-1022"),
        (exact.log, -1.0, r"x holds -1.0, log needs"),
        (exact.sqrt, -1e-9, "sqrt needs at least 0.0"),
        (exact.rsqrt, 0.0, "rsqrt needs at least"),
        (exact.sin, 2.0**28, r"sin takes at most 2\*\*27"),
        (exact.cos, -(2.0**28), r"cos takes at most 2\*\*27"),
        (exact.exp, float("nan"), "NaN"),
        (exact.gelu, float("inf"), "Inf"),
    ],
)
def test_arguments_outside_are_refused(function: Callable[[Tensor], Tensor], value: float, rule: str) -> None:
    with pytest.raises(NumericsRefused, match=rule):
        function(torch.tensor([1.0, value], dtype=torch.float64))
