"""Row-scaled integers: the number format that makes a sum independent of its order.

A row ``x`` with ``2**(e-1) <= max|x| < 2**e`` is rounded, half to even, to multiples of ``2**(e - bits)``.
Two such rows have products that are multiples of one power of two, and while
``inner * 2**(2 * bits) <= 2**53`` every partial sum of them is exact in float64. So BLAS order, FMA, vector
width, thread count and batch size cannot change a bit. Rows are kept at their true scale in float64: scaling
by a power of two commutes with all of this, so no separate exponents have to be carried along.

Arrays are numpy views of CPU memory, because a numpy call costs a fifth of a torch call on the small rows
of a decode step; the large products are torch's (`workloads.exact.linear`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "EXACT14",
    "EXACT21",
    "EXPONENT_MAX",
    "Float64",
    "Precision",
    "power_of_two",
    "quantise",
    "rounders",
]

Float64 = NDArray[np.float64]

# Rows whose largest magnitude is under 2**-EXPONENT_MAX are rounded as if it were that: nothing subnormal
# takes part in a product, whatever the machine does with subnormals. The decoder refuses rows above 2**500.
EXPONENT_MAX = 500
_FLOOR = 2.0**-EXPONENT_MAX
_EXPONENT_BITS = np.int64(0x7FF0_0000_0000_0000)


@dataclass(frozen=True, slots=True)
class Precision:
    """One exact profile.

    Args:
        name: as it stands in a job's terms.
        bits: magnitude bits of a quantised row; the sign comes on top.
    """

    name: str
    bits: int

    @property
    def inner_max(self) -> int:
        """Longest contraction whose partial sums all stay exact in float64."""
        return 1 << (53 - 2 * self.bits)


# exact14: 14-bit signed integers, two 7-bit digits each, so that four int8 products, exact in int32, give the
# same integers as the one float64 product. exact21: float32's accuracy.
EXACT14 = Precision("exact14", 13)
EXACT21 = Precision("exact21", 21)


def rounders(x: Float64, bits: int) -> Float64:
    """For each row of ``x``, the constant ``c`` for which ``(x + c) - c`` rounds to that row's grain.

    Args:
        x: (..., inner).
        bits: magnitude bits.

    Returns:
        (..., 1): ``1.5 * 2**52`` times the grain ``2**(e - bits)``; NaN or Inf where the row holds either.
    """
    constants: Float64 = np.maximum.reduce(np.abs(x), axis=-1, keepdims=True)
    np.maximum(constants, _FLOOR, out=constants)
    _clear_mantissa(constants)
    np.multiply(constants, 1.5 * 2.0 ** (53 - bits), out=constants)
    return constants


def quantise(x: Float64, bits: int) -> Float64:
    """Round each row of ``x`` (..., inner) to ``bits`` magnitude bits of its own scale, as a new array."""
    constants = rounders(x, bits)
    rounded = x + constants
    rounded -= constants
    return rounded


def power_of_two(x: Float64) -> Float64:
    """The largest power of two that is at most each (normal, positive) element of ``x``; a new array."""
    powers = x.copy()
    _clear_mantissa(powers)
    return powers


def _clear_mantissa(x: Float64) -> None:
    bits = x.view(np.int64)
    np.bitwise_and(bits, _EXPONENT_BITS, out=bits)
