"""What must hold after every event, whatever the network and the hostile peers do.

What an event can have changed is read off the acts that the peer answered it with: a job that is told of, a
voucher or a conviction that is written down, a receipt. So a check costs what the event did, however many
jobs and peers there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from p2p_node.core.attempt import Attempt, Outcome
from p2p_node.core.node import Act
from p2p_node.core.request import FINAL_STATES, JobState
from p2p_node.core.requester import Job
from p2p_node.sim.world import NETWORK, Peer, World
from protocols.crypto import Crypto
from protocols.effects import Notify, Persist
from protocols.envelope import open_envelope
from protocols.messages import Advert, Bid, Voucher
from verification.evidence import check_draw
from verification.round import Round, Verdict

__all__ = ["InvariantBroken", "Invariants"]

OVERTIME_MS = 15_000
"""How long after its deadline a job may take to end: its receipt waits for payees to answer."""


class InvariantBroken(AssertionError):
    """A promise of the protocol didn't hold; the message names the promise and the job."""

    def __init__(self, promise: str, *, job_id: bytes = b"", peer: int = -1, at_ms: int = 0) -> None:
        """A broken promise.

        Args:
            promise: which, and what was found.
            job_id: the job involved, if there is one.
            peer: where it broke, by index.
            at_ms: when, since the world began.
        """
        of = f": job {job_id.hex()[:8]}" if job_id else ""
        super().__init__(f"{promise}{of} of peer {peer} at {at_ms} ms")
        self.promise = promise
        self.job_id = job_id
        self.peer = peer
        self.at_ms = at_ms


class Invariants:
    """Checks one world; attach with ``world.on_step = invariants.check``."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.checks_total = 0
        self.ended: dict[bytes, JobState] = {}
        """Jobs that reached a final state, and which."""
        self._drawn: set[tuple[bytes, bytes]] = set()
        self._paid: dict[tuple[bytes, bytes], tuple[int, int]] = {}
        """(sequence, settled) of the newest voucher of each lane, at its payer."""
        self._paid_for: dict[tuple[bytes, bytes], bytes] = {}
        self._owing: dict[int, dict[bytes, bytes]] = {}
        """What each peer has written down and not seen acknowledged."""
        self._honest = {peer.core.key for peer in world.peers if not peer.cheat}

    def check(self, peer: Peer, acts: Iterable[Act]) -> None:
        """Check what an event has changed at the peer that it reached.

        Raises:
            InvariantBroken: with the promise and the job.
        """
        self.checks_total += 1
        if not acts:
            return
        told: dict[bytes, None] = {}
        for act in acts:
            # Most acts of all write an advert down.
            if isinstance(act, Persist):
                if act.table != "registry":
                    self._check_record(peer, act)
            elif isinstance(act, Notify) and act.subject:
                told[act.subject] = None
                if act.event == "offered" and act.subject not in self.ended:
                    self._expect_end(peer, act.subject)
        for identifier in told:
            job = peer.core.jobs.get(identifier)
            if job is not None:
                self._check_told(peer, job)

    def _check_told(self, peer: Peer, job: Job) -> None:
        final = self.ended.get(job.id)
        if final is not None:
            self._require(job.state is final, "a final state never changes", peer, job.id)
            return
        self._check_job(peer, job)
        if job.state in FINAL_STATES:
            self.ended[job.id] = job.state
            self._check_final(peer, job)

    # --- What is written down --------------------------------------------------------------------

    def _check_record(self, peer: Peer, act: Persist) -> None:
        if act.table == "convictions" and act.value is not None and not peer.cheat:
            if act.key in self._honest:
                raise self._broken(f"honest peer {self._index(act.key)} was convicted", peer)
        elif act.table == "receipts" and act.value is not None:
            self._require(act.key not in self.ended, "a job ends once", peer, act.key)
        elif act.table == "vouchers" and act.value is not None and not peer.cheat:
            self._check_voucher(peer, act.value)
        elif act.table == "outbox":
            owing = self._owing.setdefault(peer.index, {})
            if act.value is None:
                owing.pop(act.key, None)
            else:
                owing[act.key] = act.value

    def _check_voucher(self, peer: Peer, raw: bytes) -> None:
        voucher = open_envelope(raw, network=NETWORK, crypto=self._crypto, expect=Voucher)
        body, lane = voucher.body, (voucher.body.lane, voucher.body.payee)
        if voucher.signer != peer.core.key:
            paid = self._paid.get(lane)
            is_honest = voucher.signer in self._honest
            owed = paid is not None and body.settled_micros <= paid[1]
            self._require(not is_honest or owed, "nobody is paid what nobody owes", peer)
            return
        sequence, settled = self._paid.get(lane, (0, 0))
        if body.sequence == sequence and body.settled_micros == settled:
            return  # The same, written again.
        self._require(body.sequence == sequence + 1, "vouchers follow one another", peer)
        self._require(body.settled_micros >= settled, "a voucher never takes back", peer)
        work = (body.evidence, body.payee)
        self._require(work not in self._paid_for, "nobody is paid twice for one segment", peer)
        self._paid_for[work] = body.lane
        self._paid[lane] = (body.sequence, body.settled_micros)
        owner = peer.core._routes.get(body.lane)
        if isinstance(owner, Job):
            attempt = next(a for a in owner.attempts if a.award.id == body.lane)
            self._check_amount(peer, owner, attempt, body)

    def _check_amount(self, peer: Peer, job: Job, attempt: Attempt, body: Voucher) -> None:
        terms = attempt.award.body
        if body.payee == terms.executor:
            owed = terms.price_micros * _units_verified(attempt)
            self._require(body.settled_micros <= owed, "no more is paid than was verified", peer, job.id)
            return
        entries = (round_.entries.get(body.payee) for round_ in attempt.rounds.values())
        owed = terms.verifier_fee_micros * sum(len(entry.chunks) for entry in entries if entry is not None)
        self._require(body.settled_micros <= owed, "verifiers get their fee and no more", peer, job.id)

    # --- Jobs ------------------------------------------------------------------------------------

    def _check_job(self, peer: Peer, job: Job) -> None:
        live = [a for a in job.attempts if a.outcome in (None, Outcome.VERIFIED)]
        self._require(len(live) <= 1, "one winner per job at a time", peer, job.id)
        for attempt in job.attempts:
            basis = attempt.candidate.basis
            self._require(
                basis.signer == attempt.candidate.peer and isinstance(basis.body, Bid | Advert),
                "no award without a bid",
                peer,
                job.id,
            )
            if isinstance(basis.body, Bid):
                counted = any(basis.id == bid.id for a in job.auctions for bid in a.bids.values())
                self._require(counted, "the winning bid was opened in the auction", peer, job.id)
            for round_ in attempt.rounds.values():
                self._check_round(peer, job, attempt, round_)

    def _check_round(self, peer: Peer, job: Job, attempt: Attempt, round_: Round) -> None:
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
                crypto=self._crypto,
                level=round_.level,
            )
            self._drawn.add((round_.commitment.id, key))
        paid = (round_.commitment.id, attempt.candidate.peer) in attempt.payouts.vouchers
        is_earned = not paid or round_.verdict is Verdict.VERIFIED
        self._require(is_earned, "no payment without a verdict", peer, job.id)

    def _check_final(self, peer: Peer, job: Job) -> None:
        if job.state is JobState.VERIFIED:
            last = job.attempts[-1]
            self._require(last.outcome is Outcome.VERIFIED, "verified means verified", peer, job.id)
            is_whole = len(job.units) == job.request.units_max
            self._require(is_whole, "the whole output is there", peer, job.id)
        else:
            self._require(bool(job.reason), "a job that failed says why", peer, job.id)
        self._require(job.receipt is not None, "every job ends with a receipt", peer, job.id)

    def _expect_end(self, peer: Peer, job_id: bytes) -> None:
        job = peer.core.jobs[job_id]
        limit_ms = job.created_ms + job.request.total_ms + OVERTIME_MS - self.world.clock_ms(peer)
        if len(job.offers) == 1:
            self.world.at(limit_ms, partial(self._check_ended, peer, peer.lives, job_id))

    def _check_ended(self, peer: Peer, life: int, job_id: bytes) -> None:
        if not peer.is_up or peer.lives != life or peer.stuck_until_ms > self.world.now_ms - OVERTIME_MS:
            return  # Whoever asked isn't there any more, or was away.
        self._require(job_id in self.ended, "an accepted job ends in time", peer, job_id)

    # --- Restarts --------------------------------------------------------------------------------

    def check_restart(self, peer: Peer) -> None:
        """Once a peer has its store back: what it owed before it still owes.

        Raises:
            InvariantBroken: something that was written down isn't being delivered any more.
        """
        pending = {receiver + identifier for receiver, identifier in peer.core.outbox._pending}
        now_ms = self.world.clock_ms(peer)
        for key, value in self._owing.get(peer.index, {}).items():
            is_late = int.from_bytes(value[:8], "big") < now_ms
            self._require(is_late or key in pending, "an obligation outlives a restart", peer)
        for (table, key), value in peer.store.items():
            if table == "convictions" and value:
                is_known = peer.core.standings.of(key).convicted
                self._require(is_known, "a conviction outlives a restart", peer)

    def check_end(self) -> None:
        """Once the world has run out: every job ended in a named state.

        Raises:
            InvariantBroken: a job is still open.
        """
        for peer in self.world.peers:
            if not peer.is_up:
                continue
            for job in peer.core.jobs.values():
                is_over = job.state in FINAL_STATES
                self._require(is_over, f"every job ends, this one is {job.state.value}", peer, job.id)
                if job.id not in self.ended:
                    self._check_told(peer, job)
            for key, standing in peer.core.standings.peers.items():
                if standing.convicted and key in self._honest and not peer.cheat:
                    raise self._broken(f"honest peer {self._index(key)} was convicted", peer)

    # --- Saying so -------------------------------------------------------------------------------

    @property
    def _crypto(self) -> Crypto:
        return self.world.peers[0].core.crypto

    def _index(self, key: bytes) -> int:
        return self.world.by_key[key].index

    def _require(self, holds: bool, promise: str, peer: Peer, job_id: bytes = b"") -> None:
        if not holds:
            raise self._broken(promise, peer, job_id)

    def _broken(self, promise: str, peer: Peer, job_id: bytes = b"") -> InvariantBroken:
        return InvariantBroken(promise, job_id=job_id, peer=peer.index, at_ms=self.world.elapsed_ms)


def _units_verified(attempt: Attempt) -> int:
    """The units of all segments found right, those behind one that nobody verified too."""
    total, before = 0, attempt.award.body.prefix_units
    for round_ in attempt.rounds.values():
        end = round_.commitment.body.units_total
        total += end - before if round_.verdict is Verdict.VERIFIED else 0
        before = end
    return total
