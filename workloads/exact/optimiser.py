"""AdamW, one step at a time, in float64."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from workloads.exact.reductions import divide
from workloads.exact.tensors import intake, square_root

__all__ = ["AdamWState", "adamw_step"]


class AdamWState(NamedTuple):
    """What a step gives back: the parameter and its two moments, in the parameter's shape, float64."""

    parameter: Tensor
    mean: Tensor
    variance: Tensor


def adamw_step(
    parameter: Tensor,
    gradient: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    step: int,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    weight_decay: float = 0.01,
) -> AdamWState:
    """One step of AdamW (Loshchilov and Hutter, 2019), with torch's defaults; nothing is overwritten.

    Args:
        parameter: any shape.
        gradient: same shape, of the loss.
        mean: same shape, decaying mean of gradients; zeros before the first step.
        variance: same shape, decaying mean of their squares; zeros before the first step.
        step: from 1.
        learning_rate: of this step.
        betas: decay of the two moments, in [0, 1).
        epsilon: added to the root of the variance.
        weight_decay: share of the parameter taken off, times the learning rate.

    Raises:
        NumericsRefused: an operand holds NaN, Inf or a magnitude above 2**500.
        ValueError: ``step`` or a beta lies outside its interval, or shapes differ.
    """
    if step < 1 or not all(0.0 <= beta < 1.0 for beta in betas):
        raise ValueError(f"step must be >= 1 and betas in [0, 1), got {step} and {betas}")
    if not parameter.shape == gradient.shape == mean.shape == variance.shape:
        raise ValueError(f"parameter, gradient and moments must have one shape, got {tuple(gradient.shape)}")
    slope = intake("gradient", gradient)
    first, second = betas
    moved = intake("mean", mean) * first + slope * (1.0 - first)
    spread = intake("variance", variance) * second + slope * slope * (1.0 - second)
    root = square_root(divide(spread, 1.0 - _power(second, step)))
    update = divide(moved, 1.0 - _power(first, step)) / (root + epsilon)
    kept = intake("parameter", parameter) * (1.0 - learning_rate * weight_decay)
    return AdamWState(kept - update * learning_rate, moved, spread)


def _power(base: float, exponent: int) -> float:
    """base**exponent by squaring; libm's pow differs between machines in the last bit."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result
