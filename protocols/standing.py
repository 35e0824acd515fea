"""What one node thinks of its peers, from what it saw itself.

A stranger's praise counts nothing: only finished contracts of our own and fraud that we recomputed.
A failure weighs more than a success and an exclusion ends, so that a peer that was unlucky comes
back, and one that is bad is met less and less.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from protocols.codec import Wire, decode, encode
from protocols.effects import Persist
from protocols.errors import Malformed
from protocols.limits import REGISTRY_PEERS_MAX
from protocols.weights import VestedWork

__all__ = ["CHECK_FLOOR_PPM", "DECEIT_FAILURES", "PPM", "PROVEN_CONTRACTS", "PeerStanding", "Standings"]

FAILURE_WEIGHT = 4
DECEIT_FAILURES = 4
"""A lie, or what was committed to and then not shown, counts as so many failures: no crash looks like one,
and where it can't be proved to others each client pays for it once."""
EXCLUSION_MS = 60_000
"""After one failure; doubles with each further one."""
EXCLUSION_DOUBLINGS_MAX = 10
FORGIVING_CONTRACTS = 8
"""Verified contracts that undo one doubling."""
PROVEN_CONTRACTS = 10
"""Verified contracts in a row, before which all of an executor's chunks are checked."""
CHECK_FLOOR_PPM = 250_000
"""However well an executor did, this share of its chunks is checked."""
PPM = 1_000_000
LATENCY_FACTOR_MAX_PPM = 100 * PPM


@dataclass(slots=True)
class PeerStanding:
    """One peer's record."""

    completed: int = 0
    failed: int = 0
    convicted: bool = False
    excluded_until_ms: int = 0
    distrusted_until_ms: int = 0
    """The same, for deceit alone."""
    latency_factor_ppm: int = PPM
    """Delivered time over declared time, smoothed: declaring less than it takes doesn't pay."""
    streak: int = 0
    """Contracts in a row that ended verified, since the first or since the last failure."""
    work: VestedWork = field(default_factory=VestedWork)

    def check_share_ppm(self, floor_ppm: int = CHECK_FLOOR_PPM) -> int:
        """The share of its chunks to check where the client leaves that to us.

        All of them before `PROVEN_CONTRACTS` verified contracts in a row; then 1/(1+CV), CV being how
        many there were beyond those, and never less than the floor. A failure starts anew.

        Source: adaptive replication in BOINC (D. Anderson, "BOINC: a platform for volunteer
        computing", 2020), which has no floor.
        """
        beyond = self.streak - PROVEN_CONTRACTS
        return PPM if beyond <= 0 else max(floor_ppm, PPM // (1 + beyond))

    @property
    def reputation_ppm(self) -> int:
        """Rule of succession with heavy failures: 0 for unknown, towards 1,000,000 with good work."""
        total = self.completed + FAILURE_WEIGHT * self.failed + 2
        return 0 if self.convicted else PPM * self.completed // total

    def risk_micros(self, ask_micros: int) -> int:
        """What asking so much is to be ranked higher for: work that fails is paid in time and fees.

        In proportion to the ask, so that no peer that failed us wins by asking less than everybody; good
        work makes up for it.
        """
        return ask_micros * FAILURE_WEIGHT * self.failed // (1 + self.completed)


class _Record(Wire, frozen=True):
    """A standing as the store keeps it. Convictions are kept with their proofs, not here."""

    completed: int
    failed: int
    excluded_until_ms: int
    distrusted_until_ms: int
    latency_factor_ppm: int
    streak: int
    matured_chunks: int
    maturing: tuple[tuple[int, int], ...]


@dataclass(slots=True)
class Standings:
    """The records of all peers we dealt with, bounded."""

    peers: dict[bytes, PeerStanding] = field(default_factory=dict)
    _changed: dict[bytes, None] = field(default_factory=dict)

    def of(self, peer: bytes) -> PeerStanding:
        """The record of ``peer``; a blank one if there is none, which isn't kept."""
        return self.peers.get(peer) or PeerStanding()

    def _kept(self, peer: bytes) -> PeerStanding:
        if peer not in self.peers and len(self.peers) >= REGISTRY_PEERS_MAX:
            # A conviction is kept longest, but nobody may grow our memory by having many keys convicted.
            oldest = next(iter(self.peers))
            gone = next((p for p, s in self.peers.items() if not s.convicted), oldest)
            del self.peers[gone]
            self._changed[gone] = None
        self._changed[peer] = None
        return self.peers.setdefault(peer, PeerStanding())

    def changes(self) -> list[Persist]:
        """What changed since the last call, to be kept over a restart."""
        if not self._changed:
            return []
        changed, self._changed = self._changed, {}
        return [Persist("standings", peer, self._encoded(peer)) for peer in changed]

    def _encoded(self, peer: bytes) -> bytes | None:
        standing = self.peers.get(peer)
        if standing is None:
            return None
        record = _Record(
            standing.completed,
            standing.failed,
            standing.excluded_until_ms,
            standing.distrusted_until_ms,
            standing.latency_factor_ppm,
            standing.streak,
            standing.work.matured_chunks,
            standing.work.maturing,
        )
        return encode(record)

    def restore(self, peer: bytes, value: bytes) -> None:
        """Take back what `changes` gave; what an older release wrote differently is dropped."""
        try:
            record = decode(value, _Record)
        except Malformed:
            return
        standing = self.peers.setdefault(peer, PeerStanding())
        standing.completed, standing.failed = record.completed, record.failed
        standing.excluded_until_ms = record.excluded_until_ms
        standing.distrusted_until_ms = record.distrusted_until_ms
        standing.latency_factor_ppm = record.latency_factor_ppm
        standing.streak = record.streak
        standing.work = VestedWork(record.matured_chunks, record.maturing)

    def record_work(self, peer: bytes, chunks: int, now_ms: int) -> None:
        """``chunks`` that ``peer`` computed or recomputed for us were verified."""
        self._kept(peer).work.add(chunks, now_ms)

    def record_completion(self, peer: bytes, *, declared_ms: int, delivered_ms: int) -> None:
        """A contract ended verified after ``delivered_ms`` where ``declared_ms`` was promised."""
        standing = self._kept(peer)
        standing.completed += 1
        standing.streak += 1
        ratio = min(LATENCY_FACTOR_MAX_PPM, max(PPM, delivered_ms * PPM // max(1, declared_ms)))
        standing.latency_factor_ppm = (3 * standing.latency_factor_ppm + ratio) // 4

    def record_failure(self, peer: bytes, now_ms: int, *, weight: int = 1, is_mishap: bool = False) -> None:
        """A contract ended by the peer's fault, as bad as ``weight`` failures: leave it out for a while.

        Args:
            peer: whose fault.
            now_ms: the time.
            weight: how many failures it is as bad as.
            is_mishap: whether a machine or a link may just have been too slow, ours among them.
        """
        standing = self._kept(peer)
        standing.failed += weight
        # Influence and trust are lost at once and earned anew.
        standing.streak, standing.work = 0, VestedWork()
        # Or a peer that fails once a month would in the end be left out for a day each time.
        forgiven = standing.completed // FORGIVING_CONTRACTS
        doublings = min(max(0, standing.failed - 1 - forgiven), EXCLUSION_DOUBLINGS_MAX)
        standing.excluded_until_ms = now_ms + (EXCLUSION_MS << doublings)
        if not is_mishap:
            standing.distrusted_until_ms = standing.excluded_until_ms

    def convict(self, peer: bytes) -> None:
        """Fraud that we recomputed ourselves: never again."""
        standing = self._kept(peer)
        standing.convicted, standing.streak, standing.work = True, 0, VestedWork()

    def is_welcome(self, peer: bytes, now_ms: int) -> bool:
        """Whether we would deal with ``peer`` now."""
        standing = self.of(peer)
        return not standing.convicted and standing.excluded_until_ms <= now_ms

    def welcome_among(self, peers: Iterable[bytes], now_ms: int) -> set[bytes]:
        """Those of ``peers`` to deal with now: the welcome ones, or if there are none, who only had mishaps.

        Where everybody failed us, the fault may well be ours: a node that is flooded hears no answers, and
        must not shut out all its peers for what a stranger did to it.
        """
        asked = list(peers)
        welcome = {peer for peer in asked if self.is_welcome(peer, now_ms)}
        return welcome or {peer for peer in asked if self._is_tolerable(peer, now_ms)}

    def _is_tolerable(self, peer: bytes, now_ms: int) -> bool:
        standing = self.of(peer)
        return not standing.convicted and standing.distrusted_until_ms <= now_ms
