"""Running a program with its roundings exaggerated: how much of its result hangs on them.

Every result is changed by a relative part of up to 2**-18, some sixty float32 roundings; by a fixed rule, so
that all judges see the same. What such a run changes much is nothing that two machines can be compared by.
Source: Parker, "Monte Carlo arithmetic", 1997.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workloads.program.prepared import Prepared

__all__ = ["Shaken"]

_SHARE = 2.0**-18
_PRIME, _OTHER = 2_654_435_761, 2_246_822_519
_SPAN = 2**31


class Shaken(Prepared):
    """See the module; otherwise as `Prepared`."""

    def _made(self, index: int, output: Tensor) -> Tensor:
        if not output.is_floating_point():
            return output
        mixed = (torch.arange(output.numel()) + 1) * _PRIME + (index + 1) * _OTHER
        # The middle bits: the lowest ones of a product are regular.
        parts = (mixed >> 7) % _SPAN
        change = (parts.to(torch.float64) / (_SPAN // 2) - 1.0) * _SHARE
        return output * (1.0 + change.view(output.shape)).to(output.dtype)
