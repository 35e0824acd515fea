"""Output units: the integers a workload produces and is paid for, e.g. token ids."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from protocols.digest import tagged

__all__ = ["FALSE_UNITS", "chunk_count", "input_digest", "units_digest"]


FALSE_UNITS = bytes(32)
"""What a recomputation returns for a chunk whose claimed units aren't the ones it derives.

No opening may state it, so a false unit always differs from what the executor committed to, even a
last unit that nothing after it depends on.
"""


def units_digest(units: Sequence[int]) -> bytes:
    """Digest of output units in order, each as 4 bytes, little-endian."""
    return tagged("p2p-node/units/1", struct.pack(f"<{len(units)}I", *units))


def input_digest(data: bytes) -> bytes:
    """Digest by which an offer names its input."""
    return tagged("p2p-node/input/1", data)


def chunk_count(units: int, chunk_units: int) -> int:
    """Chunks that ``units`` output units make; the last may be short."""
    return -(-units // chunk_units)
