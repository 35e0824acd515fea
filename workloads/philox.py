"""Random numbers without a generator: a keyed function of a counter, so that any of them can be had alone.

Philox-4x32-10 in integer arithmetic. The same key and counter give the same words on every machine, in any
order and any batch; nobody needs the numbers before to derive one. Source: Salmon, Moraes, Dror and Shaw,
"Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["philox", "uniforms"]

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_MASK = np.uint64(0xFFFFFFFF)
_WORD = np.uint64(32)
_ROUNDS = 10


def philox(seed: int, counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Four words for each counter.

    Args:
        seed: the key, in [0, 2**64).
        counters: (count, 4), each below 2**32.

    Returns:
        (count, 4), uniform below 2**32.
    """
    a, b, c, d = (counters[:, column] for column in range(4))
    keys = seed & 0xFFFFFFFF, seed >> 32
    for round_ in range(_ROUNDS):
        key0, key1 = (
            np.uint64((key + round_ * step) & 0xFFFFFFFF) for key, step in zip(keys, _WEYL, strict=True)
        )
        # Products of two 32-bit words: they fit in 64 bits.
        left, right = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (right >> _WORD) ^ b ^ key0, right & _MASK, (left >> _WORD) ^ d ^ key1, left & _MASK
    return np.stack((a, b, c, d), axis=1)


def uniforms(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Words as the middles of 2**32 equal parts of (0, 1): never 0, so that a logarithm can be taken."""
    middles: NDArray[np.float64] = (words.astype(np.float64) + 0.5) * 2.0**-32
    return middles
