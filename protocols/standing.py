"""What one node thinks of its peers, from what it saw itself.

A stranger's praise counts nothing: only finished contracts of our own and fraud that we recomputed.
A failure weighs more than a success and an exclusion ends, so that a peer that was unlucky comes
back, and one that is bad is met less and less.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from protocols.limits import REGISTRY_PEERS_MAX

__all__ = ["PeerStanding", "Standings"]

FAILURE_WEIGHT = 4
EXCLUSION_MS = 60_000
"""After one failure; doubles with each further one."""
EXCLUSION_DOUBLINGS_MAX = 10
PPM = 1_000_000
LATENCY_FACTOR_MAX_PPM = 100 * PPM


@dataclass(slots=True)
class PeerStanding:
    """One peer's record."""

    completed: int = 0
    failed: int = 0
    convicted: bool = False
    excluded_until_ms: int = 0
    latency_factor_ppm: int = PPM
    """Delivered time over declared time, smoothed: declaring less than it takes doesn't pay."""

    @property
    def reputation_ppm(self) -> int:
        """Rule of succession with heavy failures: 0 for unknown, towards 1,000,000 with good work."""
        total = self.completed + FAILURE_WEIGHT * self.failed + 2
        return 0 if self.convicted else PPM * self.completed // total


@dataclass(slots=True)
class Standings:
    """The records of all peers we dealt with, bounded."""

    peers: dict[bytes, PeerStanding] = field(default_factory=dict)

    def of(self, peer: bytes) -> PeerStanding:
        """The record of ``peer``; a blank one if there is none, which isn't kept."""
        return self.peers.get(peer) or PeerStanding()

    def _kept(self, peer: bytes) -> PeerStanding:
        if peer not in self.peers and len(self.peers) >= REGISTRY_PEERS_MAX:
            # A conviction is kept longest, but nobody may grow our memory by having many keys convicted.
            oldest = next(iter(self.peers))
            del self.peers[next((p for p, s in self.peers.items() if not s.convicted), oldest)]
        return self.peers.setdefault(peer, PeerStanding())

    def record_completion(self, peer: bytes, *, declared_ms: int, delivered_ms: int) -> None:
        """A contract ended verified after ``delivered_ms`` where ``declared_ms`` was promised."""
        standing = self._kept(peer)
        standing.completed += 1
        ratio = min(LATENCY_FACTOR_MAX_PPM, max(PPM, delivered_ms * PPM // max(1, declared_ms)))
        standing.latency_factor_ppm = (3 * standing.latency_factor_ppm + ratio) // 4

    def record_failure(self, peer: bytes, now_ms: int) -> None:
        """A contract ended by the peer's fault: leave it out for a while."""
        standing = self._kept(peer)
        standing.failed += 1
        doublings = min(standing.failed - 1, EXCLUSION_DOUBLINGS_MAX)
        standing.excluded_until_ms = now_ms + (EXCLUSION_MS << doublings)

    def convict(self, peer: bytes) -> None:
        """Fraud that we recomputed ourselves: never again."""
        self._kept(peer).convicted = True

    def is_welcome(self, peer: bytes, now_ms: int) -> bool:
        """Whether we would deal with ``peer`` now."""
        standing = self.of(peer)
        return not standing.convicted and standing.excluded_until_ms <= now_ms
