"""What is measured in a scenario's world, and the report made of it: integers and names, nothing else."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from p2p_node.core.attempt import Outcome
from p2p_node.core.node import Act
from p2p_node.core.request import JobState
from p2p_node.core.requester import Job
from p2p_node.hostile import ATTACKS, Role
from p2p_node.sim.workload import derive_unit
from p2p_node.sim.world import Peer, World
from protocols.effects import Notify

__all__ = ["JobTrack", "Measures", "percentiles"]

PPM = 1_000_000


@dataclass(slots=True)
class JobTrack:
    """One job as its client sees it; times in ms since the world began."""

    number: int
    id: bytes
    kind: str
    peer: int
    is_honest: bool
    submitted_ms: int
    life: int
    awarded_ms: int = -1
    ended_ms: int = -1
    state: str = ""
    reason: str = ""


@dataclass(slots=True)
class _Cheats:
    """What came of one way to attack."""

    peers: int
    attempts: int = 0
    """Contracts that hostile executors took."""
    accepted: int = 0
    """Of those: results that passed."""
    first_ms: int = -1
    convicted_ms: int = -1
    convicted: set[bytes] = field(default_factory=set)


def percentiles(values: Sequence[int]) -> dict[str, int]:
    """The 50th, 95th and 99th of the values, by nearest rank; 0 where there are none."""
    ordered = sorted(values)
    return {
        f"p{percent}": ordered[max(0, -(-percent * len(ordered) // 100) - 1)] if ordered else 0
        for percent in (50, 95, 99)
    }


class Measures:
    """Sees every act of a world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.jobs: dict[bytes, JobTrack] = {}
        self.notes: Counter[str] = Counter()
        self.false_answers = 0
        self._earned: dict[tuple[int, bytes], int] = {}
        self._cheats = {
            kind: _Cheats(count)
            for kind, count in sorted(Counter(p.cheat for p in world.peers).items())
            if kind
        }

    def see(self, peer: Peer, acts: list[Act]) -> None:
        """What a peer has just done."""
        for act in acts:
            if isinstance(act, Notify):
                self._hear(peer, act)

    def _hear(self, peer: Peer, note: Notify) -> None:
        self.notes[note.event] += 1
        match note.event:
            case "earned":
                details = note.details
                self._earned[(peer.index, details["award"])] = details["settled_micros"]
            case "awarded":
                track = self.jobs.get(note.subject)
                if track is not None and track.awarded_ms < 0:
                    track.awarded_ms = self.world.elapsed_ms
            case "finished":
                self._finish(peer, note)
            case "convicted":
                self._convict(peer, note.details["peer"])

    def _finish(self, peer: Peer, note: Notify) -> None:
        track = self.jobs.get(note.subject)
        if track is None:
            return
        track.ended_ms = self.world.elapsed_ms
        track.state, track.reason = note.details["state"], note.details["reason"]
        job = peer.core.jobs[note.subject]
        if not peer.cheat:
            self._look_at(job)

    def _look_at(self, job: Job) -> None:
        if job.state is JobState.VERIFIED:
            right = tuple(derive_unit(job.request.input, i) for i in range(job.request.units_max))
            self.false_answers += job.units != right
        for attempt in job.attempts:
            cheat = self.world.by_key[attempt.candidate.peer].cheat
            if not cheat or attempt.contract is None:
                continue
            seen = self._cheats[cheat]
            seen.attempts += 1
            seen.accepted += attempt.outcome is Outcome.VERIFIED
            if seen.first_ms < 0:
                seen.first_ms = self.world.elapsed_ms

    def _convict(self, peer: Peer, accused: bytes) -> None:
        cheat = self.world.by_key[accused].cheat
        if peer.cheat or not cheat:
            return
        seen = self._cheats[cheat]
        seen.convicted.add(accused)
        if seen.convicted_ms < 0:
            seen.convicted_ms = self.world.elapsed_ms

    # --- Report ----------------------------------------------------------------------------------

    def completion(self) -> dict[str, Any]:
        """How the honest clients' jobs ended."""
        mine = [track for track in self.jobs.values() if track.is_honest]
        gone = [track for track in mine if self.is_interrupted(track)]
        kept = [track for track in mine if not self.is_interrupted(track)]
        states = Counter(track.state for track in kept)
        verified = states[JobState.VERIFIED.value]
        return {
            "submitted": len(mine),
            "requester_went": len(gone),
            "verified": verified,
            "failed": {
                state: count for state, count in sorted(states.items()) if state not in ("verified", "")
            },
            "open": states[""],
            "completion_ppm": PPM * verified // max(1, len(kept)),
            "false_answers": self.false_answers,
        }

    def is_interrupted(self, track: JobTrack) -> bool:
        """Whether the client's own node stopped before the job ended: the job ended with it."""
        peer = self.world.peers[track.peer]
        return track.ended_ms < 0 and (not peer.is_up or peer.lives != track.life)

    def times(self) -> dict[str, Any]:
        """From a job's submission to its award and to its verified result, by kind of job."""
        by_kind: dict[str, list[JobTrack]] = defaultdict(list)
        for track in self.jobs.values():
            if track.is_honest and track.state == JobState.VERIFIED.value:
                by_kind[track.kind].append(track)
        return {
            kind: {
                "jobs": len(tracks),
                "award": percentiles([track.awarded_ms - track.submitted_ms for track in tracks]),
                "result": percentiles([track.ended_ms - track.submitted_ms for track in tracks]),
            }
            for kind, tracks in sorted(by_kind.items())
        }

    def attacks(self) -> dict[str, Any]:
        """What came of each way to attack."""
        return {
            kind: {
                "peers": seen.peers,
                "contracts": seen.attempts,
                "results_accepted": seen.accepted,
                "peers_convicted": len(seen.convicted),
                "is_provable": kind not in ATTACKS or ATTACKS[kind].is_provable,
                "first_conviction_ms": max(-1, seen.convicted_ms - max(0, seen.first_ms))
                if seen.convicted_ms >= 0
                else -1,
            }
            for kind, seen in self._cheats.items()
        }

    def detection_ppm(self) -> int:
        """Of contracts that executors took who compute or commit to something else: how many didn't pass."""
        caught = total = 0
        for kind, seen in self._cheats.items():
            if kind in ATTACKS and ATTACKS[kind].role is not Role.EXECUTOR:
                continue
            if kind == "forged-capability":
                continue
            total += seen.attempts
            caught += seen.attempts - seen.accepted
        return PPM * caught // total if total else PPM

    def false_convictions(self) -> int:
        """Honest peers that honest peers convicted."""
        honest = {peer.core.key for peer in self.world.peers if not peer.cheat}
        return len(
            {
                key
                for peer in self.world.peers
                if not peer.cheat
                for key, standing in peer.core.standings.peers.items()
                if standing.convicted and key in honest
            }
        )

    def earnings(self) -> dict[str, Any]:
        """By vouchers at the peers that serve, honest ones and those of each way to attack."""
        sums: Counter[int] = Counter()
        for (index, _), settled in self._earned.items():
            sums[index] += settled
        groups: dict[str, list[int]] = defaultdict(list)
        for peer in self.world.peers:
            if peer.core.capability.abilities and peer.lives:
                groups[peer.cheat or "honest"].append(sums[peer.index])
        return {
            group: {"peers": len(values), "mean_micros": sum(values) // len(values), **percentiles(values)}
            for group, values in sorted(groups.items())
        }

    def by_minute(self) -> list[list[int]]:
        """Of each minute: jobs submitted in it, and how many of those ended verified."""
        minutes: dict[int, list[int]] = defaultdict(lambda: [0, 0])
        for track in self.jobs.values():
            if track.is_honest and not self.is_interrupted(track):
                row = minutes[track.submitted_ms // 60_000]
                row[0] += 1
                row[1] += track.state == JobState.VERIFIED.value
        return [[minute, *row] for minute, row in sorted(minutes.items())]
