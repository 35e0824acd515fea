"""Prefill that goes on where the one before it stopped.

A long output is checked segment by segment, and each segment's check needs all tokens before it. Starting
from the first token every time would cost the square of the length. In an exact profile any split of a
sequence gives the same bits, so keys and values of tokens that both sequences begin with are used again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from workloads.lm.engine import Decoder, prefill

__all__ = ["ContinuedPrefill"]


class ContinuedPrefill:
    """Remembers one sequence, the last one.

    Args:
        decoder: of an exact profile; in any other the bits would depend on what was remembered.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._tokens: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._cache: Any = None
        self._capacity = 0

    def states(self, tokens: NDArray[np.int64], first: int, capacity: int) -> NDArray[np.float32]:
        """Final hidden states of one sequence from a position on.

        Args:
            tokens: (count,) ids, below the vocabulary size.
            first: position of the first state that is wanted, below ``count``.
            capacity: positions to make room for, so that a longer sequence can go on from this one.

        Returns:
            (count - first, hidden).
        """
        kept = min(self._shared(tokens), first)
        if self._cache is None or self._capacity < len(tokens):
            kept = 0
            self._capacity = max(capacity, len(tokens))
            self._cache = self._decoder.new_cache(1, self._capacity)
        # Nothing counts as remembered while it is being overwritten.
        self._tokens = tokens[:kept]
        self._cache.length = kept
        hidden = prefill(self._decoder, tokens[kept:], self._cache)
        self._tokens = tokens
        return hidden[first - kept :]

    def _shared(self, tokens: NDArray[np.int64]) -> int:
        """How many tokens both sequences begin with."""
        count = min(len(tokens), len(self._tokens))
        differing = np.flatnonzero(tokens[:count] != self._tokens[:count])
        return int(differing[0]) if len(differing) else count
