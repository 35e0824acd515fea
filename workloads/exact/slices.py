"""The same products out of small integers, for hardware where float64 is slow.

An operand of a contraction is an integer of up to 22 bits (with its sign) times its row's grain. Split into
digits of 7 or 8 bits, every pair of digits multiplies exactly in int8 with int32 sums, or in float32 as long
as the sums stay under 2**24. The digits' products, shifted and added in int64, are the very integers that the
float64 product sums, so the bits are the same (the Ozaki scheme, with nothing left out).

exact14 takes two digits of 7 bits on either side: four products. exact21 takes three of 8 bits: nine.
oneDNN's int8 kernels on AVX2 add pairs of products in 16 bits, which saturates unless the right-hand digits
stay within 64 in magnitude; so on a CPU exact21's right-hand side takes four digits of 7 bits.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from itertools import product as pairs

import torch
from torch import Tensor

from workloads.exact.quantise import EXACT14, EXACT21, Precision
from workloads.exact.tensors import Rounded

__all__ = [
    "Arithmetic",
    "arithmetic_for",
    "blocks",
    "computed_in",
    "is_forced",
    "left_to_right",
    "slice_product",
]


class Arithmetic(Enum):
    """What a contraction is computed in; the bits are the same."""

    FLOAT64 = "float64"
    INT8 = "int8"
    FLOAT32 = "float32"


_forced: ContextVar[Arithmetic | None] = ContextVar("arithmetic", default=None)
_measured: dict[tuple[str, str], Arithmetic] = {}

# Sums up to 2**this are exact.
_SUM_BITS = {Arithmetic.INT8: 30, Arithmetic.FLOAT32: 24}
# cuBLAS wants int8 matrices of at least 17 rows and of sizes that are multiples of 8.
_INT8_ROWS_MIN = 32
_INT8_MULTIPLE = 8
_TRIAL_ROWS = 512


@contextmanager
def computed_in(arithmetic: Arithmetic | str) -> Iterator[None]:
    """Compute contractions in this arithmetic inside the ``with``, whatever is fastest.

    Args:
        arithmetic: an `Arithmetic` or its name: "float64", "int8", "float32".
    """
    token = _forced.set(Arithmetic(arithmetic))
    try:
        yield
    finally:
        _forced.reset(token)


def is_forced() -> bool:
    """Whether `computed_in` is in force: then nothing else may compute a contraction."""
    return _forced.get() is not None


def arithmetic_for(device: torch.device, precision: Precision) -> Arithmetic:
    """The arithmetic in force: the forced one, float64 on a CPU, else the one measured to be fastest."""
    forced = _forced.get()
    if forced is not None:
        return forced
    if device.type != "cuda":
        return Arithmetic.FLOAT64
    key = (torch.cuda.get_device_name(device), precision.name)
    if key not in _measured:
        _measured[key] = min(Arithmetic, key=lambda each: _trial_s(device, precision, each))
    return _measured[key]


def slice_product(a: Rounded, b: Rounded, precision: Precision, arithmetic: Arithmetic) -> Tensor:
    """``a @ b`` out of digits, in blocks of ``precision.inner_max`` added left to right.

    Args:
        a: (..., rows, inner), rounded along -1 to ``precision.bits``.
        b: (..., inner, columns), rounded along -2.
        precision: which digits are needed.
        arithmetic: `Arithmetic.INT8` or `Arithmetic.FLOAT32`.
    """
    left, right = _widths(precision, arithmetic, a.values.device)
    # A division by a power of two is exact.
    a_digits = _digits(a.values / a.grain, *left)
    b_digits = _digits(b.values / b.grain, *right)
    # Digits reach 2**(bits - 1) in magnitude.
    digit_block = 1 << (_SUM_BITS[arithmetic] - (left[1] + right[1] - 2))

    def whole_block(start: int, stop: int) -> Tensor:
        shifted = (
            _multiply(high[..., start:stop], low[..., start:stop, :], arithmetic, digit_block)
            << left[1] * i + right[1] * j
            for (i, high), (j, low) in pairs(enumerate(a_digits), enumerate(b_digits))
        )
        return left_to_right(shifted).to(torch.float64)

    total = left_to_right(whole_block(*ends) for ends in blocks(a.values.shape[-1], precision.inner_max))
    total *= a.grain
    total *= b.grain
    return total


def blocks(size: int, block: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the blocks of at most ``block`` that make up ``size``; one of nothing if it is 0."""
    for start in range(0, max(size, 1), block):
        yield start, min(start + block, size)


def left_to_right(terms: Iterator[Tensor]) -> Tensor:
    """The sum of at least one tensor, in their order; overwrites the first."""
    total = next(terms)
    for term in terms:
        total += term
    return total


def _widths(
    precision: Precision, arithmetic: Arithmetic, device: torch.device
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(digits, bits of each) of the left-hand and the right-hand side."""
    if precision.bits <= EXACT14.bits:
        return (2, 7), (2, 7)
    if precision.bits > EXACT21.bits:
        raise ValueError(f"no digits for {precision.bits} magnitude bits, must be at most {EXACT21.bits}")
    narrow = arithmetic is Arithmetic.INT8 and device.type == "cpu"
    return (3, 8), ((4, 7) if narrow else (3, 8))


def _digits(whole: Tensor, count: int, bits: int) -> list[Tensor]:
    """Balanced digits of integers held in float64, least significant first, as int32."""
    rest = whole.to(torch.int32)
    half = 1 << (bits - 1)
    digits = []
    for _ in range(count - 1):
        digit = ((rest + half) & (2 * half - 1)) - half
        digits.append(digit)
        rest = (rest - digit) >> bits
    return [*digits, rest]


def _multiply(a: Tensor, b: Tensor, arithmetic: Arithmetic, block: int) -> Tensor:
    """Exact int64 product of two digit matrices, in blocks that can't overflow."""

    def part(start: int, stop: int) -> Tensor:
        left, right = a[..., start:stop], b[..., start:stop, :]
        if arithmetic is Arithmetic.FLOAT32:
            return (left.to(torch.float32) @ right.to(torch.float32)).to(torch.int64)
        return _multiply_int8(left, right)

    return left_to_right(part(*ends) for ends in blocks(a.shape[-1], block))


def _multiply_int8(a: Tensor, b: Tensor) -> Tensor:
    """int64 (..., rows, columns); torch's int8 product takes single matrices only."""
    batch = (a[..., :1, :0] @ b[..., :0, :1]).shape[:-2]
    rows, inner, columns = a.shape[-2], a.shape[-1], b.shape[-1]
    lefts = a.expand(*batch, rows, inner).reshape(-1, rows, inner)
    rights = b.expand(*batch, inner, columns).reshape(-1, inner, columns)
    result = torch.empty((len(lefts), rows, columns), dtype=torch.int64, device=a.device)
    for index, (left, right) in enumerate(zip(lefts, rights, strict=True)):
        padded = torch._int_mm(
            _padded(left, _INT8_ROWS_MIN, _INT8_MULTIPLE), _padded(right, _INT8_MULTIPLE, _INT8_MULTIPLE)
        )
        result[index] = padded[:rows, :columns]
    return result.view(*batch, rows, columns)


def _padded(digits: Tensor, rows_min: int, multiple: int) -> Tensor:
    """As int8, with zeros below and to the right."""
    rows, columns = digits.shape
    height = max(-(-rows // multiple) * multiple, rows_min)
    width = -(-columns // multiple) * multiple
    padded = torch.zeros((height, max(width, multiple)), dtype=torch.int8, device=digits.device)
    padded[:rows, :columns] = digits
    return padded


def _trial_s(device: torch.device, precision: Precision, arithmetic: Arithmetic) -> float:
    """Seconds of one product of a middling size, after one to warm up; infinite where it isn't supported."""
    size = _TRIAL_ROWS
    ones = torch.ones((size, 2 * size), dtype=torch.float64, device=device)
    rounded = Rounded(ones, ones[:, :1])
    elapsed = float("inf")
    try:
        for _ in range(2):
            torch.cuda.synchronize(device)
            started = time.perf_counter()
            if arithmetic is Arithmetic.FLOAT64:
                ones @ ones.t()
            else:
                slice_product(rounded, rounded.transpose(), precision, arithmetic)
            torch.cuda.synchronize(device)
            elapsed = time.perf_counter() - started
    except RuntimeError:
        return float("inf")
    return elapsed
