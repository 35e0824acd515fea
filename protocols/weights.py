"""How much an elector counts: one, and more with work of its own that we verified and that has matured.

Only our own verdicts count: what strangers say of each other costs them nothing to say. Work counts
once it is old, so that whoever wants influence must have served us well some time before, and loses
it all by one failure. It counts in proportion and up to a cap: splitting it over keys gains nothing,
and no key outweighs the rest.

Prior work: vested stake in proof-of-stake systems. Here the stake is work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["CHUNKS_PER_WEIGHT", "INFLUENCE_SHARES", "MATURITY_MS", "WEIGHT_MAX", "VestedWork", "limited"]

WEIGHT_MAX = 8
"""No elector counts more than so many strangers."""

CHUNKS_PER_WEIGHT = 32
"""Verified chunks that count as much as being known at all."""

INFLUENCE_SHARES = 8
"""No key holds more than one in so many of the total weight, unless all are even."""

MATURITY_MS = 24 * 3_600_000
"""Work counts when it is older than this."""

BUCKET_MS = 3_600_000
"""Work is remembered by the hour in which it was verified."""


@dataclass(slots=True)
class VestedWork:
    """One peer's chunks that we verified: those that have matured, and the others by hour."""

    matured_chunks: int = 0
    maturing: tuple[tuple[int, int], ...] = ()
    """(hour since the epoch, chunks), oldest first; at most as many as mature in `MATURITY_MS`."""

    def add(self, chunks: int, now_ms: int) -> None:
        """``chunks`` were verified now."""
        self._mature(now_ms)
        hour = now_ms // BUCKET_MS
        if self.maturing and self.maturing[-1][0] >= hour:
            # A clock that was set back doesn't make work older.
            last_hour, before = self.maturing[-1]
            self.maturing = (*self.maturing[:-1], (last_hour, before + chunks))
        else:
            self.maturing = (*self.maturing, (hour, chunks))

    def weight(self, now_ms: int) -> int:
        """What the peer counts as an elector, 1 to WEIGHT_MAX."""
        self._mature(now_ms)
        return min(WEIGHT_MAX, 1 + self.matured_chunks // CHUNKS_PER_WEIGHT)

    def _mature(self, now_ms: int) -> None:
        # An hour is old when its last millisecond is.
        kept = tuple(entry for entry in self.maturing if (entry[0] + 1) * BUCKET_MS + MATURITY_MS > now_ms)
        self.matured_chunks += sum(chunks for _, chunks in self.maturing[: len(self.maturing) - len(kept)])
        self.maturing = kept


def limited(weights: Mapping[bytes, int]) -> dict[bytes, int]:
    """The same electors, none with more than one in `INFLUENCE_SHARES` of the total weight.

    Weights are cut from above, to the highest cap that keeps the rule; with fewer electors than
    shares all become even, since nobody can then hold less.
    """
    cap = max(weights.values(), default=1)
    while cap > 1 and cap * INFLUENCE_SHARES > sum(min(weight, cap) for weight in weights.values()):
        cap -= 1
    return {key: min(weight, cap) for key, weight in weights.items()}
