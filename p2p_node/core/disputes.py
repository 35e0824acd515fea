"""Disputes as one peer takes part in them: it opens and relays its own jobs', and plays its part in others'.

`verification.dispute` has the rules; here machines are made, found by the dispute that a message names,
and what they end in is passed on: to the job that waits for it, and to the archive of proofs.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from p2p_node.core.evidence import Archive
from p2p_node.core.surroundings import Surroundings
from protocols.effects import CancelRun, Effect, Notify, OpenValues, Persist, Run, Trace
from protocols.envelope import Signed
from protocols.errors import Rejected
from protocols.events import DisputeEnded, Event, Heard, RunEvent, TimerFired
from protocols.limits import DISPUTES_MAX, DISPUTES_PER_SEGMENT_MAX, RECENT_GOSSIP_MAX
from protocols.messages import Commitment, Dispute, FraudNotice, OperatorFraud
from verification.dispute import open_dispute
from verification.dispute_evidence import OperatorAccusation
from verification.dispute_party import Party, PartyState
from verification.dispute_umpire import Umpire, UmpireState
from verification.evidence import Contract
from verification.findings import EXACT_PROFILES
from verification.round import Round

if TYPE_CHECKING:
    from p2p_node.core.requester import Job

__all__ = ["RUN_ROLES", "Disputes", "Ground"]

RUN_ROLES: Sequence[str] = ("trace", "open", "referee", "judge")
"""First part of the keys of runs that disputes start."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What a party needs to trace a chunk of a commitment that it answers for."""

    contract: Contract
    commitment: Signed[Commitment]
    input: bytes
    units: tuple[int, ...]
    """All output units up to the commitment's end."""
    verifiers: frozenset[bytes]
    """Who was drawn to verify it, as far as we know: nobody else may dispute it."""


class Disputes:
    """All disputes of one peer."""

    def __init__(
        self,
        node: Surroundings,
        *,
        own: bytes,
        ground: Callable[[bytes], Ground | None],
        owner: Callable[[bytes], Job | None],
    ) -> None:
        """No dispute yet.

        Args:
            node: where they are held.
            own: our key.
            ground: what we know of a commitment that is or was ours to execute or verify.
            owner: the job that a commitment id belongs to, if it is ours.
        """
        self.umpires: OrderedDict[bytes, Umpire] = OrderedDict()
        self.parties: OrderedDict[bytes, Party] = OrderedDict()
        self.archive = Archive(node, own=own, convicted=self._convicted)
        self._node = node
        self._own = own
        self._ground = ground
        self._owner = owner
        self._jobs: OrderedDict[bytes, bytes] = OrderedDict()
        self._runs: dict[Trace | OpenValues, tuple[tuple[Any, ...], list[bytes]]] = {}
        self._played: Counter[bytes] = Counter()

    # --- The requester's -------------------------------------------------------------------------

    def begin(self, round_: Round, now_ms: int) -> list[Effect]:
        """Have the parties of a round's disputes trace their chunks; once for each round."""
        terms = round_.contract.terms
        # What a dispute ends in shows everybody the job's input.
        if round_.commitment.id in self._jobs or terms.profile not in EXACT_PROFILES or terms.is_private:
            return []
        job_id = self._watched(round_.commitment.id)
        self._jobs[round_.commitment.id] = job_id
        while len(self._jobs) > RECENT_GOSSIP_MAX:
            self._jobs.popitem(last=False)
        effects: list[Effect] = []
        for verifier, (chunk, reveal) in round_.quarrels().items():
            if round_.opening is None or len(self.umpires) >= DISPUTES_MAX:
                key = ("dispute", round_.commitment.id, verifier)
                ended = DisputeEnded(key, chunk, verifier, b"", is_proved=False)
                effects += self._tell(round_.commitment.id, ended, now_ms)
                continue
            message = self._node.sign(Dispute(round_.commitment.id, chunk, round_.opening.raw, reveal.raw))
            quarrel = open_dispute(
                message,
                contract=round_.contract,
                commitment=round_.commitment,
                network=self._node.network,
                crypto=self._node.crypto,
            )
            umpire = Umpire(quarrel, message, input=round_.input, units=round_.units)
            self.umpires[quarrel.id] = umpire
            effects.append(Notify(job_id, "dispute-opened", {"peer": verifier, "chunk": chunk}))
            effects += umpire.start(now_ms)
        return effects

    def _watched(self, commitment_id: bytes) -> bytes:
        """The job whose watchers may still be told something about a commitment; empty for none."""
        owner = self._owner(commitment_id)
        return owner.id if owner is not None and not owner.is_final else b""

    def open_for(self, job_id: bytes) -> int:
        """Disputes of a job of ours that haven't ended; they may outlast the job."""
        return sum(self._jobs.get(umpire.quarrel.commitment.id) == job_id for umpire in self.umpires.values())

    def _advance_umpire(self, umpire: Umpire, event: Event, now_ms: int) -> list[Effect]:
        effects = umpire.handle(event, now_ms)
        if umpire.contradiction is not None:
            contradiction, umpire.contradiction = umpire.contradiction, None
            effects += self.archive.publish(contradiction, self._own, now_ms)
        return effects + self._end_umpire(umpire, now_ms)

    def _end_umpire(self, umpire: Umpire, now_ms: int) -> list[Effect]:
        quarrel = umpire.quarrel
        if umpire.state is not UmpireState.DONE or self.umpires.pop(quarrel.id, None) is None:
            return []
        if umpire.loser and not umpire.is_proved:
            # Nobody else can know who was silent, so it stays between us.
            self._node.standings.record_failure(umpire.loser, now_ms)
        subject = self._watched(quarrel.commitment.id)
        details = {
            "peer": quarrel.verifier,
            "chunk": quarrel.chunk,
            "loser": umpire.loser,
            "outcome": umpire.outcome,
            "rounds": umpire.rounds,
        }
        key = ("dispute", quarrel.commitment.id, quarrel.verifier)
        ended = DisputeEnded(key, quarrel.chunk, quarrel.verifier, umpire.loser, umpire.is_proved)
        return [
            Notify(subject, "dispute-ended", details),
            *self._tell(quarrel.commitment.id, ended, now_ms),
        ]

    def _tell(self, commitment_id: bytes, ended: DisputeEnded, now_ms: int) -> list[Effect]:
        owner = self._owner(commitment_id)
        return owner.handle(ended, now_ms) if owner is not None else []

    def _convicted(
        self, accusation: OperatorAccusation, proof: Signed[OperatorFraud], now_ms: int
    ) -> list[Effect]:
        effects: list[Effect] = []
        subject = self._watched(accusation.commitment_id)
        job_id = self._jobs.get(accusation.commitment_id, b"")
        is_party = any(p.quarrel.commitment.id == accusation.commitment_id for p in self.parties.values())
        if job_id or is_party:
            effects.append(Persist("frauds", (job_id or bytes(32)) + proof.id, proof.raw))
        if subject:
            details = {"peer": accusation.accused, "role": accusation.role, "proof": proof.id}
            effects.append(Notify(subject, "fraud-proved", details))
        for umpire in list(self.umpires.values()):
            if self._is_about(umpire, accusation.commitment_id, accusation.chunk, accusation.accused):
                umpire.convicted(accusation.accused)
                effects += self._end_umpire(umpire, now_ms)
        return effects

    @staticmethod
    def _is_about(umpire: Umpire, commitment_id: bytes, chunk: int, accused: bytes) -> bool:
        quarrel = umpire.quarrel
        about = (quarrel.commitment.id, quarrel.chunk) == (commitment_id, chunk)
        return about and accused in quarrel.digests

    # --- A party's -------------------------------------------------------------------------------

    def _join(self, message: Signed[Dispute], now_ms: int) -> list[Effect]:
        if message.id in self.parties:
            return []
        ground = self._ground(message.body.commitment_id)
        if ground is None:
            return []  # About something that is over, or that we never knew.
        quarrel = open_dispute(
            message,
            contract=ground.contract,
            commitment=ground.commitment,
            network=self._node.network,
            crypto=self._node.crypto,
        )
        if ground.contract.terms.is_private:
            raise Rejected("a private job has no disputes: they would publish its input")
        if self._own not in quarrel.digests:
            raise Rejected("we are no party to this dispute")
        if quarrel.verifier not in ground.verifiers:
            raise Rejected("the verifier in this dispute wasn't drawn")
        # Each costs us a trace, so a requester with drawn friends may not ask for many.
        if self._played[quarrel.commitment.id] >= DISPUTES_PER_SEGMENT_MAX:
            raise Rejected(f"more than {DISPUTES_PER_SEGMENT_MAX} disputes about one commitment")
        if len(self.parties) >= DISPUTES_MAX:
            return []
        self._played[quarrel.commitment.id] += 1
        while len(self._played) > RECENT_GOSSIP_MAX:
            del self._played[next(iter(self._played))]
        party = Party(
            quarrel,
            self._own,
            input=ground.input,
            units=ground.units,
            network=self._node.network,
            crypto=self._node.crypto,
            sign=self._node.sign,
        )
        self.parties[quarrel.id] = party
        note = Notify(b"", "disputed", {"commitment": quarrel.commitment.id, "chunk": quarrel.chunk})
        return [note, *self._share(party, party.start(now_ms))]

    def _share(self, party: Party, effects: list[Effect]) -> list[Effect]:
        """One run for all disputes that need the same: an executor may have one with each verifier."""
        shared: list[Effect] = []
        for effect in effects:
            match effect:
                case Run(key, Trace() | OpenValues() as task):
                    run_key, waiting = self._runs.setdefault(task, (key, []))
                    waiting.append(party.quarrel.id)
                    if run_key == key:
                        shared.append(effect)
                case CancelRun((role, *_)):
                    shared += self._unshare(role, party.quarrel.id)
                case _:
                    shared.append(effect)
        return shared

    def _unshare(self, role: str, dispute_id: bytes) -> list[Effect]:
        """A party needs its run no longer; if nobody else does, it ends."""
        for task, (run_key, waiting) in self._runs.items():
            if run_key[0] == role and dispute_id in waiting:
                waiting.remove(dispute_id)
                if waiting:
                    return []
                del self._runs[task]
                return [CancelRun(run_key)]
        # A judgement of its own case is shared with nobody.
        return [CancelRun((role, dispute_id, self.parties[dispute_id].role))]

    def _advance_party(self, party: Party, event: Event, now_ms: int) -> list[Effect]:
        effects = self._share(party, party.handle(event, now_ms))
        quarrel = party.quarrel
        if party.state is not PartyState.DONE or quarrel.id not in self.parties:
            return effects
        if party.accusation is not None:
            effects += self.archive.publish(party.accusation, quarrel.contract.requester, now_ms)
        del self.parties[quarrel.id]
        return effects

    # --- Events ----------------------------------------------------------------------------------

    def hear(self, message: Signed[Any], now_ms: int) -> list[Effect]:
        """A dispute's message, directly from a peer.

        Raises:
            PeerFault: it broke a rule.
        """
        if isinstance(message.body, Dispute):
            return self._join(message, now_ms)
        return self._advance(message.body.dispute_id, Heard(message), now_ms)

    def hear_notice(self, message: Signed[FraudNotice], now_ms: int) -> list[Effect]:
        """Somebody says that it can convict a peer."""
        return self.archive.hear_notice(message, is_ours=self.is_ours(message.body), now_ms=now_ms)

    def is_ours(self, notice: FraudNotice) -> bool:
        """Whether a notice is about a dispute of one of our own jobs."""
        return any(
            self._is_about(umpire, notice.commitment_id, notice.chunk, notice.accused)
            for umpire in self.umpires.values()
        )

    def timer_fired(self, key: tuple[Any, ...], now_ms: int) -> list[Effect]:
        """A move, a dispute or a part of a proof is overdue."""
        if key[0] == "evidence":
            return self.archive.timer_fired(key[1], now_ms)
        return self._advance(key[1], TimerFired(key), now_ms)

    def run_event(self, event: RunEvent, now_ms: int) -> list[Effect]:
        """A worker traced, opened or judged something."""
        if event.key[0] == "judge":
            return self.archive.run_event(event, now_ms)
        for task, (run_key, waiting) in self._runs.items():
            if run_key == event.key:
                del self._runs[task]
                return [effect for one in waiting for effect in self._advance(one, event, now_ms)]
        return self._advance(event.key[1], event, now_ms)

    def _advance(self, dispute_id: bytes, event: Event, now_ms: int) -> list[Effect]:
        umpire = self.umpires.get(dispute_id)
        if umpire is not None:
            return self._advance_umpire(umpire, event, now_ms)
        party = self.parties.get(dispute_id)
        return self._advance_party(party, event, now_ms) if party is not None else []
