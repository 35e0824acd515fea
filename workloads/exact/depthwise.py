"""Convolution with a kernel for each channel: one tap at a time over whole images, no windows copied out.

A window is rounded as the row of a contraction that it is (`workloads.exact.contraction.round_rows`): to its
own largest element, so each tap rounds the image anew by the scales of the windows that it belongs to. All
sums are exact, so the order of the taps doesn't matter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workloads.exact.contraction import round_rows
from workloads.exact.quantise import EXPONENT_MAX, Precision
from workloads.exact.slices import blocks
from workloads.exact.tensors import BLOCK_ELEMENTS

__all__ = ["depthwise"]

_FLOOR = 2.0**-EXPONENT_MAX
_EXPONENT_BITS = 0x7FF0_0000_0000_0000


def depthwise(
    padded: Tensor,
    weight: Tensor,
    *,
    stride: tuple[int, int],
    dilation: tuple[int, int],
    precision: Precision,
) -> Tensor:
    """The same bits as a contraction of each channel's windows with its kernel.

    Args:
        padded: (batch, channels, height, width) float64, checked, at least one window large.
        weight: (channels, kernel height, kernel width) float64, checked; a kernel's elements number at most
            ``precision.inner_max``.
        stride: of the windows.
        dilation: distance of a kernel's elements.
        precision: `EXACT14` or `EXACT21`.

    Returns:
        (batch, channels, ...) float64, in the memory format of ``padded``.
    """
    channels, rows, columns = weight.shape
    kernels = round_rows(weight.reshape(channels, -1), -1, precision.bits).values.reshape(weight.shape)
    down = (padded.shape[2] - dilation[0] * (rows - 1) - 1) // stride[0] + 1
    across = (padded.shape[3] - dilation[1] * (columns - 1) - 1) // stride[1] + 1
    shape = (len(padded), channels, down, across)
    is_last = padded.is_contiguous(memory_format=torch.channels_last)
    result = padded.new_zeros(shape).contiguous(
        memory_format=torch.channels_last if is_last else torch.contiguous_format
    )
    # What a tap passes over stays in a core's cache: rows where channels lie together, else channels.
    size = max(1, BLOCK_ELEMENTS // max(1, channels * across if is_last else down * across))
    reach = dilation[0] * (rows - 1) + 1
    for image, total in zip(padded, result, strict=True):
        for first, last in blocks(down if is_last else channels, size):
            if is_last:
                top = first * stride[0]
                seen = image[:, top : top + (last - first - 1) * stride[0] + reach]
                _add_taps(total[:, first:last], seen, kernels, stride, dilation, precision.bits)
            else:
                part = slice(first, last)
                _add_taps(total[part], image[part], kernels[part], stride, dilation, precision.bits)
    return result


def _add_taps(  # noqa: PLR0917
    total: Tensor,
    image: Tensor,
    kernels: Tensor,
    stride: tuple[int, int],
    dilation: tuple[int, int],
    bits: int,
) -> None:
    """Add the windows of (channels, height, width) times the kernels to zeros."""
    down, across = total.shape[1:]
    _, rows, columns = kernels.shape

    def tap(x: Tensor, i: int, j: int) -> Tensor:
        top, left = i * dilation[0], j * dilation[1]
        return x[
            :,
            top : top + (down - 1) * stride[0] + 1 : stride[0],
            left : left + (across - 1) * stride[1] + 1 : stride[1],
        ]

    rounder = _largest(image.abs(), kernels.shape, total, stride, dilation)
    # As `round_rows`: 1.5 * 2**52 grains of each window's scale.
    rounder = (rounder.clamp_(min=_FLOOR).view(torch.int64) & _EXPONENT_BITS).view(torch.float64)
    rounder *= 1.5 * 2.0 ** (53 - bits)
    rounded = torch.empty_like(total)
    for i in range(rows):
        for j in range(columns):
            torch.add(tap(image, i, j), rounder, out=rounded)
            rounded -= rounder
            rounded *= kernels[:, i, j, None, None]
            total += rounded


def _largest(
    magnitudes: Tensor,
    kernel: torch.Size,
    total: Tensor,
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """The largest magnitude of each window: along columns, then along rows."""
    _, rows, columns = kernel
    down, across = total.shape[1:]
    ends = ((down - 1) * stride[0] + 1, (across - 1) * stride[1] + 1)
    along = magnitudes[:, :, : ends[1] : stride[1]].clone()
    for j in range(1, columns):
        left = j * dilation[1]
        torch.maximum(along, magnitudes[:, :, left : left + ends[1] : stride[1]], out=along)
    largest = along[:, : ends[0] : stride[0]].clone()
    for i in range(1, rows):
        top = i * dilation[0]
        torch.maximum(largest, along[:, top : top + ends[0] : stride[0]], out=largest)
    return largest
