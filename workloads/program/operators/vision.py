"""Convolutions, pooling and resizing of images and signals, with torch's conventions."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor

from workloads import exact
from workloads.exact.quantise import Precision
from workloads.program.operators.registry import (
    check_floating,
    flag,
    integer,
    integers,
    operator,
    operator_of_several,
    precision,
    require,
)
from workloads.program.program import ValueSpec

__all__: list[str] = []

_SIDE_MAX = 2**16
_GROUPS = integer(1, _SIDE_MAX)
_STEPS = integers(1, _SIDE_MAX, 2)
_MARGINS = integers(0, _SIDE_MAX, 2)


_PADDED_ELEMENTS_MAX = 1 << 27
"""Of an input with its margins, a gibibyte: margins can make much out of little."""


def _check_padded(x: ValueSpec, sides: Sequence[int]) -> None:
    elements = x.shape[0] * x.shape[1] * prod(sides)
    require(
        elements <= _PADDED_ELEMENTS_MAX, f"{elements} elements with margins exceed {_PADDED_ELEMENTS_MAX}"
    )


def _check_geometry(rank: int, **sizes: tuple[int, ...]) -> None:
    for name, value in sizes.items():
        require(len(value) == rank, f"{name}={value} must have {rank} integers")


def _check_operands(x: ValueSpec, weight: ValueSpec, bias: ValueSpec | None, outputs: int) -> int:
    check_floating(x, weight, *([] if bias is None else [bias]))
    rank = len(x.shape) - 2
    require(rank in {1, 2}, f"x of shape {x.shape} must be (batch, channels, width) or (..., height, width)")
    require(
        len(weight.shape) == len(x.shape), f"weight of shape {weight.shape} must have {len(x.shape)} sizes"
    )
    require(x.elements > 0 and weight.elements > 0, "x and weight must not be empty")
    require(bias is None or bias.shape == (outputs,), f"bias must have shape ({outputs},)")
    return rank


def _conv_spec(
    x: ValueSpec,
    weight: ValueSpec,
    bias: ValueSpec | None = None,
    *,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    **_: Any,
) -> ValueSpec:
    outputs = weight.shape[0] if weight.shape else 0
    rank = _check_operands(x, weight, bias, outputs)
    _check_geometry(rank, stride=stride, padding=padding, dilation=dilation)
    require(
        x.shape[1] == groups * weight.shape[1] and outputs % groups == 0,
        f"groups={groups} don't fit {x.shape[1]} channels and weight {weight.shape}",
    )
    sides = []
    for size, kernel, step, margin, spread in zip(
        x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True
    ):
        side = (size + 2 * margin - spread * (kernel - 1) - 1) // step + 1
        require(side >= 1, f"kernel {weight.shape[2:]} doesn't fit into {x.shape[2:]}")
        sides.append(side)
    _check_padded(x, [size + 2 * margin for size, margin in zip(x.shape[2:], padding, strict=True)])
    return ValueSpec("float64", (x.shape[0], outputs, *sides))


def _conv_work(x: ValueSpec, weight: ValueSpec, *_: ValueSpec, output: ValueSpec, **__: Any) -> int:
    return x.elements + output.elements * (weight.elements // weight.shape[0])


@operator(
    "conv",
    (2, 3),
    _conv_spec,
    _conv_work,
    stride=_STEPS,
    padding=_MARGINS,
    dilation=_STEPS,
    groups=_GROUPS,
    precision=precision,
)
def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    precision: Precision,
) -> Tensor:
    """One- or two-dimensional, by the input's shape."""
    if x.dim() == 3:
        return exact.conv1d(
            x,
            weight,
            bias,
            stride=stride[0],
            padding=padding[0],
            dilation=dilation[0],
            groups=groups,
            precision=precision,
        )
    return exact.conv2d(
        x,
        weight,
        bias,
        stride=_pair(stride),
        padding=_pair(padding),
        dilation=_pair(dilation),
        groups=groups,
        precision=precision,
    )


_CONV_OPERANDS = ("x", "weight")


def _conv_backward_spec(
    gradient: ValueSpec, x: ValueSpec, weight: ValueSpec, *, wanted: str, **attributes: Any
) -> ValueSpec:
    result = _conv_spec(x, weight, **attributes)
    check_floating(gradient)
    require(len(x.shape) == 4, "x must be (batch, channels, height, width)")
    require(gradient.shape == result.shape, f"gradient of shape {gradient.shape} must have {result.shape}")
    return ValueSpec("float64", (x, weight)[_CONV_OPERANDS.index(wanted)].shape)


def _conv_backward_work(
    gradient: ValueSpec, x: ValueSpec, weight: ValueSpec, *, output: ValueSpec, **_: Any
) -> int:
    return 2 * _conv_work(x, weight, output=gradient) + output.elements


@operator_of_several(
    "conv_backward",
    3,
    _conv_backward_spec,
    _conv_backward_work,
    _CONV_OPERANDS,
    stride=_STEPS,
    padding=_MARGINS,
    dilation=_STEPS,
    groups=_GROUPS,
    precision=precision,
)
def _conv_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    *,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    precision: Precision,
) -> Sequence[Tensor]:
    return exact.conv2d_backward(
        gradient,
        x,
        weight,
        stride=_pair(stride),
        padding=_pair(padding),
        dilation=_pair(dilation),
        groups=groups,
        precision=precision,
    )


def _conv_transpose_spec(
    x: ValueSpec,
    weight: ValueSpec,
    bias: ValueSpec | None = None,
    *,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    output_padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    **_: Any,
) -> ValueSpec:
    outputs = weight.shape[1] * groups if len(weight.shape) > 1 else 0
    rank = _check_operands(x, weight, bias, outputs)
    _check_geometry(rank, stride=stride, padding=padding, dilation=dilation, output_padding=output_padding)
    require(
        x.shape[1] == weight.shape[0] and x.shape[1] % groups == 0,
        f"groups={groups} don't fit {x.shape[1]} channels and weight {weight.shape}",
    )
    sides: list[int] = []
    spread_out: list[int] = []
    for size, kernel, step, margin, spread, extra in zip(
        x.shape[2:], weight.shape[2:], stride, padding, dilation, output_padding, strict=True
    ):
        require(
            extra < max(step, spread), f"output_padding={output_padding} must be below stride or dilation"
        )
        side = (size - 1) * step - 2 * margin + spread * (kernel - 1) + extra + 1
        require(side >= 1, f"padding={padding} leaves nothing of {x.shape[2:]}")
        # The input, spread out and padded for a plain convolution, is a value too.
        spread_out.append(size * step + 2 * spread * kernel)
        sides.append(side)
    _check_padded(x, spread_out)
    return ValueSpec("float64", (x.shape[0], outputs, *sides))


def _conv_transpose_work(x: ValueSpec, weight: ValueSpec, *_: ValueSpec, output: ValueSpec, **__: Any) -> int:
    return x.elements + output.elements * (weight.elements // weight.shape[1])


@operator(
    "conv_transpose",
    (2, 3),
    _conv_transpose_spec,
    _conv_transpose_work,
    stride=_STEPS,
    padding=_MARGINS,
    output_padding=_MARGINS,
    dilation=_STEPS,
    groups=_GROUPS,
    precision=precision,
)
def _conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    output_padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    precision: Precision,
) -> Tensor:
    """One- or two-dimensional, by the input's shape."""
    if x.dim() == 3:
        return exact.conv_transpose1d(
            x,
            weight,
            bias,
            stride=stride[0],
            padding=padding[0],
            output_padding=output_padding[0],
            dilation=dilation[0],
            groups=groups,
            precision=precision,
        )
    return exact.conv_transpose2d(
        x,
        weight,
        bias,
        stride=_pair(stride),
        padding=_pair(padding),
        output_padding=_pair(output_padding),
        dilation=_pair(dilation),
        groups=groups,
        precision=precision,
    )


def _image(x: ValueSpec) -> None:
    check_floating(x)
    require(len(x.shape) == 4 and x.elements > 0, "x must be (batch, channels, height, width), not empty")


def _pool_spec(
    x: ValueSpec, *, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...]
) -> ValueSpec:
    _image(x)
    _check_geometry(2, kernel=kernel, stride=stride, padding=padding)
    sides = []
    for size, width, step, margin in zip(x.shape[2:], kernel, stride, padding, strict=True):
        require(2 * margin <= width, f"padding={padding} must be at most half of kernel={kernel}")
        side = (size + 2 * margin - width) // step + 1
        require(side >= 1, f"kernel={kernel} doesn't fit into {x.shape[2:]}")
        sides.append(side)
    _check_padded(x, [size + 2 * margin for size, margin in zip(x.shape[2:], padding, strict=True)])
    return ValueSpec("float64", (*x.shape[:2], *sides))


def _pool_work(x: ValueSpec, *, output: ValueSpec, kernel: tuple[int, ...], **_: Any) -> int:
    return x.elements + output.elements * kernel[0] * kernel[1]


@operator("max_pool2d", 1, _pool_spec, _pool_work, kernel=_STEPS, stride=_STEPS, padding=_MARGINS)
def _max_pool2d(
    x: Tensor, *, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...]
) -> Tensor:
    return exact.max_pool2d(x, _pair(kernel), stride=_pair(stride), padding=_pair(padding))


@operator("avg_pool2d", 1, _pool_spec, _pool_work, kernel=_STEPS, stride=_STEPS, padding=_MARGINS)
def _avg_pool2d(
    x: Tensor, *, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...]
) -> Tensor:
    return exact.avg_pool2d(x, _pair(kernel), stride=_pair(stride), padding=_pair(padding))


def _resize_spec(x: ValueSpec, *, size: tuple[int, ...], **_: Any) -> ValueSpec:
    _image(x)
    _check_geometry(2, size=size)
    return ValueSpec("float64", (*x.shape[:2], *size))


def _adaptive_work(x: ValueSpec, *, output: ValueSpec, **_: Any) -> int:
    # Windows overlap by at most one row and one column, and each is a few calls.
    return 4 * x.elements + 1024 * output.elements


@operator("adaptive_avg_pool2d", 1, _resize_spec, _adaptive_work, size=_STEPS)
def _adaptive_avg_pool2d(x: Tensor, *, size: tuple[int, ...]) -> Tensor:
    return exact.adaptive_avg_pool2d(x, _pair(size))


@operator("interpolate_nearest", 1, _resize_spec, size=_STEPS)
def _interpolate_nearest(x: Tensor, *, size: tuple[int, ...]) -> Tensor:
    return exact.interpolate_nearest(x, _pair(size))


@operator("interpolate_bilinear", 1, _resize_spec, size=_STEPS, align_corners=flag)
def _interpolate_bilinear(x: Tensor, *, size: tuple[int, ...], align_corners: bool) -> Tensor:
    return exact.interpolate_bilinear(x, _pair(size), align_corners=align_corners)


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    first, second = values
    return first, second
