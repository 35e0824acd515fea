"""Products of quantised matrices: exact in float64, so any BLAS on any machine gives the same bits.

Where there are kernels (`workloads.exact.kernels`) they multiply the integers themselves, which is exact too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workloads.exact.kernels import kernels
from workloads.exact.kernels.library import Panels
from workloads.exact.quantise import Float64, Precision, quantise

__all__ = ["PackedMatrix", "contract", "kernel_product"]


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


def kernel_product(left: Float64, right: Float64, precision: Precision) -> Float64 | None:
    """Quantise rows of ``left`` and columns of ``right`` along their contraction, and multiply, in one go.

    Args:
        left: (rows, inner), numbers, not quantised ones.
        right: (inner, columns), the same; may be a transposed view.
        precision: the profile.

    Returns:
        (rows, columns), the bits of `quantise` and `contract`; None where only they will do: there are no
        kernels, or they don't take this profile or length, or an operand holds NaN, Inf or more than 2**500.
    """
    loaded = kernels()
    if loaded is None:
        return None
    panels = loaded.pack(right.T, precision.bits)
    return None if panels is None else loaded.multiply(left, panels)


class PackedMatrix:
    """A weight (outputs, inputs), quantised once along its inputs.

    Args:
        weight: (outputs, inputs) float64.
        precision: the profile.

    Attributes:
        panels: the weight as the kernels take it, or None if they don't.
    """

    def __init__(self, weight: Float64, precision: Precision) -> None:
        self._precision = precision
        loaded = kernels()
        self.panels: Panels | None = None if loaded is None else loaded.pack(weight, precision.bits)
        self._transposed: Tensor | None = None
        if self.panels is None:
            self._transposed = torch.from_numpy(quantise(weight, precision.bits)).t()

    def multiply(self, rows: Float64) -> Float64:
        """Rows (count, inputs), quantised here, times the weight: a new (count, outputs) array."""
        loaded = kernels()
        if loaded is not None and self.panels is not None:
            product = loaded.multiply(rows, self.panels)
            if product is not None:
                return product
        return self.apply(quantise(rows, self._precision.bits))

    def apply(self, quantised: Float64) -> Float64:
        """(count, inputs) quantised rows times the weight: a new (count, outputs) array."""
        if self._transposed is None:
            assert self.panels is not None  # noqa: S101
            self._transposed = torch.from_numpy(self.panels.unpack()).t()
        product: Float64 = contract(
            torch.from_numpy(quantised), self._transposed, self._precision.inner_max
        ).numpy()
        return product
