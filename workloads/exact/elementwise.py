"""exp, log, sqrt, sin, cos, tanh, sigmoid, SiLU, GELU and their gradients, of checked tensors.

The arithmetic is that of `workloads.exact.elementary`. Relative errors stay under 1e-15, save where a
docstring says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from workloads.errors import NumericsRefused
from workloads.exact.elementary import (
    ANGLE_MAX,
    ROOT_TWO,
    exp_plus_one,
    raw_exp,
    raw_exp2,
    raw_log,
    raw_normal,
    raw_sigmoid,
    raw_tanh,
    raw_wave,
)
from workloads.exact.tensors import elementwise, intake, square_root

__all__ = [
    "cos",
    "erf",
    "exp",
    "exp2",
    "gelu",
    "gelu_backward",
    "log",
    "relu",
    "rsqrt",
    "sigmoid",
    "sigmoid_backward",
    "silu",
    "silu_backward",
    "sin",
    "sqrt",
    "tanh",
    "tanh_backward",
]

_GELU_CUBIC = 0.044715
_GELU_SCALE = 1.5957691216057308  # 2 * sqrt(2 / pi)
_DENSITY_AT_ZERO = 0.3989422804014327  # 1 / sqrt(2 pi)


def exp(x: Tensor) -> Tensor:
    """e**x; arguments are clamped to ±693.

    Raises:
        NumericsRefused: ``x`` holds NaN, Inf or a magnitude above 2**500. So do all functions here.
    """
    return elementwise(raw_exp, intake("x", x))


def exp2(x: Tensor) -> Tensor:
    """2**x; arguments are clamped to ±1000."""
    return elementwise(raw_exp2, intake("x", x))


def log(x: Tensor) -> Tensor:
    """Natural logarithm.

    Raises:
        NumericsRefused: an element is not positive, or under 2**-1022.
    """
    checked = intake("x", x)
    if checked.numel() and not float(checked.amin()) >= 2.0**-1022:
        raise NumericsRefused(f"x holds {float(checked.amin())}, log needs at least 2**-1022")
    return elementwise(raw_log, checked)


def sqrt(x: Tensor) -> Tensor:
    """Square root, correctly rounded.

    Raises:
        NumericsRefused: an element is negative.
    """
    return square_root(_at_least("sqrt", x, 0.0))


def rsqrt(x: Tensor) -> Tensor:
    """1 / sqrt(x), both correctly rounded.

    Raises:
        NumericsRefused: an element is under 2**-1000.
    """
    root = square_root(_at_least("rsqrt", x, 2.0**-1000))
    return torch.ones_like(root) / root


def sin(x: Tensor) -> Tensor:
    """Sine of radians; the absolute error is under 3e-16.

    Raises:
        NumericsRefused: a magnitude above 2**27.
    """
    return elementwise(lambda block: raw_wave(block, 0), _angles("sin", x))


def cos(x: Tensor) -> Tensor:
    """Cosine of radians; the absolute error is under 3e-16.

    Raises:
        NumericsRefused: a magnitude above 2**27.
    """
    return elementwise(lambda block: raw_wave(block, 1), _angles("cos", x))


def tanh(x: Tensor) -> Tensor:
    """Hyperbolic tangent; the relative error is under 3e-14."""
    return elementwise(raw_tanh, intake("x", x))


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return elementwise(raw_sigmoid, intake("x", x))


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    return elementwise(lambda block: block / exp_plus_one(-block), intake("x", x))


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """x times the normal distribution at x; below -12 that is taken to be 1.8e-33.

    Args:
        x: any shape.
        approximate: "none", or "tanh" for ``x * sigmoid(1.59577 * (x + 0.044715 * x**3))``.
    """
    return elementwise(_gelu_of(approximate), intake("x", x))


def relu(x: Tensor) -> Tensor:
    """max(x, 0), never -0.0."""
    return intake("x", x).clamp(min=0.0).add_(0.0)


def erf(x: Tensor) -> Tensor:
    """Error function; the absolute error is under 3e-16."""
    return elementwise(lambda block: 2.0 * raw_normal(block * ROOT_TWO) - 1.0, intake("x", x))


def tanh_backward(grad: Tensor, result: Tensor) -> Tensor:
    """Gradient of ``tanh`` from its ``result``."""
    y = intake("result", result)
    return intake("grad", grad) * (1.0 - y * y)


def sigmoid_backward(grad: Tensor, result: Tensor) -> Tensor:
    """Gradient of ``sigmoid`` from its ``result``."""
    y = intake("result", result)
    return intake("grad", grad) * (y * (1.0 - y))


def silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Gradient of ``silu`` at its argument ``x``."""

    def slope(block: Tensor) -> Tensor:
        gate = raw_sigmoid(block)
        return gate * (1.0 + block * (1.0 - gate))

    return intake("grad", grad) * elementwise(slope, intake("x", x))


def gelu_backward(grad: Tensor, x: Tensor, *, approximate: str = "none") -> Tensor:
    """Gradient of ``gelu`` at its argument ``x``."""

    def slope(block: Tensor) -> Tensor:
        density = raw_exp(block * block * -0.5) * _DENSITY_AT_ZERO
        return raw_normal(block) + block * density

    def slope_of_tanh_form(block: Tensor) -> Tensor:
        # Beyond this the gate is 0 or 1 to 1e-200, and cubes stay small.
        near = block.clamp(-20.0, 20.0)
        square = near * near
        gate = raw_sigmoid(near * (1.0 + _GELU_CUBIC * square) * _GELU_SCALE)
        inner = _GELU_SCALE * (1.0 + 3.0 * _GELU_CUBIC * square)
        return gate + near * gate * (1.0 - gate) * inner

    _gelu_of(approximate)
    chosen = slope if approximate == "none" else slope_of_tanh_form
    return intake("grad", grad) * elementwise(chosen, intake("x", x))


def _angles(name: str, x: Tensor) -> Tensor:
    checked = intake("x", x)
    if checked.numel() and not float(checked.abs().max()) <= ANGLE_MAX:
        raise NumericsRefused(f"x holds {float(checked.abs().max())}, {name} takes at most 2**27")
    return checked


def _gelu_of(approximate: str) -> Callable[[Tensor], Tensor]:
    if approximate == "none":
        return lambda x: x * raw_normal(x)
    if approximate == "tanh":
        return _gelu_tanh
    raise ValueError(f'approximate must be "none" or "tanh", got {approximate!r}')


def _gelu_tanh(x: Tensor) -> Tensor:
    near = x.clamp(-20.0, 20.0)
    return x / exp_plus_one(near * (1.0 + _GELU_CUBIC * (near * near)) * -_GELU_SCALE)


def _at_least(name: str, x: Tensor, low: float) -> Tensor:
    checked = intake("x", x)
    if checked.numel() and not float(checked.amin()) >= low:
        raise NumericsRefused(f"x holds {float(checked.amin())}, {name} needs at least {low}")
    return checked
