"""Products of tensors whose rows are rounded to integers of their own scale first.

Each row along the contraction keeps ``precision.bits`` magnitude bits (`workloads.exact.quantise`). Sums of
products then are exact in float64 up to ``precision.inner_max`` terms, in any order, so neither the BLAS, its
threads, its vector width nor the batch around a row can change a bit of the result. Longer contractions are
done in blocks of ``inner_max`` terms whose exact sums are added left to right.

The rounding is the only error: relative to ``sum |a| |b|`` it is about 2**-bits for each operand.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workloads.exact.kernels import kernels, products
from workloads.exact.quantise import EXACT14, EXACT21, EXPONENT_MAX, Precision
from workloads.exact.slices import (
    Arithmetic,
    arithmetic_for,
    blocks,
    is_forced,
    left_to_right,
    slice_product,
)
from workloads.exact.tensors import Rounded, check_magnitudes, check_type, convert, intake, vector

__all__ = [
    "contract",
    "linear",
    "linear_backward",
    "matmul",
    "matmul_backward",
    "product",
    "quantise_along",
    "round_along",
    "round_rows",
]

_FLOOR = 2.0**-EXPONENT_MAX
_EXPONENT_BITS = 0x7FF0_0000_0000_0000
# Below this, bringing the right-hand side into the kernels' order costs more than they save.
_COMPILED_ROWS_MIN = 16


def matmul(a: Tensor, b: Tensor, *, precision: Precision = EXACT21) -> Tensor:
    """``a @ b``, the same bits everywhere.

    Args:
        a: (..., rows, inner).
        b: (..., inner, columns); leading dimensions broadcast against those of ``a``.
        precision: `EXACT14` or `EXACT21`.

    Returns:
        (..., rows, columns) float64.

    Raises:
        NumericsRefused: an operand holds NaN, Inf or a magnitude above 2**500.
        ValueError: the shapes don't fit.
    """
    return contract(("a", a), ("b", b), precision)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, precision: Precision = EXACT21
) -> Tensor:
    """``x @ weight.T + bias``, the same bits everywhere and for every batch around a row.

    Args:
        x: (..., inputs).
        weight: (outputs, inputs).
        bias: (outputs,); added in float64.
        precision: `EXACT14` or `EXACT21`.

    Returns:
        (..., outputs) float64.

    Raises:
        NumericsRefused: an operand holds NaN, Inf or a magnitude above 2**500.
        ValueError: the shapes don't fit.
    """
    if weight.dim() != 2 or x.shape[-1:] != weight.shape[1:]:
        raise ValueError(f"linear can't contract x {tuple(x.shape)} with weight {tuple(weight.shape)}")
    result = contract(("x", x.reshape(-1, x.shape[-1])), ("weight", weight.t()), precision)
    if bias is not None:
        result += vector("bias", bias, weight.shape[0])
    return result.view(*x.shape[:-1], weight.shape[0])


def matmul_backward(
    grad: Tensor, a: Tensor, b: Tensor, *, precision: Precision = EXACT21
) -> tuple[Tensor, Tensor]:
    """Gradients of ``matmul(a, b)``, for operands that don't broadcast.

    Args:
        grad: (..., rows, columns), of the result.
        a: (..., rows, inner).
        b: (..., inner, columns), with the same leading dimensions.
        precision: `EXACT14` or `EXACT21`.

    Returns:
        The gradients of ``a`` and ``b``, in their shapes.
    """
    if a.shape[:-2] != b.shape[:-2]:
        raise ValueError(f"matmul_backward needs equal batches, got {tuple(a.shape)} and {tuple(b.shape)}")
    return (
        contract(("grad", grad), ("b", b.transpose(-1, -2)), precision),
        contract(("a", a.transpose(-1, -2)), ("grad", grad), precision),
    )


def linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, *, precision: Precision = EXACT21
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``linear(x, weight, bias)``.

    Args:
        grad: (..., outputs), of the result.
        x: (..., inputs).
        weight: (outputs, inputs).
        precision: `EXACT14` or `EXACT21`.

    Returns:
        The gradients of ``x``, ``weight`` and ``bias`` (outputs,), in their shapes.
    """
    from workloads.exact.reductions import exact_sum

    rows = grad.reshape(-1, grad.shape[-1])
    inputs = x.reshape(-1, x.shape[-1])
    return (
        contract(("grad", rows), ("weight", weight), precision).view(x.shape),
        contract(("grad", rows.t()), ("x", inputs), precision),
        exact_sum(intake("grad", rows), 0),
    )


def quantise_along(x: Tensor, dim: int = -1, *, precision: Precision = EXACT21) -> Tensor:
    """``x`` rounded along ``dim`` as an operand of a contraction is.

    Returns:
        Float64, in the shape of ``x``.
    """
    return round_along("x", x, dim, precision.bits).values


def contract(left: tuple[str, Tensor], right: tuple[str, Tensor], precision: Precision) -> Tensor:
    """`matmul` of two named tensors."""
    (left_name, a), (right_name, b) = left, right
    if a.dim() < 2 or b.dim() < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"can't contract {left_name} {tuple(a.shape)} with {right_name} {tuple(b.shape)} as matrices"
        )
    check_type(left_name, a)
    check_type(right_name, b)
    compiled = _compiled_product((left_name, right_name), a.detach(), b.detach(), precision)
    if compiled is not None:
        return compiled
    a, b = convert(left_name, a), convert(right_name, b)
    bits = precision.bits
    return product(round_rows(a, -1, bits, left_name), round_rows(b, -2, bits, right_name), precision)


def _compiled_product(names: tuple[str, str], a: Tensor, b: Tensor, precision: Precision) -> Tensor | None:
    """`contract` by the compiled kernels; None where there are none, they aren't faster, or they refuse."""
    if b.dim() != 2 or b.device.type != "cpu" or is_forced() or not a.numel() or not b.numel():
        return None
    rows = a.reshape(-1, a.shape[-1])
    if len(rows) < _COMPILED_ROWS_MIN:
        return None
    if precision is EXACT21:
        in_float64 = products()
        if in_float64 is None:
            return None
        result = in_float64.contract((names[0], rows), (names[1], b), precision)
        return result.view(*a.shape[:-1], b.shape[1])
    if precision is not EXACT14 or (loaded := kernels()) is None:
        return None
    panels = loaded.pack(b.to(torch.float64).t().numpy(), precision.bits)
    found = None if panels is None else loaded.multiply(rows.to(torch.float64).numpy(), panels)
    return None if found is None else torch.from_numpy(found).view(*a.shape[:-1], b.shape[1])


def round_along(name: str, x: Tensor, dim: int, bits: int) -> Rounded:
    """`round_rows` of a caller's tensor of any floating type.

    Raises:
        NumericsRefused: ``x`` holds NaN, Inf or a magnitude above 2**500; the message calls it ``name``.
    """
    return round_rows(convert(name, x), dim, bits, name)


def round_rows(x: Tensor, dim: int, bits: int, name: str | None = None) -> Rounded:
    """Round each row along ``dim`` to ``bits`` magnitude bits of its largest element.

    Args:
        x: float64.
        dim: the contraction.
        bits: magnitude bits, at most 51.
        name: check the magnitudes, and call the tensor this; None if they are known to be right.
    """
    if x.numel() == 0:
        return Rounded(x, x.new_ones([1 if i == dim % x.dim() else n for i, n in enumerate(x.shape)]))
    largest = torch.maximum(x.amax(dim, keepdim=True), -x.amin(dim, keepdim=True))
    if name is not None:
        check_magnitudes(name, largest)
    largest.clamp_(min=_FLOOR)
    power = (largest.view(torch.int64) & _EXPONENT_BITS).view(torch.float64)
    # Adding and subtracting 1.5 * 2**52 grains rounds to whole grains, half to even.
    rounder = power * (1.5 * 2.0 ** (53 - bits))
    rounded = x + rounder
    rounded -= rounder
    return Rounded(rounded, power * 2.0 ** (1 - bits))


def product(left: Rounded, right: Rounded, precision: Precision) -> Tensor:
    """Contract (..., rows, inner), rounded along -1, with (..., inner, columns), rounded along -2."""
    a, b = left.values, right.values
    arithmetic = arithmetic_for(a.device, precision)
    if arithmetic is not Arithmetic.FLOAT64 and a.numel() and b.numel():
        return slice_product(left, right, precision, arithmetic)
    ends = blocks(a.shape[-1], precision.inner_max)
    total = left_to_right(a[..., start:stop] @ b[..., start:stop, :] for start, stop in ends)
    # A sum of zeros of either sign depends on where the BLAS starts it.
    total += 0.0
    return total
