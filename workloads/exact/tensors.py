"""Tensors as the exact operators take them: float64, finite, and no larger than 2**500.

Every operator is built out of single torch or numpy calls that IEEE 754 pins: +, -, *, / and square root of
float64, comparisons, integer operations and copies. Never out of what a library may fuse, approximate or
reorder. Two habits follow from that. A divisor is always a tensor on the same device, because CUDA divides by
a Python number through its reciprocal. And whatever may have lost the sign of a zero (a maximum, a product of
matrices) has 0.0 added to it, which turns -0.0 into 0.0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from workloads.errors import NumericsRefused
from workloads.exact.quantise import EXPONENT_MAX

__all__ = [
    "BLOCK_ELEMENTS",
    "CEILING",
    "Rounded",
    "check_magnitudes",
    "check_type",
    "convert",
    "elementwise",
    "indices",
    "intake",
    "square_root",
    "table",
    "vector",
]

CEILING = 2.0**EXPONENT_MAX
# An elementwise function makes two dozen passes: over this many elements they stay in a core's cache, and the
# calls themselves cost little.
BLOCK_ELEMENTS = 1 << 15
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Rounded(NamedTuple):
    """Rows rounded to integers times a grain of their own.

    Args:
        values: float64.
        grain: powers of two that broadcast against ``values``, one for each row.
    """

    values: Tensor
    grain: Tensor

    def transpose(self) -> Rounded:
        """Both with their last two dimensions exchanged."""
        return Rounded(self.values.transpose(-1, -2), self.grain.transpose(-1, -2))


def intake(name: str, x: Tensor) -> Tensor:
    """``x`` as float64, exactly, detached from autograd.

    Args:
        name: what to call it in a refusal.
        x: float64, float32, float16 or bfloat16, any shape and device.

    Raises:
        NumericsRefused: an element is NaN, infinite or above 2**500 in magnitude.
        TypeError: another data type.
    """
    converted = convert(name, x)
    if converted.numel():
        low, high = torch.aminmax(converted)
        check_magnitudes(name, torch.maximum(high, -low))
    return converted


def convert(name: str, x: Tensor) -> Tensor:
    """`intake` without the check of magnitudes, for callers that take the maxima anyway."""
    check_type(name, x)
    return x.detach().to(torch.float64)


def check_type(name: str, x: Tensor) -> None:
    """Refuse a tensor that isn't of a floating type that is taken, with `TypeError`."""
    if x.dtype not in _FLOATS:
        raise TypeError(f"{name} must be a floating tensor, got {x.dtype}")


def check_magnitudes(name: str, magnitudes: Tensor) -> None:
    """Refuse unless every one of these (not empty) magnitudes is at most 2**500.

    Raises:
        NumericsRefused: one is larger, infinite or NaN.
    """
    # Written so that NaN fails too.
    if not float(magnitudes.max()) <= CEILING:
        raise NumericsRefused(f"{name} holds NaN, Inf or a magnitude above 2**{EXPONENT_MAX}")


def indices(name: str, x: Tensor, stop: int) -> Tensor:
    """``x`` as int64 with every element in [0, stop).

    Raises:
        NumericsRefused: an index lies outside.
        TypeError: not an integer tensor.
    """
    if x.dtype.is_floating_point or x.dtype.is_complex or x.dtype == torch.bool:
        raise TypeError(f"{name} must be an integer tensor, got {x.dtype}")
    whole = x.to(torch.int64)
    if whole.numel():
        low, high = (int(end) for end in torch.aminmax(whole))
        if low < 0 or high >= stop:
            raise NumericsRefused(f"{name} holds index {low if low < 0 else high}, must be in [0, {stop})")
    return whole


def vector(name: str, x: Tensor, size: int) -> Tensor:
    """`intake` of a tensor that must have shape (size,)."""
    if x.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},), got {tuple(x.shape)}")
    return intake(name, x)


def square_root(x: Tensor) -> Tensor:
    """Correctly rounded square roots of a float64 tensor, unchecked."""
    if x.device.type != "cpu":
        return x.sqrt()
    # torch's own goes through MKL on a CPU, whose last bit differs by instruction set.
    import numpy as np

    # Without dimensions numpy would give a number, not an array.
    return torch.from_numpy(np.sqrt(x.reshape(-1).numpy())).view(x.shape)


def elementwise(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)``, in blocks on a CPU; the function maps (n,) to (n,) element by element."""
    flat = x.contiguous().view(-1)
    if x.device.type != "cpu" or len(flat) <= BLOCK_ELEMENTS:
        return function(flat).view(x.shape)
    result = torch.empty_like(flat)
    for start in range(0, len(flat), BLOCK_ELEMENTS):
        stop = start + BLOCK_ELEMENTS
        result[start:stop] = function(flat[start:stop])
    return result.view(x.shape)


_tables: dict[tuple[str, torch.device], Tensor] = {}


def table(make: Callable[[], Tensor], device: torch.device) -> Tensor:
    """What ``make`` returns, made once and kept on the device."""
    key = (f"{make.__module__}.{make.__qualname__}", device)
    found = _tables.get(key)
    if found is None:
        found = _tables[key] = make().to(device)
    return found
