"""Sums, means, maxima and what is made of them, independent of the order in which a machine adds.

Before it is summed, a row of n elements is rounded to multiples of one grain, coarse enough for every partial
sum of n of them to be exact: 53 - log2(n) bits of its largest magnitude (at most 51). Rows of more than 2**20
elements are summed in blocks of that many, whose sums are added left to right.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from workloads.errors import NumericsRefused
from workloads.exact.contraction import round_rows
from workloads.exact.elementary import raw_exp, raw_log
from workloads.exact.slices import blocks, left_to_right
from workloads.exact.tensors import elementwise, indices, intake

__all__ = [
    "argmax",
    "cross_entropy",
    "cross_entropy_backward",
    "exact_sum",
    "logsumexp",
    "max",
    "mean",
    "sum",
    "sum_bits",
    "var",
]

_BLOCK = 1 << 20
_BITS_MAX = 51
_MANTISSA_BITS = 53

Dimensions = int | tuple[int, ...] | None


def sum(x: Tensor, dim: Dimensions = None, *, keepdim: bool = False) -> Tensor:
    """Sum over some dimensions, the same bits in any order.

    Args:
        x: any shape.
        dim: a dimension, several, or None for all.
        keepdim: keep them with size 1.

    Raises:
        NumericsRefused: ``x`` holds NaN, Inf or a magnitude above 2**500. So do all functions here.
    """
    rows, shape = _rows(intake("x", x), dim, keepdim)
    return exact_sum(rows, -1).view(shape)


def mean(x: Tensor, dim: Dimensions = None, *, keepdim: bool = False) -> Tensor:
    """Arithmetic mean over some dimensions; arguments as of `sum`."""
    rows, shape = _rows(intake("x", x), dim, keepdim)
    return exact_mean(rows).view(shape)


def var(x: Tensor, dim: Dimensions = None, *, correction: int = 1, keepdim: bool = False) -> Tensor:
    """Mean squared distance from the mean, over n - ``correction``; other arguments as of `sum`."""
    rows, shape = _rows(intake("x", x), dim, keepdim)
    deviations = rows - exact_mean(rows).unsqueeze(-1)
    total = exact_sum(deviations * deviations, -1)
    return divide(total, rows.shape[-1] - correction).view(shape)


def max(x: Tensor, dim: Dimensions = None, *, keepdim: bool = False) -> Tensor:
    """Largest element over some dimensions, never -0.0; arguments as of `sum`."""
    rows, shape = _rows(intake("x", x), dim, keepdim)
    return rows.amax(-1).add_(0.0).view(shape)


def argmax(x: Tensor, dim: int = -1, *, keepdim: bool = False) -> Tensor:
    """The first index of the largest element along ``dim``, int64."""
    checked = intake("x", x)
    places = torch.arange(x.shape[dim], device=x.device)
    places = places.view([-1 if axis == dim % x.dim() else 1 for axis in range(x.dim())])
    largest = checked == checked.amax(dim, keepdim=True)
    return torch.where(largest, places, x.shape[dim]).amin(dim, keepdim=keepdim)


def logsumexp(x: Tensor, dim: int = -1, *, keepdim: bool = False) -> Tensor:
    """log(sum(exp(x))) along ``dim``."""
    checked = intake("x", x)
    result = log_of_sum(checked, dim)
    return result if keepdim else result.squeeze(dim)


def cross_entropy(logits: Tensor, targets: Tensor, *, ignore_index: int = -100) -> Tensor:
    """Mean of -log softmax(logits)[target] over rows.

    Args:
        logits: (rows, classes).
        targets: (rows,) integers in [0, classes), or ``ignore_index``.
        ignore_index: rows with this target don't count.

    Returns:
        A scalar.

    Raises:
        NumericsRefused: a target outside, or every row ignored.
    """
    checked, wanted, counted, count = _classified(logits, targets, ignore_index)
    losses = log_of_sum(checked, -1).squeeze(-1) - checked.gather(-1, wanted[:, None]).squeeze(-1)
    return divide(exact_sum(torch.where(counted, losses, 0.0), -1), count)


def cross_entropy_backward(
    grad: Tensor, logits: Tensor, targets: Tensor, *, ignore_index: int = -100
) -> Tensor:
    """Gradient of ``cross_entropy`` in its logits, for the gradient ``grad`` () of the loss."""
    checked, wanted, counted, count = _classified(logits, targets, ignore_index)
    powers = exponentials(checked, -1)
    slope = powers / exact_sum(powers, -1).unsqueeze(-1)
    hit = torch.arange(checked.shape[-1], device=checked.device) == wanted[:, None]
    slope -= hit.to(torch.float64)
    slope = divide(slope, count) * intake("grad", grad)
    return torch.where(counted[:, None], slope, 0.0)


def exact_sum(x: Tensor, dim: int) -> Tensor:
    """Sum of checked float64 along one dimension, which is dropped."""
    if x.shape[dim] == 1:
        return x.squeeze(dim) + 0.0

    def parts() -> Iterator[Tensor]:
        for start, stop in blocks(x.shape[dim], _BLOCK):
            rounded, _ = round_rows(x.narrow(dim, start, stop - start), dim, sum_bits(stop - start))
            yield rounded.sum(dim)

    return left_to_right(parts())


def sum_bits(count: int) -> int:
    """Magnitude bits to which ``count`` numbers, at least 2, are rounded so that all their sums are exact."""
    return min(_BITS_MAX, _MANTISSA_BITS - (count - 1).bit_length())


def exact_mean(x: Tensor) -> Tensor:
    """Mean of checked float64 along the last dimension, which is dropped."""
    return divide(exact_sum(x, -1), x.shape[-1])


def exponentials(x: Tensor, dim: int) -> Tensor:
    """exp(x - max) along ``dim`` of checked float64."""
    return elementwise(raw_exp, x - x.amax(dim, keepdim=True))


def log_of_sum(x: Tensor, dim: int) -> Tensor:
    """log(sum(exp(x))) along ``dim``, kept, of checked float64."""
    total = exact_sum(exponentials(x, dim), dim).unsqueeze(dim)
    return elementwise(raw_log, total) + x.amax(dim, keepdim=True)


def divide(x: Tensor, divisor: float) -> Tensor:
    """Correctly rounded division by one number, on any device."""
    return x / torch.tensor(divisor, dtype=torch.float64, device=x.device)


def _rows(x: Tensor, dim: Dimensions, keepdim: bool) -> tuple[Tensor, list[int]]:
    """``x`` with the reduced dimensions flattened into the last, and the shape of the result."""
    axes = range(x.dim()) if dim is None else (dim,) if isinstance(dim, int) else dim
    reduced = sorted({axis % x.dim() for axis in axes})
    kept = [axis for axis in range(x.dim()) if axis not in reduced]
    rows = x.permute(*kept, *reduced).reshape([*(x.shape[axis] for axis in kept), -1])
    if not rows.shape[-1]:
        raise ValueError(f"can't reduce the empty dimensions {reduced} of {tuple(x.shape)}")
    if keepdim:
        return rows, [1 if axis in reduced else x.shape[axis] for axis in range(x.dim())]
    return rows, [x.shape[axis] for axis in kept]


def _classified(logits: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """Checked logits, targets (0 where ignored), which rows count, and how many."""
    if logits.dim() != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(f"need logits (rows, classes) and targets (rows,), got {tuple(logits.shape)}")
    counted = targets != ignore_index
    count = int(counted.sum())
    if not count:
        raise NumericsRefused("targets are all ignored: there is no mean of no losses")
    wanted = indices("targets", torch.where(counted, targets, 0), logits.shape[1])
    return intake("logits", logits), wanted, counted, count
