"""Elementwise functions out of correctly rounded +, -, *, / and table look-ups only.

libm's and MKL's exp and tanh, and torch's vectorised sqrt, differ between machines in the last bit. IEEE 754
pins the operations used here, so these are the same everywhere.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from workloads.exact.quantise import Float64

__all__ = [
    "LN2",
    "LOG2_E",
    "exp2_inplace",
    "fraction_table",
    "root_mean_square",
    "silu_times",
    "sum_exactly",
]

LN2 = 0.6931471805599453
LOG2_E = 1.4426950408889634
EXP2_LIMIT = 1000.0
_TABLE_BITS = 12
_TABLE_MASK = np.int64((1 << _TABLE_BITS) - 1)
_ALIGN = np.int64(52 - _TABLE_BITS)
# Adding this leaves x * 2**12, rounded to an integer, in the low bits of the float64.
_ROUNDER = 1.5 * 2.0 ** (52 - _TABLE_BITS)


def _fraction_table() -> NDArray[np.int64]:
    """Bits of 2**(j / 4096), rounded once, less ``j << 40``.

    The subtraction lets `exp2_inplace` add the whole shifted integer ``n << 40``: its low 12 bits cancel and
    what remains is ``(n >> 12) << 52``, the exponent.
    """
    bits = 256
    root = 2 << bits
    for _ in range(_TABLE_BITS):
        root = math.isqrt(root << bits)
    values, power = [], 1 << bits
    for _ in range(1 << _TABLE_BITS):
        values.append(power / (1 << bits))
        power = (power * root) >> bits
    return np.array(values).view(np.int64) - (np.arange(1 << _TABLE_BITS, dtype=np.int64) << _ALIGN)


_TABLE = _fraction_table()


def fraction_table() -> NDArray[np.int64]:
    """The table (4096,) of `exp2_inplace`, for kernels that do the same; not to be written to."""
    return _TABLE


def exp2_inplace(x: Float64) -> None:
    """Replace ``x`` by 2**x, with a relative error under 4e-9.

    Args:
        x: contiguous; every element must lie in [-1000, 1000] or be NaN.
    """
    shifted = x + _ROUNDER
    x -= shifted - _ROUNDER
    # What is left is under 2**-13, so the next term of the series is under 4e-9.
    x *= LN2
    x += 1.0
    bits = shifted.view(np.int64)
    scale = _TABLE.take(bits & _TABLE_MASK)
    bits <<= _ALIGN
    scale += bits
    x *= scale.view(np.float64)


def silu_times(gate: Float64, up: Float64) -> Float64:
    """``up * gate / (1 + exp(-gate))``, the activation of a SwiGLU block; a new array."""
    power: Float64 = gate * -LOG2_E
    np.maximum(power, -EXP2_LIMIT, out=power)
    np.minimum(power, EXP2_LIMIT, out=power)
    exp2_inplace(power)
    power += 1.0
    np.divide(gate, power, out=power)
    power *= up
    return power


def sum_exactly(terms: Float64, inner_max: int) -> Float64:
    """Sum (..., inner) over the last axis, kept, in blocks of ``inner_max`` that are added left to right."""
    inner = terms.shape[-1]
    if inner <= inner_max:
        total: Float64 = np.add.reduce(terms, axis=-1, keepdims=True)
        return total
    total = np.zeros((*terms.shape[:-1], 1))
    for start in range(0, inner, inner_max):
        total += np.add.reduce(terms[..., start : start + inner_max], axis=-1, keepdims=True)
    return total


def root_mean_square(quantised: Float64, epsilon: float, inner_max: int) -> Float64:
    """``sqrt(mean(x ** 2) + epsilon)`` of each quantised row (..., inner); returns (..., 1)."""
    mean = sum_exactly(quantised * quantised, inner_max)
    mean *= 1.0 / quantised.shape[-1]
    mean += epsilon
    # numpy's sqrt is the processor's, which IEEE 754 pins; torch's goes through MKL and differs by ISA.
    np.sqrt(mean, out=mean)
    return mean
