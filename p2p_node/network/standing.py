"""How much of our patience each peer has used up.

Faults add points; points halve with time. A peer that reaches the graylist threshold is refused until its
back-off ends, and starts again from zero. Upstream's scores are of no help here: they reset when the peer
reconnects and the application's part of them never reaches the gates.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from p2p_node.network.port import PeerKey
from protocols.limits import (
    GRAYLIST_MS,
    GRAYLIST_POINTS,
    STANDING_HALF_LIFE_MS,
    STANDINGS_MAX,
)

__all__ = ["Pace", "RateLimits", "Standings"]


@dataclass(slots=True)
class _Standing:
    points: float = 0.0
    as_of_ms: int = 0
    refused_until_ms: int = 0


class Standings:
    """Fault points of every peer that has any, on the clock it is given (milliseconds)."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._standings: dict[PeerKey, _Standing] = {}

    def penalise(self, peer: PeerKey, points: int) -> bool:
        """Add fault points. True if this is what put the peer on the graylist.

        Raises:
            ValueError: negative points; standing is regained by time alone.
        """
        if points < 0:
            raise ValueError(f"points={points} must be >= 0")
        now_ms = self._clock()
        standing = self._standings.get(peer)
        if standing is None:
            self._make_room(now_ms)
            standing = self._standings[peer] = _Standing(as_of_ms=now_ms)
        standing.points = self._decayed(standing, now_ms) + points
        standing.as_of_ms = now_ms
        if standing.points < GRAYLIST_POINTS or now_ms < standing.refused_until_ms:
            return False
        standing.points = 0.0
        standing.refused_until_ms = now_ms + GRAYLIST_MS
        return True

    def points(self, peer: PeerKey) -> int:
        """Fault points now, rounded."""
        standing = self._standings.get(peer)
        return 0 if standing is None else round(self._decayed(standing, self._clock()))

    def refused(self, peer: PeerKey) -> bool:
        """Whether the peer is on the graylist."""
        standing = self._standings.get(peer)
        return standing is not None and self._clock() < standing.refused_until_ms

    @staticmethod
    def _decayed(standing: _Standing, now_ms: int) -> float:
        elapsed_ms = max(0, now_ms - standing.as_of_ms)
        return float(standing.points * 0.5 ** (elapsed_ms / STANDING_HALF_LIFE_MS))

    def _make_room(self, now_ms: int) -> None:
        if len(self._standings) < STANDINGS_MAX:
            return
        # Strangers' keys are free, so a flood of them may only push out the least of our grievances.
        mildest = min(
            self._standings,
            key=lambda peer: (
                self._standings[peer].refused_until_ms > now_ms,
                self._decayed(self._standings[peer], now_ms),
            ),
        )
        del self._standings[mildest]


class RateLimits:
    """A token bucket for each peer: so many messages a second, and bursts up to so many."""

    def __init__(self, clock: Callable[[], int], per_second: int, burst: int) -> None:
        self._clock = clock
        self._per_second, self._burst = per_second, burst
        self._buckets: dict[PeerKey, tuple[float, int]] = {}

    def take(self, peer: PeerKey, count: int) -> bool:
        """Take ``count`` tokens if the peer has them; takes nothing otherwise."""
        now_ms = self._clock()
        tokens, as_of_ms = self._buckets.get(peer, (float(self._burst), now_ms))
        tokens = min(self._burst, tokens + max(0, now_ms - as_of_ms) * self._per_second / 1_000)
        granted = tokens >= count
        if len(self._buckets) >= STANDINGS_MAX and peer not in self._buckets:
            # The oldest entry has most likely refilled, which is what forgetting it amounts to.
            del self._buckets[next(iter(self._buckets))]
        self._buckets[peer] = (tokens - count if granted else tokens, now_ms)
        return granted


class Pace:
    """How long to wait before the next of something from one source, so that it comes at a pace; bounded."""

    def __init__(self, clock: Callable[[], float], per_second: int, burst: int) -> None:
        """Nothing has come.

        Args:
            clock: seconds.
            per_second: what comes without end.
            burst: what may come at once after a rest.
        """
        self._clock = clock
        self._gap_s, self._slack_s = 1 / per_second, burst / per_second
        self._next_s: OrderedDict[bytes, float] = OrderedDict()
        """When each source would have said all that it has said, at the pace."""

    def wait_s(self, source: bytes) -> float:
        """Count one more; how long to wait before hearing it, 0 if not at all."""
        now_s = self._clock()
        due_s = max(now_s, self._next_s.pop(source, now_s)) + self._gap_s
        self._next_s[source] = due_s
        if len(self._next_s) > STANDINGS_MAX:
            # The one that was quiet longest has most likely nothing to wait for.
            self._next_s.popitem(last=False)
        return max(0.0, due_s - self._slack_s - now_s)
