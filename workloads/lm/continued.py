"""Prefill of several sequences at once, the first of which may go on where the call before it stopped.

A long output is checked segment by segment, and each segment's check needs all tokens before it. Starting
from the first token every time would cost the square of the length. In an exact profile any split of a
sequence gives the same bits, so keys and values of tokens that both sequences begin with are used again; and
so does any batch, so short sequences share a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from workloads.llama.spans import Span
from workloads.lm.engine import Decoder

__all__ = ["ContinuedPrefill", "Wanted", "sequences_at_once"]

PASS_TOKENS = 256
"""Positions of one pass: bounds its memory, and fills the kernels' blocks."""
_SEQUENCES_MAX = 16
_CACHE_BYTES_MAX = 256 << 20
# The widest cache: float64 keys and values of the path without kernels.
_ELEMENT_BYTES = 16


class Wanted(NamedTuple):
    """States that a caller asks for.

    Args:
        tokens: (count,) ids of one sequence, below the vocabulary size.
        first: position of the first state that is wanted, below ``count``.
    """

    tokens: NDArray[np.int64]
    first: int


def sequences_at_once(decoder: Decoder, capacity: int) -> int:
    """How many sequences of so many positions a cache should hold at most."""
    config = decoder.config
    position = config.num_hidden_layers * config.key_value_size * _ELEMENT_BYTES
    return max(1, min(_SEQUENCES_MAX, _CACHE_BYTES_MAX // (position * max(1, capacity))))


class ContinuedPrefill:
    """Remembers one sequence, the last one.

    Args:
        decoder: of an exact profile; in any other the bits would depend on what was remembered.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._tokens: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._place = 0
        self._cache: Any = None
        self._batch = 0
        self._capacity = 0

    def states(self, wanted: Sequence[Wanted], capacity: int) -> list[NDArray[np.float32]]:
        """Final hidden states of sequences, each from a position on.

        Args:
            wanted: the sequences; the first may continue the last of the call before.
            capacity: positions to make room for, so that a longer sequence can go on from the last one.

        Returns:
            (count - first, hidden) for each.
        """
        capacity = max(capacity, *(len(tokens) for tokens, _ in wanted))
        batch = min(len(wanted), sequences_at_once(self._decoder, capacity))
        if self._capacity < capacity or self._batch < batch:
            self._tokens, self._place = self._tokens[:0], 0
            self._batch, self._capacity = batch, capacity
            self._cache = self._decoder.new_cache(batch, capacity)
        found = []
        for start in range(0, len(wanted), self._batch):
            found += self._group(wanted[start : start + self._batch])
        return found

    def _group(self, group: Sequence[Wanted]) -> list[NDArray[np.float32]]:
        """As `states`, for no more sequences than the cache has places."""
        places = [(self._place + index) % self._batch for index in range(len(group))]
        done = [min(self._shared(group[0].tokens), group[0].first)] + [0] * (len(group) - 1)
        # Nothing counts as remembered while it is being overwritten.
        self._tokens = self._tokens[: done[0]] if len(group) == 1 else self._tokens[:0]
        for place, length in zip(places, done, strict=True):
            self._cache.lengths[place] = length
        width = self._decoder.config.hidden_size
        found = [[np.empty((0, width), dtype=np.float32)] for _ in group]
        while pieces := _next_pieces(group, done):
            spans = [
                Span(places[index], group[index].tokens[done[index] : done[index] + count])
                for index, count in pieces
            ]
            hidden, row = self._decoder.extend(spans, self._cache), 0
            for index, count in pieces:
                unwanted = min(count, max(0, group[index].first - done[index]))
                found[index].append(hidden[row + unwanted : row + count])
                done[index] += count
                row += count
        self._tokens, self._place = group[-1].tokens, places[-1]
        return [np.concatenate(states) for states in found]

    def _shared(self, tokens: NDArray[np.int64]) -> int:
        """How many tokens both sequences begin with."""
        count = min(len(tokens), len(self._tokens))
        differing = np.flatnonzero(tokens[:count] != self._tokens[:count])
        return int(differing[0]) if len(differing) else count


def _next_pieces(group: Sequence[Wanted], done: Sequence[int]) -> list[tuple[int, int]]:
    """Sequences of the next pass and how many tokens of each: the first unfinished ones, up to a pass."""
    pieces, room = [], PASS_TOKENS
    for index, (wanted, position) in enumerate(zip(group, done, strict=True)):
        count = min(room, len(wanted.tokens) - position)
        if count:
            pieces.append((index, count))
            room -= count
    return pieces
