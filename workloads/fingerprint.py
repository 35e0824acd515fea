"""What the native profile states of a chunk: projections of inner values, close on all honest machines.

A projection adds up a whole row of values with signs, so that no part of it can be left out, and takes four
integers in place of the row. What it differs by is about the root of the mean square difference of the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray
from torch import Tensor

from protocols.digest import tagged

__all__ = [
    "PPB",
    "PROJECTIONS",
    "fingerprint",
    "float_miss_ppb",
    "projection_signs",
    "steps_apart",
    "unit_row",
]

PROJECTIONS = 4
PPB = 1_000_000_000
_STEP = 2.0**-20
_INT32_MAX = 2**31 - 1
_TINY = 1e-30


@lru_cache(maxsize=4)
def projection_signs(model: bytes, width: int) -> NDArray[np.float64]:
    """Signs (PROJECTIONS, width), +1 or -1, the same for everybody who runs the model."""
    rows = []
    for index in range(PROJECTIONS):
        seed = tagged("p2p-node/fingerprint/1", model, index.to_bytes(8, "little"))
        stream = np.frombuffer(blake3(seed).digest(length=-(-width // 8)), dtype=np.uint8)
        bits = np.unpackbits(stream, count=width, bitorder="little")
        rows.append(bits.astype(np.float64) * 2 - 1)
    return np.stack(rows)


def fingerprint(states: NDArray[np.float32] | NDArray[np.float64], signs: NDArray[np.float64]) -> bytes:
    """Four 32-bit integers for each row.

    Args:
        states: (rows, width).
        signs: of `projection_signs`.
    """
    scale = 1 / (_STEP * np.sqrt(states.shape[-1]))
    steps = np.rint(states.astype(np.float64) @ signs.T * scale)
    values: NDArray[np.int32] = np.clip(steps, -_INT32_MAX, _INT32_MAX).astype("<i4")
    return values.tobytes()


def unit_row(x: Tensor) -> Tensor:
    """A tensor as one row whose root mean square is 1, so that fingerprints say relative differences."""
    row = x.double().flatten()
    return row / max(float(row.square().mean().sqrt()), _TINY)


def steps_apart(one: bytes, other: bytes) -> int:
    """The largest mean difference of two chunks' fingerprints, row by row."""
    apart = np.frombuffer(one, dtype="<i4").astype(np.int64) - np.frombuffer(other, dtype="<i4")
    return int(np.abs(apart).reshape(-1, PROJECTIONS).sum(axis=1).max()) // PROJECTIONS


def float_miss_ppb(claimed: Sequence[int] | NDArray[np.float32], truth: NDArray[np.float32]) -> int:
    """How far claimed values lie from others, in parts per billion of the others' root mean square.

    Args:
        claimed: as many, or 32-bit words that hold them.
        truth: of any shape, finite.
    """
    if not isinstance(claimed, np.ndarray):
        claimed = np.array(claimed, dtype="<u4").view("<f4")
    if claimed.size != truth.size or not np.isfinite(claimed).all():
        return PPB
    given, wanted = claimed.astype(np.float64).reshape(-1), truth.astype(np.float64).reshape(-1)
    size = max(float(np.sqrt(np.mean(wanted * wanted))), _TINY)
    return min(PPB, int(np.ceil(PPB * float(np.abs(given - wanted).max(initial=0.0)) / size)))
