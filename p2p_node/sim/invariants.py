"""What must hold after every event, whatever the network and the hostile peers do."""

from __future__ import annotations

from p2p_node.core.attempt import Attempt, Outcome
from p2p_node.core.request import FINAL_STATES, JobState
from p2p_node.core.requester import Job
from p2p_node.sim.world import NETWORK, Peer, World
from protocols.messages import Advert, Bid
from verification.evidence import check_draw
from verification.round import Round, Verdict

__all__ = ["InvariantBroken", "Invariants"]


class InvariantBroken(AssertionError):
    """A promise of the protocol didn't hold; the message names the promise and the job."""


class Invariants:
    """Checks one world; attach with ``world.on_step = invariants.check``."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.checks_total = 0
        self._final: dict[bytes, JobState] = {}
        self._drawn: set[tuple[bytes, bytes]] = set()
        self._honest = {peer.core.key for peer in world.peers if not peer.cheat}

    def check(self, peer: Peer) -> None:
        """Check the jobs of the peer that just acted.

        Raises:
            InvariantBroken: with the promise and the job.
        """
        self.checks_total += 1
        for identifier, job in peer.core.jobs.items():
            final = self._final.get(identifier)
            if final is not None:
                if job.state is not final:
                    self._require(False, "a final state never changes", job)
                continue
            self._check_job(job)
            if job.state in FINAL_STATES:
                self._final[job.id] = job.state
                self._check_final(job)
        if not peer.cheat:
            for key, standing in peer.core.standings.peers.items():
                if standing.convicted and key in self._honest:
                    raise InvariantBroken(f"honest peer {key.hex()[:8]} was convicted by {peer.index}")

    def _check_job(self, job: Job) -> None:
        live = [a for a in job.attempts if a.outcome in (None, Outcome.VERIFIED)]
        self._require(len(live) <= 1, "one winner per job at a time", job)
        for attempt in job.attempts:
            basis = attempt.candidate.basis
            self._require(
                basis.signer == attempt.candidate.peer and isinstance(basis.body, Bid | Advert),
                "no award without a bid",
                job,
            )
            if isinstance(basis.body, Bid):
                counted = any(basis.id == bid.id for a in job.auctions for bid in a.bids.values())
                self._require(counted, "the winning bid was opened in the auction", job)
            for round_ in attempt.rounds.values():
                self._check_round(job, attempt, round_)

    def _check_round(self, job: Job, attempt: Attempt, round_: Round) -> None:
        for key, entry in round_.entries.items():
            if (round_.commitment.id, key) in self._drawn:
                continue
            # Raises if the VRF didn't draw this verifier.
            check_draw(
                round_.contract,
                round_.commitment,
                entry.claim,
                entry.membership,
                network=NETWORK,
                crypto=self.world.peers[0].core.crypto,
                level=round_.level,
            )
            self._drawn.add((round_.commitment.id, key))
        paid = (round_.commitment.id, attempt.candidate.peer) in attempt.payouts.vouchers
        self._require(not paid or round_.verdict is Verdict.VERIFIED, "no payment without a verdict", job)

    def _check_final(self, job: Job) -> None:
        if job.state is JobState.VERIFIED:
            last = job.attempts[-1]
            self._require(last.outcome is Outcome.VERIFIED, "verified means verified", job)
            self._require(len(job.units) == job.request.units_max, "the whole output is there", job)
        self._require(job.receipt is not None, "every job ends with a receipt", job)

    def _require(self, holds: bool, promise: str, job: Job) -> None:
        if not holds:
            raise InvariantBroken(f"{promise}: job {job.id.hex()[:8]} at {self.world.now_ms}")

    def check_end(self) -> None:
        """Once the world has run out: every job ended in a named state.

        Raises:
            InvariantBroken: a job is still open.
        """
        for peer in self.world.peers:
            if peer.cheat == "dead":
                continue
            for job in peer.core.jobs.values():
                self._require(
                    job.state in FINAL_STATES, f"every job ends, this one is {job.state.value}", job
                )
