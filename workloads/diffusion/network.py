"""The velocity network: a small U-Net over the pictures of a class, for whichever operators it is given.

Training runs it in native arithmetic, a job in exact arithmetic; so that both run the same network, it is
written once, over `Operators`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from workloads.diffusion.input import CLASSES

__all__ = ["FREQUENCIES", "NO_CLASS", "Operators", "shapes", "velocity"]

NO_CLASS = CLASSES
"""The label of a picture of no class in particular, for guidance."""
CHANNELS = 32
EMBEDDING = 64
GROUPS = 8
FREQUENCIES = 8
"""The time enters as sine and cosine at so many octaves."""
_EPSILON = 1e-5


class Operators(Protocol):
    """What the network is made of. Tensors are (batch, channels, height, width) or (batch, features)."""

    def conv2d(self, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        """Cross-correlation, stride 1."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """x · weightᵀ + bias."""

    def group_norm(self, x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        """Normalise each group of channels of each picture."""

    def silu(self, x: Tensor) -> Tensor:
        """x · sigmoid(x)."""


_BLOCKS = {"down": (CHANNELS, CHANNELS), "middle": (CHANNELS, 2 * CHANNELS), "up": (3 * CHANNELS, CHANNELS)}
"""Channels that go into and come out of each block."""


def shapes() -> dict[str, tuple[int, ...]]:
    """The shape of every weight, by name."""
    table: dict[str, tuple[int, ...]] = {
        "label.weight": (NO_CLASS + 1, EMBEDDING),
        "time.weight": (EMBEDDING, 2 * FREQUENCIES),
        "time.bias": (EMBEDDING,),
        "embedding.weight": (EMBEDDING, EMBEDDING),
        "embedding.bias": (EMBEDDING,),
        "input.weight": (CHANNELS, 1, 3, 3),
        "input.bias": (CHANNELS,),
        "output.norm.weight": (CHANNELS,),
        "output.norm.bias": (CHANNELS,),
        "output.weight": (1, CHANNELS, 3, 3),
        "output.bias": (1,),
    }
    for name, (inward, outward) in _BLOCKS.items():
        table |= {
            f"{name}.norm1.weight": (inward,),
            f"{name}.norm1.bias": (inward,),
            f"{name}.conv1.weight": (outward, inward, 3, 3),
            f"{name}.conv1.bias": (outward,),
            f"{name}.condition.weight": (2 * outward, EMBEDDING),
            f"{name}.condition.bias": (2 * outward,),
            f"{name}.norm2.weight": (outward,),
            f"{name}.norm2.bias": (outward,),
            f"{name}.conv2.weight": (outward, outward, 3, 3),
            f"{name}.conv2.bias": (outward,),
        }
        if inward != outward:
            table[f"{name}.skip.weight"] = (outward, inward, 1, 1)
    return table


def velocity(
    ops: Operators, weights: Mapping[str, Tensor], latents: Tensor, waves: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Where each latent is heading: from noise (time 0) to a picture of its class (time 1).

    Args:
        ops: the arithmetic.
        weights: as `shapes`.
        latents: (batch, 1, height, width), sides even.
        waves: (batch, 2 x `FREQUENCIES`), the time's sines, then its cosines.
        labels: (batch,) int64, in [0, `NO_CLASS`].

    Returns:
        of the latents' shape, the difference from noise to picture; and the last hidden state.
    """
    timed = ops.silu(ops.linear(waves, weights["time.weight"], weights["time.bias"]))
    mixed = ops.linear(timed, weights["embedding.weight"], weights["embedding.bias"])
    condition = ops.silu(mixed + weights["label.weight"][labels])

    def block(name: str, x: Tensor) -> Tensor:
        h = ops.silu(_norm(ops, weights, f"{name}.norm1", x))
        h = ops.conv2d(h, weights[f"{name}.conv1.weight"], weights[f"{name}.conv1.bias"], 1)
        both = ops.linear(condition, weights[f"{name}.condition.weight"], weights[f"{name}.condition.bias"])
        scale, shift = both[:, :, None, None].chunk(2, dim=1)
        # Two roundings, so no fused operator: a product, then a sum.
        h = _norm(ops, weights, f"{name}.norm2", h) * (scale + 1)
        h = ops.silu(h + shift)
        h = ops.conv2d(h, weights[f"{name}.conv2.weight"], weights[f"{name}.conv2.bias"], 1)
        skip = weights.get(f"{name}.skip.weight")
        return h + (x if skip is None else ops.conv2d(x, skip, None, 0))

    fine = block("down", ops.conv2d(latents, weights["input.weight"], weights["input.bias"], 1))
    coarse = block("middle", _halved(fine))
    h = block("up", torch.cat([_doubled(coarse), fine], dim=1))
    h = ops.silu(_norm(ops, weights, "output.norm", h))
    return ops.conv2d(h, weights["output.weight"], weights["output.bias"], 1), h


def _norm(ops: Operators, weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return ops.group_norm(x, GROUPS, weights[f"{name}.weight"], weights[f"{name}.bias"], _EPSILON)


def _halved(x: Tensor) -> Tensor:
    """Means of squares of four pixels, summed in an order of ours."""
    top = x[:, :, 0::2, 0::2] + x[:, :, 0::2, 1::2]
    bottom = x[:, :, 1::2, 0::2] + x[:, :, 1::2, 1::2]
    return (top + bottom) * 0.25


def _doubled(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
