"""Pieces of several sequences in one pass of a decoder: what batches of any shape are made of.

In an exact profile no bit depends on what else is in a pass. So sequences may join and leave at any step,
some with a whole prompt and others with one token, and no position is computed only to fill a batch up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Lengths", "Span"]


class Span(NamedTuple):
    """Tokens that follow what a cache holds of one sequence.

    Args:
        sequence: its place in the cache.
        tokens: (count,) ids below the vocabulary size, at least one.
    """

    sequence: int
    tokens: NDArray[np.int64]


class Lengths:
    """How many positions a cache holds of each of its sequences.

    Args:
        batch: sequences.
        capacity: positions that each has room for.
    """

    def __init__(self, batch: int, capacity: int) -> None:
        self.batch = batch
        self.capacity = capacity
        self.lengths = [0] * batch

    @property
    def length(self) -> int:
        """Of the longest sequence; setting it sets all of them, and what lies beyond is forgotten."""
        return max(self.lengths)

    @length.setter
    def length(self, value: int) -> None:
        self.lengths = [value] * self.batch

    def check(self, spans: Sequence[Span]) -> None:
        """That there is room for spans.

        Raises:
            ValueError: a sequence doesn't exist, comes twice, or exceeds the capacity.
        """
        seen = set()
        for sequence, tokens in spans:
            if not 0 <= sequence < self.batch or sequence in seen:
                raise ValueError(f"sequence {sequence} must be one of {self.batch}, once, in a pass")
            seen.add(sequence)
            taken = self.lengths[sequence]
            if not len(tokens) or taken + len(tokens) > self.capacity:
                raise ValueError(
                    f"cache of {self.capacity} positions, {taken} of them taken, can't take {len(tokens)} "
                    f"positions"
                )

    def extend(self, spans: Sequence[Span]) -> None:
        """Count the spans' positions as held."""
        for sequence, tokens in spans:
            self.lengths[sequence] += len(tokens)
