"""Standard normal numbers that any peer has alone: by Box and Muller from a keyed function of a counter.

Source: Box and Muller, "A note on the generation of random normal deviates", 1958.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from workloads import exact
from workloads.philox import philox, uniforms

__all__ = ["normals"]


def normals(seed: int, count: int, stream: tuple[int, int]) -> Tensor:
    """Numbers 0 to ``count`` of a stream.

    Args:
        seed: the key, in [0, 2**64).
        count: a multiple of 4.
        stream: which of a seed's streams; two numbers below 2**32.

    Returns:
        (count,) float64.
    """
    counters = np.zeros((count // 4, 4), dtype=np.uint64)
    counters[:, 0] = np.arange(len(counters))
    counters[:, 1:3] = stream
    chances = torch.from_numpy(uniforms(philox(seed, counters)))
    radius = exact.sqrt(exact.log(chances[:, :2]) * -2.0)
    angle = chances[:, 2:] * (2.0 * math.pi)
    return torch.cat([radius * exact.cos(angle), radius * exact.sin(angle)], dim=1).reshape(-1)
