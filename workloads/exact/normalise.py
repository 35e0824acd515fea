"""Norms and softmax: exact sums, and otherwise one correctly rounded operation after the other."""

from __future__ import annotations

from torch import Tensor

from workloads.exact.reductions import exact_mean, exact_sum, exponentials, log_of_sum
from workloads.exact.tensors import intake, square_root, vector

__all__ = [
    "group_norm",
    "group_norm_backward",
    "layer_norm",
    "layer_norm_backward",
    "log_softmax",
    "log_softmax_backward",
    "rms_norm",
    "rms_norm_backward",
    "softmax",
    "softmax_backward",
]


def rms_norm(x: Tensor, weight: Tensor | None = None, *, epsilon: float = 1e-6) -> Tensor:
    """``x / sqrt(mean(x**2) + epsilon) * weight`` over the last dimension.

    Args:
        x: (..., width).
        weight: (width,), or None for ones.
        epsilon: added to the mean of squares.

    Returns:
        (..., width) float64.

    Raises:
        NumericsRefused: an operand holds NaN, Inf or a magnitude above 2**500. So do all functions here.
    """
    checked = intake("x", x)
    result = checked / _root_mean_square(checked, epsilon)
    return result if weight is None else result * vector("weight", weight, x.shape[-1])


def rms_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor | None = None, *, epsilon: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Gradients of ``rms_norm`` in ``x`` and in ``weight`` (width,), also where that was None."""
    checked, upstream = intake("x", x), intake("grad", grad)
    scale = _root_mean_square(checked, epsilon)
    normal = checked / scale
    by_weight = exact_sum((upstream * normal).reshape(-1, x.shape[-1]), 0)
    if weight is not None:
        upstream = upstream * vector("weight", weight, x.shape[-1])
    along = exact_mean(upstream * normal).unsqueeze(-1)
    return (upstream - normal * along) / scale, by_weight


def layer_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, epsilon: float = 1e-5
) -> Tensor:
    """``(x - mean) / sqrt(variance + epsilon) * weight + bias`` over the last dimension.

    Args:
        x: (..., width).
        weight: (width,), or None for ones.
        bias: (width,), or None for zeros.
        epsilon: added to the variance.

    Returns:
        (..., width) float64.
    """
    result, _ = _standardised(intake("x", x), epsilon)
    if weight is not None:
        result = result * vector("weight", weight, x.shape[-1])
    return result if bias is None else result + vector("bias", bias, x.shape[-1])


def layer_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor | None = None, *, epsilon: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``layer_norm`` in ``x``, ``weight`` and ``bias``, also where those were None."""
    upstream = intake("grad", grad)
    width = x.shape[-1]
    normal, scale = _standardised(intake("x", x), epsilon)
    by_weight = exact_sum((upstream * normal).reshape(-1, width), 0)
    by_bias = exact_sum(upstream.reshape(-1, width), 0)
    if weight is not None:
        upstream = upstream * vector("weight", weight, width)
    return _through_standardised(upstream, normal, scale), by_weight, by_bias


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-5,
) -> Tensor:
    """`layer_norm` over each group of channels and all positions, with a gain and a bias per channel.

    Args:
        x: (batch, channels, ...).
        groups: divides the channels.
        weight: (channels,), or None for ones.
        bias: (channels,), or None for zeros.
        epsilon: added to the variance.

    Returns:
        Float64, in the shape of ``x``.
    """
    result = _standardised(_grouped(intake("x", x), groups), epsilon)[0].view(x.shape)
    channels = x.shape[1]
    if weight is not None:
        result = result * _per_channel(vector("weight", weight, channels), x)
    return result if bias is None else result + _per_channel(vector("bias", bias, channels), x)


def group_norm_backward(
    grad: Tensor, x: Tensor, groups: int, weight: Tensor | None = None, *, epsilon: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``group_norm`` in ``x``, ``weight`` and ``bias``, also where those were None."""
    upstream = intake("grad", grad)
    normal, scale = _standardised(_grouped(intake("x", x), groups), epsilon)
    channels = x.shape[1]
    by_weight = exact_sum((upstream * normal.view(x.shape)).transpose(0, 1).reshape(channels, -1), 1)
    by_bias = exact_sum(upstream.transpose(0, 1).reshape(channels, -1), 1)
    if weight is not None:
        upstream = upstream * _per_channel(vector("weight", weight, channels), x)
    by_x = _through_standardised(_grouped(upstream, groups), normal, scale)
    return by_x.view(x.shape), by_weight, by_bias


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """exp(x) over its sum along ``dim``."""
    powers = exponentials(intake("x", x), dim)
    return powers / exact_sum(powers, dim).unsqueeze(dim)


def softmax_backward(grad: Tensor, result: Tensor, dim: int = -1) -> Tensor:
    """Gradient of ``softmax`` from its ``result``."""
    upstream, y = intake("grad", grad), intake("result", result)
    return y * (upstream - exact_sum(upstream * y, dim).unsqueeze(dim))


def log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Logarithm of ``softmax``."""
    checked = intake("x", x)
    return checked - log_of_sum(checked, dim)


def log_softmax_backward(grad: Tensor, x: Tensor, dim: int = -1) -> Tensor:
    """Gradient of ``log_softmax`` at its argument ``x``."""
    upstream = intake("grad", grad)
    return upstream - softmax(x, dim) * exact_sum(upstream, dim).unsqueeze(dim)


def _root_mean_square(x: Tensor, epsilon: float) -> Tensor:
    return square_root(exact_mean(x * x) + epsilon).unsqueeze(-1)


def _standardised(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """``x`` less its mean over its deviation, along the last dimension, and the deviation (..., 1)."""
    deviations = x - exact_mean(x).unsqueeze(-1)
    scale = _root_mean_square(deviations, epsilon)
    return deviations / scale, scale


def _through_standardised(grad: Tensor, normal: Tensor, scale: Tensor) -> Tensor:
    centred = grad - exact_mean(grad).unsqueeze(-1)
    return (centred - normal * exact_mean(grad * normal).unsqueeze(-1)) / scale


def _grouped(x: Tensor, groups: int) -> Tensor:
    if x.dim() < 2 or groups < 1 or x.shape[1] % groups:
        raise ValueError(f"{groups} groups must divide the channels of {tuple(x.shape)}")
    return x.reshape(x.shape[0], groups, -1)


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.dim() - 2))
