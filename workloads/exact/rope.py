"""Rotary position tables that are the same on every machine.

libm's ``cos`` and ``pow`` differ between C libraries in the last bit, so the angles, sines and
cosines are computed with Python integers (fixed point, 160 fractional bits) and rounded once to
float64. Rotating by one position is a multiplication of complex numbers, so a table row costs four
integer products per frequency.
"""

from __future__ import annotations

from decimal import Context, Decimal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["RotaryTable", "rotate"]

_BITS = 160
_ONE = 1 << _BITS
# Decimal's ln and exp are correctly rounded in this precision on every platform.
_CONTEXT = Context(prec=60)
_FIRST_ROWS = 256


class RotaryTable:
    """Cosines and sines of ``position * theta ** (-2 i / head_dim)``, grown on demand.

    Rows depend only on theta, head_dim and the position, never on when or how far the table grew.
    """

    def __init__(self, theta: float, head_dim: int) -> None:
        self._steps = [_unit_rotation(theta, head_dim, index) for index in range(head_dim // 2)]
        self._next = [(_ONE, 0)] * (head_dim // 2)
        self._cosines: NDArray[np.float64] = np.empty((0, head_dim // 2))
        self._sines: NDArray[np.float64] = np.empty((0, head_dim // 2))

    def rows(self, start: int, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Cosines and sines for positions ``start .. start + count - 1``.

        Returns:
            Two float64 arrays of shape (count, head_dim / 2); views, not to be written to.
        """
        stop = start + count
        if stop > len(self._cosines):
            self._grow(max(stop, 2 * len(self._cosines), _FIRST_ROWS))
        return self._cosines[start:stop], self._sines[start:stop]

    def _grow(self, rows: int) -> None:
        cosines, sines = [], []
        for _ in range(rows - len(self._cosines)):
            cosines.append([_to_float(cosine) for cosine, _ in self._next])
            sines.append([_to_float(sine) for _, sine in self._next])
            self._next = [_rotate(angle, step) for angle, step in zip(self._next, self._steps, strict=True)]
        self._cosines = np.concatenate((self._cosines, np.array(cosines)))
        self._sines = np.concatenate((self._sines, np.array(sines)))


def rotate(x: Tensor, cosines: Tensor, sines: Tensor, *, inverse: bool) -> Tensor:
    """Rotate positions in Hugging Face's layout: element i pairs with i + width / 2.

    Args:
        x: (..., positions, width).
        cosines: (positions, width / 2) float64, contiguous.
        sines: the same of the angles.
        inverse: rotate back.

    Returns:
        Float64, in the shape of ``x``.
    """
    if inverse:
        sines = -sines
    halves = x.double().reshape(*x.shape[:-1], 2, x.shape[-1] // 2)
    turned = torch.empty_like(halves, memory_format=torch.contiguous_format)
    torch.mul(halves[..., 1, :], -sines, out=turned[..., 0, :])
    torch.mul(halves[..., 0, :], sines, out=turned[..., 1, :])
    return (halves * cosines.unsqueeze(-2)).add_(turned).reshape(x.shape)


def _to_float(fixed: int) -> float:
    # Integer true division is correctly rounded by the language, whatever the platform.
    return fixed / _ONE


def _rotate(angle: tuple[int, int], step: tuple[int, int]) -> tuple[int, int]:
    (cosine, sine), (step_cosine, step_sine) = angle, step
    return (
        (cosine * step_cosine - sine * step_sine) >> _BITS,
        (sine * step_cosine + cosine * step_sine) >> _BITS,
    )


def _unit_rotation(theta: float, head_dim: int, index: int) -> tuple[int, int]:
    """Cosine and sine of theta ** (-2 index / head_dim), which lies in (0, 1], in fixed point."""
    exponent = _CONTEXT.divide(Decimal(-2 * index), Decimal(head_dim))
    angle = _CONTEXT.exp(_CONTEXT.multiply(exponent, _CONTEXT.ln(Decimal(theta))))
    fixed = int(_CONTEXT.multiply(angle, Decimal(_ONE)))
    cosine = sine = 0
    term, order = _ONE, 0
    while term:
        sign = -1 if order & 2 else 1
        if order & 1:
            sine += sign * term
        else:
            cosine += sign * term
        order += 1
        term = ((term * fixed) >> _BITS) // order
    return cosine, sine
