"""Pooling and interpolation: elementwise operations in a stated order, over whole tensors at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from workloads.exact.convolution import Pair, windows
from workloads.exact.reductions import divide
from workloads.exact.tensors import intake

__all__ = ["adaptive_avg_pool2d", "avg_pool2d", "interpolate_bilinear", "interpolate_nearest", "max_pool2d"]


def max_pool2d(x: Tensor, kernel: Pair, *, stride: Pair | None = None, padding: Pair = 0) -> Tensor:
    """Largest element of each window.

    Args:
        x: (batch, channels, height, width).
        kernel: (height, width) of a window, or one number for both, and so are the next two.
        stride: of the windows; None for ``kernel``.
        padding: on each side, at most half the kernel; what is padded never is the largest.

    Returns:
        (batch, channels, ...) float64.

    Raises:
        NumericsRefused: ``x`` holds NaN, Inf or a magnitude above 2**500. So do all functions here.
        ValueError: the shapes don't fit.
    """
    size, step, margin = _geometry(kernel, stride, padding)
    seen = windows(intake("x", x), size, stride=step, padding=margin, fill=-torch.inf)
    return seen.amax((-2, -1)).add_(0.0)


def avg_pool2d(x: Tensor, kernel: Pair, *, stride: Pair | None = None, padding: Pair = 0) -> Tensor:
    """Mean of each window, padded zeros counted, added row by row from the left. Arguments as there.

    Returns:
        (batch, channels, ...) float64.
    """
    size, step, margin = _geometry(kernel, stride, padding)
    seen = windows(intake("x", x), size, stride=step, padding=margin)
    return divide(_sum_windows(seen), size[0] * size[1])


def adaptive_avg_pool2d(x: Tensor, size: Pair) -> Tensor:
    """Means over a grid of windows that covers ``x``, torch's way.

    Args:
        x: (batch, channels, height, width).
        size: (height, width) of the result, or one number for both.

    Returns:
        (batch, channels, *size) float64.
    """
    checked = intake("x", x)
    height, width = (size, size) if isinstance(size, int) else size
    result = checked.new_empty((*x.shape[:2], height, width))
    for i, (top, bottom) in enumerate(_spans(x.shape[2], height)):
        for j, (left, right) in enumerate(_spans(x.shape[3], width)):
            window = checked[:, :, None, None, top:bottom, left:right]
            total = _sum_windows(window)[:, :, 0, 0]
            result[:, :, i, j] = divide(total, (bottom - top) * (right - left))
    return result


def interpolate_nearest(x: Tensor, size: Pair) -> Tensor:
    """Resize by copying: output i takes input ``i * input size // output size``.

    Args:
        x: (batch, channels, height, width).
        size: (height, width) of the result, or one number for both.

    Returns:
        (batch, channels, *size) float64.
    """
    height, width = (size, size) if isinstance(size, int) else size
    rows = torch.arange(height, device=x.device) * x.shape[2] // height
    columns = torch.arange(width, device=x.device) * x.shape[3] // width
    return intake("x", x)[:, :, rows[:, None], columns]


def interpolate_bilinear(x: Tensor, size: Pair, *, align_corners: bool = False) -> Tensor:
    """Resize by mixing two neighbours down, then two across.

    Args:
        x: (batch, channels, height, width).
        size: (height, width) of the result, or one number for both.
        align_corners: the corners' centres coincide, not their edges.

    Returns:
        (batch, channels, *size) float64.
    """
    height, width = (size, size) if isinstance(size, int) else size
    checked = intake("x", x)
    low, high, share = _neighbours(x.shape[2], height, align_corners, x.device)
    share = share[:, None]
    down = checked[:, :, low] * (1.0 - share) + checked[:, :, high] * share
    low, high, share = _neighbours(x.shape[3], width, align_corners, x.device)
    return down[..., low] * (1.0 - share) + down[..., high] * share


def _geometry(
    kernel: Pair, stride: Pair | None, padding: Pair
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    size = (kernel, kernel) if isinstance(kernel, int) else kernel
    step = size if stride is None else (stride, stride) if isinstance(stride, int) else stride
    margin = (padding, padding) if isinstance(padding, int) else padding
    if 2 * margin[0] > size[0] or 2 * margin[1] > size[1]:
        raise ValueError(f"padding {margin} must be at most half the kernel {size}")
    return size, step, margin


def _sum_windows(seen: Tensor) -> Tensor:
    """(..., kernel height, kernel width) summed row by row from the left."""
    total = torch.zeros_like(seen[..., 0, 0])
    for row in range(seen.shape[-2]):
        for column in range(seen.shape[-1]):
            total += seen[..., row, column]
    return total


def _spans(size: int, count: int) -> list[tuple[int, int]]:
    if count < 1 or size < 1:
        raise ValueError(f"can't pool {size} into {count}, both must be >= 1")
    return [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def _neighbours(
    size: int, count: int, align_corners: bool, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """For each output, the two inputs it lies between and the share of the second."""
    if count < 1 or size < 1:
        raise ValueError(f"can't resize {size} to {count}, both must be >= 1")
    # Positions as fractions: (2 i + 1) size / (2 count) - 1 / 2, or i (size - 1) / (count - 1).
    if align_corners:
        over = max(count - 1, 1)
        above = torch.arange(count, device=device) * (size - 1)
    else:
        over = 2 * count
        above = ((2 * torch.arange(count, device=device) + 1) * size - count).clamp_(min=0)
    low = above // over
    high = (low + 1).clamp_(max=size - 1)
    return low, high, divide((above - low * over).to(torch.float64), over)
