"""The digest of a chunk of ``lm.generate``: its units, and the hidden states its tokens were drawn from."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from protocols.digest import tagged
from protocols.limits import LM_CHUNK_UNITS

__all__ = ["chunk_digest"]


def chunk_digest(
    *, model: bytes, profile: str, chunk: int, units: Sequence[int], states: NDArray[np.float32]
) -> bytes:
    """32 bytes.

    Args:
        model: digest of the model.
        profile: of the numerics.
        chunk: its number.
        units: of the chunk.
        states: (rows, hidden), the final hidden state that each token was drawn from, and once more the last
            token's where `END_UNIT` follows.
    """
    header = struct.pack("<QQI", chunk, chunk * LM_CHUNK_UNITS, len(units))
    return tagged(
        "p2p-node/lm-chunk/1",
        model,
        profile.encode(),
        header,
        struct.pack(f"<{len(units)}I", *units),
        states.astype("<f4", copy=False).tobytes(),
    )
