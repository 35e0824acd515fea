"""An EfficientNet-lite classifier, for whichever operators it is given.

Tensors are (images, channels, height, width) with the channels of a place together in memory, so that a
convolution over single places is a product of plain matrices. Padding is TensorFlow's, in which the networks
were trained: the odd row and column at the bottom and the right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from workloads import exact
from workloads.vision.config import VisionConfig

__all__ = ["Classifier", "Exact", "Native", "Operators"]


class Operators(Protocol):
    """What a classifier is made of; everything in the operators' own dtype."""

    dtype: torch.dtype

    def conv2d(self, x: Tensor, weight: Tensor, bias: Tensor, *, stride: int, groups: int) -> Tensor:
        """Cross-correlation without padding."""

    def mean(self, x: Tensor) -> Tensor:
        """Of (images, channels, places): (images, channels)."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """x · weightᵀ + bias."""

    def softmax(self, x: Tensor) -> Tensor:
        """Over the last dimension."""


class Exact:
    """The operators of one exact precision."""

    dtype = torch.float64

    def __init__(self, precision: exact.Precision) -> None:
        self._precision = precision

    def conv2d(self, x: Tensor, weight: Tensor, bias: Tensor, *, stride: int, groups: int) -> Tensor:
        """See `Operators`."""
        return exact.conv2d(x, weight, bias, stride=stride, groups=groups, precision=self._precision)

    def mean(self, x: Tensor) -> Tensor:
        """See `Operators`."""
        return exact.mean(x, -1)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """See `Operators`."""
        return exact.linear(x, weight, bias, precision=self._precision)

    def softmax(self, x: Tensor) -> Tensor:
        """See `Operators`."""
        return exact.softmax(x)


class Native:
    """torch's own operators in float32: fast, and different from machine to machine."""

    dtype = torch.float32

    def conv2d(self, x: Tensor, weight: Tensor, bias: Tensor, *, stride: int, groups: int) -> Tensor:
        """See `Operators`."""
        return torch.nn.functional.conv2d(x, weight, bias, stride=stride, groups=groups)

    def mean(self, x: Tensor) -> Tensor:
        """See `Operators`."""
        return x.mean(-1)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """See `Operators`."""
        return torch.nn.functional.linear(x, weight, bias)

    def softmax(self, x: Tensor) -> Tensor:
        """See `Operators`."""
        return torch.softmax(x, -1)


class Classifier:
    """A classifier with its weights.

    Args:
        config: its shape.
        weights: as `workloads.vision.config.expected_shapes`, finite.
        operators: the arithmetic.
    """

    def __init__(self, config: VisionConfig, weights: Mapping[str, Tensor], operators: Operators) -> None:
        self.config = config
        self._operators = operators
        self._weights = {name: weight.to(operators.dtype) for name, weight in weights.items()}

    def logits(self, samples: Tensor) -> Tensor:
        """How strongly each class is seen in some images.

        Args:
            samples: (images, height, width, 3) uint8.

        Returns:
            (images, classes).

        Raises:
            NumericsRefused: the computation left the range of exact arithmetic.
        """
        scale = torch.tensor(float(self.config.sample_scale), dtype=self._operators.dtype)
        x = (samples.to(self._operators.dtype) - float(self.config.sample_mean)) / scale
        # Images come with their channels together, and stay so.
        x = _clipped(self._convolve("stem", x.permute(0, 3, 1, 2), stride=2))
        for number, block in enumerate(self.config.blocks):
            prefix, before = f"blocks.{number}.", x
            if block.expansion != 1:
                x = _clipped(self._convolve(f"{prefix}expand", x))
            x = _clipped(self._convolve(f"{prefix}depthwise", x, stride=block.stride, groups=x.shape[1]))
            x = self._convolve(f"{prefix}project", x)
            if block.stride == 1 and x.shape == before.shape:
                x = x + before
        x = _clipped(self._convolve("head", x))
        pooled = self._operators.mean(x.flatten(2))
        weight, bias = self._weights["classifier.weight"], self._weights["classifier.bias"]
        return self._operators.linear(pooled, weight, bias).to(self._operators.dtype)

    def chances(self, logits: Tensor) -> Tensor:
        """How likely each class is: (images, classes)."""
        return self._operators.softmax(logits)

    def _convolve(self, name: str, x: Tensor, *, stride: int = 1, groups: int = 1) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        (top, bottom), (left, right) = (
            _margins(x.shape[axis], weight.shape[axis], stride) for axis in (2, 3)
        )
        if top or bottom or left or right:
            x = pad(x, (left, right, top, bottom))
        return self._operators.conv2d(x, weight, bias, stride=stride, groups=groups)


def _margins(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding before and after, for an output of size / stride, rounded up."""
    both = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return both // 2, both - both // 2


def _clipped(x: Tensor) -> Tensor:
    """ReLU6; adding 0.0 takes the sign off zeros."""
    return x.clamp(0.0, 6.0).add_(0.0)
