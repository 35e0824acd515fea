"""Turns: those who bring us work share what time the loop has to spare.

Everything of a node but its workers runs in one loop. Gossip costs most of it, two signatures for each
message and a write for each neighbour that it is passed on to; strangers' handshakes and pieces of blobs come
next. Whoever floods us would have all of it. So a message waits its turn, and so do a connection and a piece.
While the loop is quick nobody waits; as soon as going round it takes long, turns become rare, until jobs pass
quickly again.
"""

from __future__ import annotations

import trio

__all__ = [
    "GOSSIP_PER_SECOND_MIN",
    "HANDSHAKES_PER_SECOND_MIN",
    "PIECES_PER_SECOND_MIN",
    "WAIT_S_MAX",
    "Turns",
]

PER_SECOND_MAX = 1_024.0
GOSSIP_PER_SECOND_MIN = 16.0
"""However slow the loop is: a peer of a busy machine still hears of jobs."""

HANDSHAKES_PER_SECOND_MIN = 4.0
PIECES_PER_SECOND_MIN = 8.0
BURST = 16
"""So many come at once after a rest."""

SLOW_S = 0.01
"""A round of the loop that takes longer makes turns rarer."""

RARER, MORE_OFTEN = 0.8, 1.02
WAIT_S_MAX = 2.0
"""A neighbour gives up a stream that isn't read for five seconds, and a dial after ten."""


class Turns:
    """Gives turns in the order in which they were asked for; a neighbour asks for one at a time."""

    def __init__(self, per_second_min: float) -> None:
        """As many as are wanted, until the loop is slow.

        Args:
            per_second_min: turns that there are however slow it is.
        """
        self.per_second = PER_SECOND_MAX
        self._per_second_min = per_second_min
        self._next_at = float("-inf")

    async def next(self, patience_s: float = WAIT_S_MAX) -> bool:
        """Wait for a turn, and a round of the loop in any case.

        Args:
            patience_s: who would wait longer does without, unless it is as long as anybody waits.

        Returns:
            Whether there is a turn.
        """
        began = trio.current_time()
        await trio.lowlevel.checkpoint()
        now = trio.current_time()
        change = RARER if now - began > SLOW_S else MORE_OFTEN
        self.per_second = min(PER_SECOND_MAX, max(self._per_second_min, self.per_second * change))
        gap_s = 1 / self.per_second
        due = max(self._next_at, now - BURST * gap_s)
        if patience_s < min(due - now, WAIT_S_MAX):
            return False
        self._next_at = due + gap_s
        if due > now:
            await trio.sleep_until(min(due, now + WAIT_S_MAX))
        return True
