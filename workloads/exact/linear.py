"""Products of quantised matrices: exact in float64, so any BLAS on any machine gives the same bits."""

from __future__ import annotations

import torch
from torch import Tensor

from workloads.exact.quantise import Float64, Precision, quantise

__all__ = ["PackedMatrix", "contract"]


def contract(left: Tensor, right: Tensor, inner_max: int) -> Tensor:
    """``left @ right`` for operands quantised along the contraction, in blocks added left to right.

    Args:
        left: (..., rows, inner) float64.
        right: (..., inner, columns) float64.
        inner_max: `Precision.inner_max`; sums over longer blocks could round.
    """
    inner = left.shape[-1]
    if inner <= inner_max:
        return left @ right
    total = left[..., :inner_max] @ right[..., :inner_max, :]
    for start in range(inner_max, inner, inner_max):
        stop = start + inner_max
        total += left[..., start:stop] @ right[..., start:stop, :]
    return total


class PackedMatrix:
    """A weight (outputs, inputs), quantised once along its inputs.

    Args:
        weight: (outputs, inputs) float64.
        precision: the profile.
    """

    def __init__(self, weight: Float64, precision: Precision) -> None:
        self._inner_max = precision.inner_max
        self._transposed = torch.from_numpy(quantise(weight, precision.bits)).t()

    def apply(self, quantised: Float64) -> Float64:
        """(rows, inputs) quantised rows times the weight: a new (rows, outputs) array."""
        product: Float64 = contract(torch.from_numpy(quantised), self._transposed, self._inner_max).numpy()
        return product
