"""AdamW, one step at a time, in float64."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from workloads.exact.slices import blocks
from workloads.exact.tensors import BLOCK_ELEMENTS, intake, square_root

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
    flat = [
        intake(name, each).reshape(-1)
        for name, each in zip(
            ("parameter", "gradient", "mean", "variance"),
            (parameter, gradient, mean, variance),
            strict=True,
        )
    ]
    whole = len(flat[0])
    corrections = [
        torch.tensor(1.0 - _power(beta, step), dtype=torch.float64, device=parameter.device) for beta in betas
    ]
    results = [torch.empty_like(flat[0]) for _ in range(3)]
    # Elementwise, so any blocks give the same bits.
    for start, stop in blocks(whole, BLOCK_ELEMENTS if parameter.device.type == "cpu" else max(whole, 1)):
        old, slope, moved, spread = (each[start:stop] for each in flat)
        moved = moved * betas[0]
        moved += slope * (1.0 - betas[0])
        spread = spread * betas[1]
        spread += slope * slope * (1.0 - betas[1])
        root = square_root(spread / corrections[1])
        root += epsilon
        update = moved / corrections[0]
        update /= root
        update *= learning_rate
        kept = old * (1.0 - learning_rate * weight_decay)
        kept -= update
        for result, part in zip(results, (kept, moved, spread), strict=True):
            result[start:stop] = part
    return AdamWState(*(result.view(parameter.shape) for result in results))


def _power(base: float, exponent: int) -> float:
    """base**exponent by squaring; libm's pow differs between machines in the last bit."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result
