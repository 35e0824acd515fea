"""Convolutions: windows are copied out into rows, and the rows contracted exactly with the kernels.

A window of one sample is a row of the contraction, in the order channel, height, width, so a sample's result
doesn't depend on the batch around it. A transposed convolution is the plain one over the input with zeros put
between its elements, by the mirrored kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from workloads.exact.contraction import contract
from workloads.exact.depthwise import depthwise
from workloads.exact.quantise import EXACT21, Precision
from workloads.exact.reductions import exact_sum
from workloads.exact.slices import blocks
from workloads.exact.tensors import intake, vector

__all__ = [
    "conv1d",
    "conv2d",
    "conv2d_backward",
    "conv_transpose1d",
    "conv_transpose2d",
    "windows",
]

Pair = int | tuple[int, int]
# Rows of windows are copied out and contracted this many elements at a time; any number gives the same bits.
_WINDOW_ELEMENTS = 1 << 21


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    precision: Precision = EXACT21,
) -> Tensor:
    """2-D convolution with torch's conventions.

    Args:
        x: (batch, channels, height, width).
        weight: (outputs, channels / groups, kernel height, kernel width).
        bias: (outputs,).
        stride: of the windows, (height, width) or one number for both, and so are the next two.
        padding: zeros around each side.
        dilation: distance of a kernel's elements.
        groups: divides channels and outputs.
        precision: `EXACT14` or `EXACT21`.

    Returns:
        (batch, outputs, ...) float64.

    Raises:
        NumericsRefused: an operand holds NaN, Inf or a magnitude above 2**500.
        ValueError: the shapes don't fit.
    """
    outputs = weight.shape[0]
    if x.dim() != 4 or weight.dim() != 4 or groups < 1 or outputs % groups:
        raise ValueError(f"conv2d can't apply {tuple(weight.shape)} in {groups} groups to {tuple(x.shape)}")
    if x.shape[1] != weight.shape[1] * groups:
        raise ValueError(f"weight {tuple(weight.shape)} in {groups} groups doesn't fit {x.shape[1]} channels")
    kernel = (weight.shape[2], weight.shape[3])
    checked = intake("x", x)
    seen = windows(checked, kernel, stride=_pair(stride), padding=_pair(padding), dilation=_pair(dilation))
    if groups == outputs > 1 and weight.shape[1] == 1 and weight[0].numel() <= precision.inner_max:
        result = depthwise(
            _padded(checked, _pair(padding)),
            intake("weight", weight)[:, 0],
            stride=_pair(stride),
            dilation=_pair(dilation),
            precision=precision,
        )
        return result if bias is None else result.add_(vector("bias", bias, outputs)[:, None, None])
    if kernel == (1, 1) and seen.shape[2:4] == x.shape[2:] and groups == 1 and not checked.is_contiguous():
        # Where channels lie together, places are rows already.
        rows_of_channels = checked.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        mixed = contract(("x", rows_of_channels), ("weight", weight[:, :, 0, 0].t()), precision)
        if bias is not None:
            mixed += vector("bias", bias, outputs)
        return mixed.view(len(x), *x.shape[2:], outputs).permute(0, 3, 1, 2)
    kernels = weight.reshape(groups, outputs // groups, -1).mT
    batch, _, height, width = seen.shape[:4]
    result = seen.new_empty((batch, outputs, height, width))
    row = max(1, seen[:1, :, :1].numel())
    # Whole samples if several fit, else some rows of one.
    samples = max(1, _WINDOW_ELEMENTS // (row * height))
    rows = max(1, min(height, _WINDOW_ELEMENTS // row))
    for first, last in blocks(batch, samples):
        for top, bottom in blocks(height, rows):
            part = _rows_of(seen[first:last, :, top:bottom], groups)
            mixed = _contract_groups(("x", part), ("weight", kernels), precision)
            result[first:last, :, top:bottom] = _images_of(mixed, last - first, bottom - top)
    if bias is not None:
        result += vector("bias", bias, outputs)[:, None, None]
    return result


def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    precision: Precision = EXACT21,
) -> Tensor:
    """1-D convolution: x (batch, channels, width), weight (outputs, channels / groups, kernel width).

    The other arguments, the result (batch, outputs, ...) and the errors are those of `conv2d`.
    """
    return conv2d(
        x.unsqueeze(-2),
        weight.unsqueeze(-2),
        bias,
        stride=(1, stride),
        padding=(0, padding),
        dilation=(1, dilation),
        groups=groups,
        precision=precision,
    ).squeeze(-2)


def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    precision: Precision = EXACT21,
) -> Tensor:
    """2-D transposed convolution with torch's conventions.

    Args:
        x: (batch, channels, height, width).
        weight: (channels, outputs / groups, kernel height, kernel width).
        bias: (outputs,).
        stride: distance of the input's elements in the output, (height, width) or one number for both.
        padding: taken off each side of the output.
        output_padding: added to the bottom and the right of the output, less than stride or dilation.
        dilation: distance of a kernel's elements.
        groups: divides channels and outputs.
        precision: `EXACT14` or `EXACT21`.

    Returns:
        (batch, outputs, ...) float64.

    Raises:
        NumericsRefused: an operand holds NaN, Inf or a magnitude above 2**500.
        ValueError: the shapes don't fit.
    """
    if x.dim() != 4 or weight.dim() != 4 or x.shape[1] != weight.shape[0] or x.shape[1] % groups:
        raise ValueError(f"can't apply {tuple(weight.shape)} in {groups} groups to {tuple(x.shape)}")
    stride, padding, extra, dilation = (_pair(each) for each in (stride, padding, output_padding, dilation))
    spread = _spread(x.detach().to(torch.float64), stride)
    margins = [dilation[axis] * (weight.shape[2 + axis] - 1) - padding[axis] for axis in (0, 1)]
    # Negative padding takes rows and columns off.
    padded = pad(spread, (margins[1], margins[1] + extra[1], margins[0], margins[0] + extra[0]))
    return conv2d(
        padded,
        _mirrored(weight, groups),
        bias,
        dilation=dilation,
        groups=groups,
        precision=precision,
    )


def conv_transpose1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    output_padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    precision: Precision = EXACT21,
) -> Tensor:
    """1-D transposed convolution: x (batch, channels, width), weight (channels, outputs / groups, width).

    The other arguments, the result (batch, outputs, ...) and the errors are those of `conv_transpose2d`.
    """
    return conv_transpose2d(
        x.unsqueeze(-2),
        weight.unsqueeze(-2),
        bias,
        stride=(1, stride),
        padding=(0, padding),
        output_padding=(0, output_padding),
        dilation=(1, dilation),
        groups=groups,
        precision=precision,
    ).squeeze(-2)


def conv2d_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    precision: Precision = EXACT21,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``conv2d`` in ``x``, ``weight`` and ``bias``; arguments as there.

    Args:
        grad: (batch, outputs, ...), of the result.
        x: see `conv2d`, and so for the others.
        weight: see there.
        stride: see there.
        padding: see there.
        dilation: see there.
        groups: see there.
        precision: see there.
    """
    stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
    upstream = intake("grad", grad)
    # What the windows left over at the bottom and the right has no gradient.
    extra = [
        x.shape[2 + axis]
        + 2 * padding[axis]
        - dilation[axis] * (weight.shape[2 + axis] - 1)
        - 1
        - stride[axis] * (grad.shape[2 + axis] - 1)
        for axis in (0, 1)
    ]
    by_x = conv_transpose2d(
        upstream,
        weight,
        stride=stride,
        padding=padding,
        output_padding=(extra[0], extra[1]),
        dilation=dilation,
        groups=groups,
        precision=precision,
    )
    kernel = (weight.shape[2], weight.shape[3])
    seen = windows(intake("x", x), kernel, stride=stride, padding=padding, dilation=dilation)
    slopes = upstream.transpose(0, 1).reshape(groups, weight.shape[0] // groups, -1)
    by_weight = _contract_groups(("grad", slopes), ("x", _rows_of(seen, groups)), precision)
    by_bias = exact_sum(upstream.transpose(0, 1).reshape(weight.shape[0], -1), 1)
    return by_x, by_weight.view(weight.shape), by_bias


def windows(
    x: Tensor,
    kernel: tuple[int, int],
    *,
    stride: tuple[int, int],
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    fill: float = 0.0,
) -> Tensor:
    """A view (batch, channels, places down, places across, kernel height, kernel width) of padded ``x``.

    Raises:
        ValueError: a number is out of range, or not one window fits.
    """
    if min(*kernel, *stride, *dilation) < 1 or min(padding) < 0:
        raise ValueError(f"kernel {kernel}, stride {stride} and dilation {dilation} must be >= 1")
    padded = _padded(x, padding, fill)
    extents = [dilation[axis] * (kernel[axis] - 1) + 1 for axis in (0, 1)]
    if padded.shape[2] < extents[0] or padded.shape[3] < extents[1]:
        raise ValueError(f"no window of {extents} fits into {tuple(padded.shape)}")
    seen = padded.unfold(2, extents[0], stride[0]).unfold(3, extents[1], stride[1])
    return seen[..., :: dilation[0], :: dilation[1]]


def _padded(x: Tensor, padding: tuple[int, int], fill: float = 0.0) -> Tensor:
    if padding == (0, 0):
        return x
    return pad(x, (padding[1], padding[1], padding[0], padding[0]), value=fill)


def _rows_of(seen: Tensor, groups: int) -> Tensor:
    """Windows (batch, channels, down, across, height, width) as (groups, places, elements)."""
    batch, channels, down, across, *kernel = seen.shape
    split = seen.reshape(batch, groups, channels // groups, down, across, *kernel)
    return split.permute(1, 0, 3, 4, 2, 5, 6).reshape(groups, batch * down * across, -1)


def _images_of(mixed: Tensor, batch: int, down: int) -> Tensor:
    """Results (groups, places, outputs / groups) as (batch, outputs, down, across)."""
    groups, places, outputs = mixed.shape
    split = mixed.reshape(groups, batch, down, places // (batch * down), outputs)
    return split.permute(1, 0, 4, 2, 3).reshape(batch, groups * outputs, down, -1)


def _contract_groups(left: tuple[str, Tensor], right: tuple[str, Tensor], precision: Precision) -> Tensor:
    """`contract` of (groups, ...); as plain matrices if there is one group, which is faster."""
    (left_name, a), (right_name, b) = left, right
    if len(a) > 1:
        return contract(left, right, precision)
    return contract((left_name, a[0]), (right_name, b[0]), precision)[None]


def _spread(x: Tensor, stride: tuple[int, int]) -> Tensor:
    """``x`` with ``stride - 1`` zeros between its elements."""
    if stride == (1, 1):
        return x
    height, width = ((x.shape[2 + axis] - 1) * stride[axis] + 1 for axis in (0, 1))
    spread = x.new_zeros((*x.shape[:2], height, width))
    spread[:, :, :: stride[0], :: stride[1]] = x
    return spread


def _mirrored(weight: Tensor, groups: int) -> Tensor:
    """(channels, outputs / groups, ...) as the plain convolution's (outputs, channels / groups, ...)."""
    channels, outputs, *kernel = weight.shape
    split = weight.reshape(groups, channels // groups, outputs, *kernel).transpose(1, 2)
    return split.reshape(groups * outputs, channels // groups, *kernel).flip(2, 3)


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value
