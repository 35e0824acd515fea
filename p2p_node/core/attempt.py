"""The requester's side of one award: from the proposal to the last verified segment.

Segments are verified while later ones are still being computed, and paid in order. Whatever goes
wrong ends the attempt with a typed outcome; what was verified before stays verified, stays paid,
and is where the next attempt goes on.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

from p2p_node.core.engagement import PAUSED
from p2p_node.core.kept import KeptVerdict
from p2p_node.core.payouts import Payouts
from p2p_node.core.request import JobRequest
from p2p_node.core.sampling import PPB, SamplingPlan
from p2p_node.core.surroundings import Surroundings
from protocols.auction import Candidate
from protocols.effects import (
    CancelRun,
    Effect,
    FetchBlobs,
    Notify,
    Persist,
    Publish,
    Run,
    Send,
    SetTimer,
)
from protocols.envelope import Signed
from protocols.errors import Rejected
from protocols.events import (
    INPUT_MISSING,
    NO_ROOM,
    DisputeEnded,
    Event,
    Heard,
    RunEvent,
    RunFailed,
    RunFetched,
    RunProgress,
    TimerFired,
)
from protocols.messages import (
    Acceptance,
    AttemptRecord,
    Award,
    Cancel,
    Commitment,
    ExecutionFailed,
    Offer,
    Output,
    Progress,
    Proposal,
    Refusal,
    SegmentRecord,
    VerifierRecord,
    VoucherReceipt,
)
from protocols.units import chunk_count, units_digest
from verification.electorate import Electorate
from verification.evidence import (
    Contract,
    check_chain,
    check_commitment,
    check_contract,
    check_units,
)
from verification.round import Round, RoundState, Verdict

__all__ = ["DECEITS", "EXECUTOR_FAULTS", "Attempt", "Outcome"]

ACCEPT_MS = 5_000
"""An executor answers an award within this time, or the runner-up gets it."""


FETCH_TOLD_MS = 500
"""How often whoever follows a job hears how much of its output is here."""

RECONNECT_MS = 5_000
"""An executor whose link broke must be linked again within this time."""


class Outcome(enum.Enum):
    """How an attempt ended."""

    VERIFIED = "verified"
    REFUSED = "refused"
    UNRESPONSIVE = "unresponsive"
    FAILED = "execution failed"
    INCONSISTENT = "output and commitment differ"
    FRAUD = "fraud"
    WITHHELD = "opening withheld"
    OUTPUT_WITHHELD = "output withheld"
    INPUT_MISSING = "input not fetched"
    NO_ROOM = "no room for the output"
    UNVERIFIED = "no verifier answered"
    UNSETTLED = "a dispute couldn't be recomputed"
    PAUSED = "handed back"
    CANCELLED = "cancelled"


_ROUND_OUTCOMES = {
    Verdict.FRAUD: Outcome.FRAUD,
    Verdict.WITHHELD: Outcome.WITHHELD,
    Verdict.UNVERIFIED: Outcome.UNVERIFIED,
    Verdict.UNSETTLED: Outcome.UNSETTLED,
}

EXECUTOR_FAULTS = frozenset(
    {
        Outcome.UNRESPONSIVE,
        Outcome.FAILED,
        Outcome.INCONSISTENT,
        Outcome.FRAUD,
        Outcome.WITHHELD,
        Outcome.OUTPUT_WITHHELD,
    }
)
"""Outcomes that lower the executor's standing."""

DECEITS = frozenset({Outcome.INCONSISTENT, Outcome.FRAUD, Outcome.WITHHELD})
"""Those among them of an executor that lied, or wouldn't show what it had committed to."""


class Attempt:
    """Feed it events with `handle`; when `outcome` is set, read `verified` and go on."""

    def __init__(
        self,
        node: Surroundings,
        request: JobRequest,
        offer: Signed[Offer],
        candidate: Candidate,
        electorate: Electorate,
        *,
        plan: SamplingPlan,
        numeric_class: str = "",
        price_micros: int,
        prefix: tuple[int, ...],
        index: int,
        job_id: bytes,
        route: Callable[[bytes], None],
        now_ms: int,
    ) -> None:
        self.request = request
        self.candidate = candidate
        self.plan = plan
        self.job_id = job_id
        self.outcome: Outcome | None = None
        self.detail = ""
        self._handed_back: str | None = None
        """Why the executor gave the contract back, while what it committed to is being verified."""
        self._is_closing = False
        """Nobody verified some segment: no more is wanted, but the rounds that go on are seen through."""
        self.contract: Contract | None = None
        self.verified = prefix
        self.started_ms = now_ms
        self.rounds: dict[bytes, Round] = {}
        self._node = node
        self._route = route
        self._offer = offer
        self._electorate = electorate
        self._prefix = prefix
        self._units: list[int] = list(prefix)
        self._early: dict[int, tuple[int, ...]] = {}
        self._early_units = 0
        self._commitments: list[Signed[Commitment]] = []
        self._paid: set[bytes] = set()
        """Commitments that the executor was paid for."""
        self._waiting: list[Signed[Commitment]] = []
        self._progress_ms = now_ms
        self._fetches: dict[bytes, int] = {}
        """Commitments whose blobs are on their way, and when the last piece came."""
        self._undelivered: set[bytes] = set()
        """Commitments whose blobs aren't all here."""
        self._fetch_told_ms = now_ms
        award = Award(
            job_id=offer.id,
            attempt=index,
            executor=candidate.peer,
            basis=candidate.basis.id,
            workload=request.workload,
            model=request.model,
            profile=request.profile,
            input_digest=offer.body.input_digest,
            units_max=request.units_max,
            stop_unit=request.stop_unit,
            chunk_units=request.chunk_units,
            segment_chunks=request.segment_chunks,
            prefix_units=len(prefix),
            prefix_digest=units_digest(prefix),
            price_micros=price_micros,
            verifier_fee_micros=request.verifier_fee_micros,
            expected_verifiers_milli=plan.choice.expected_milli,
            samples=plan.choice.samples,
            electorate_root=electorate.root,
            electorate_weight=electorate.total_weight,
            electorate_count=electorate.count,
            electorate_weight_max=max(member.weight for member in electorate.members),
            sent_ms=now_ms,
            accept_by_ms=now_ms + ACCEPT_MS,
            finish_by_ms=min(now_ms + request.execution_ms, offer.body.expires_ms),
            answer_within_ms=request.answer_ms,
            numeric_class=numeric_class,
            tolerance=request.tolerance,
            is_private=request.is_private,
        )
        self.award: Signed[Award] = node.sign(award)
        self.payouts = Payouts(node, self.award.id, job_id=job_id, route=route)

    @property
    def parties(self) -> frozenset[bytes]:
        """The executor, and the verifiers drawn in rounds that go on."""
        rounds = [round_ for round_ in self.rounds.values() if round_.state is not RoundState.DONE]
        return frozenset({self.candidate.peer}).union(*(round_.entries for round_ in rounds))

    def start(self) -> list[Effect]:
        """Propose the award."""
        self._route(self.award.id)
        terms = self.award.body
        proposal = self._node.sign(
            Proposal(
                self.award.raw,
                self._offer.raw,
                self.request.input,
                self._prefix,
                self._electorate.members,
                self._node.rooms.depth_of_job(self._offer.id),
            )
        )
        return [
            Notify(
                self.job_id,
                "awarded",
                {
                    "peer": self.candidate.peer,
                    "price_micros": terms.price_micros,
                    "score_micros": self.candidate.score_micros,
                    "eta_ms": self.candidate.eta_ms,
                    "electorate": terms.electorate_count,
                    "verifiers_milli": round(1_000 * self.plan.choice.verifiers),
                    "samples": terms.samples,
                    "escape_ppb": round(PPB * self.plan.choice.escape),
                    "resumes_at": len(self._prefix),
                },
            ),
            Send(self.candidate.peer, proposal, terms.accept_by_ms),
            SetTimer(self._timer_key("accept"), terms.accept_by_ms),
        ]

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        """React to the executor, a verifier, a run or a timer.

        Raises:
            Rejected: the sender broke a rule.
        """
        match event:
            case Heard(message) if isinstance(message.body, VoucherReceipt):
                self.payouts.hear_receipt(message)
                return []
            case Heard(message) if self.outcome is not None:
                return []
            case Heard(message) if isinstance(
                message.body, Acceptance | Refusal | Output | Progress | Commitment | ExecutionFailed
            ):
                if message.signer != self.candidate.peer:
                    raise Rejected(f"{message.body.KIND!r} isn't from the awarded executor")
                return self._hear_executor(message, now_ms)
            case Heard(message):
                return self._hear_in_round(message, now_ms)
            case TimerFired(("round", commitment_id, *_)):
                return self._advance(commitment_id, event, now_ms)
            case TimerFired(("attempt", _, name)):
                return self._on_timer(name, now_ms)
            case TimerFired():
                return []
        return self._on_run(event, now_ms)

    # --- The executor ----------------------------------------------------------------------------

    def _hear_executor(self, message: Signed[Any], now_ms: int) -> list[Effect]:
        body = message.body
        if self._is_closing:
            return []  # It was told to stop.
        if isinstance(body, Acceptance):
            return self._accept(message, now_ms)
        if isinstance(body, Refusal):
            if self.contract is None:
                return self._end(Outcome.REFUSED, f"{body.reason}: {body.detail}")
            return []
        if isinstance(body, ExecutionFailed) and body.reason == PAUSED:
            self._handed_back = body.detail
            return self._end_if_handed_back()
        if isinstance(body, ExecutionFailed):
            # Who couldn't get the input isn't to blame: whoever should have served it may be.
            outcome = Outcome.INPUT_MISSING if body.reason == INPUT_MISSING else Outcome.FAILED
            return self._end(outcome, f"{body.reason}: {body.detail}")
        if isinstance(body, Progress):
            return self._hear_progress(body, now_ms)
        if isinstance(body, Output):
            return self._hear_output(body, now_ms)
        return self._hear_commitment(message, now_ms)

    def _accept(self, message: Signed[Acceptance], now_ms: int) -> list[Effect]:
        if self.contract is not None:
            return []
        self.contract = check_contract(self.award, message)
        self._progress_ms = now_ms
        return [
            Notify(self.job_id, "accepted", {"peer": message.signer, "device": message.body.device}),
            SetTimer(self._timer_key("finish"), self.award.body.finish_by_ms),
            SetTimer(self._timer_key("stall"), now_ms + self.request.stall_ms),
            *self._retry_waiting(now_ms),
        ]

    def _hear_progress(self, body: Progress, now_ms: int) -> list[Effect]:
        self._progress_ms = now_ms
        details = {"peer": self.candidate.peer, "phase": body.phase, "done": body.done, "total": body.total}
        return [Notify(self.job_id, "progress", details)]

    def _hear_output(self, body: Output, now_ms: int) -> list[Effect]:
        self._progress_ms = now_ms
        end = body.first_unit + len(body.units)
        if end > self.award.body.units_max:
            raise Rejected(f"output up to unit {end} exceeds units_max={self.award.body.units_max}")
        if body.first_unit > len(self._units):
            return self._hold_output(body)
        first = len(self._units)
        self._append(body.first_unit, body.units)
        for start in sorted(self._early):
            if start > len(self._units):
                break
            held = self._early.pop(start)
            self._early_units -= len(held)
            self._append(start, held)
        fresh = tuple(self._units[first:])
        effects: list[Effect] = []
        if fresh:
            effects.append(Notify(self.job_id, "output", {"first_unit": first, "units": fresh}))
        return effects + self._retry_waiting(now_ms)

    def _hold_output(self, body: Output) -> list[Effect]:
        """Keep output that overtook an earlier part. Honest parts don't overlap, which bounds them."""
        if not body.units or body.first_unit in self._early:
            return []
        if self._early_units + len(body.units) > self.award.body.units_max:
            raise Rejected(f"outputs overlap: more than units_max={self.award.body.units_max} units in all")
        self._early[body.first_unit] = body.units
        self._early_units += len(body.units)
        return []

    def _append(self, first_unit: int, units: tuple[int, ...]) -> None:
        self._units.extend(units[len(self._units) - first_unit :])

    def _hear_commitment(self, message: Signed[Commitment], now_ms: int) -> list[Effect]:
        self._progress_ms = now_ms
        if self._is_closing or any(known.id == message.id for known in (*self._commitments, *self._waiting)):
            return []
        if any(known.body.segment == message.body.segment for known in self._waiting):
            return self._end(Outcome.INCONSISTENT, f"two commitments for segment {message.body.segment}")
        terms = self.award.body
        segments_max = chunk_count(chunk_count(terms.units_max, terms.chunk_units), terms.segment_chunks)
        if message.body.segment >= segments_max:
            raise Rejected(f"commitment segment={message.body.segment} must be below {segments_max}")
        self._waiting.append(message)
        return self._retry_waiting(now_ms)

    def _retry_waiting(self, now_ms: int) -> list[Effect]:
        """Start rounds for commitments whose contract and units are here; messages may overtake."""
        effects: list[Effect] = []
        if self.contract is None or self._is_closing:
            return effects
        for message in sorted(self._waiting, key=lambda waiting: waiting.body.segment):
            body = message.body
            if body.segment < len(self._commitments):
                return effects + self._end(
                    Outcome.INCONSISTENT, f"two commitments for segment {body.segment}"
                )
            if body.segment > len(self._commitments) or body.units_total > len(self._units):
                break
            self._waiting.remove(message)
            try:
                check_commitment(self.contract, message)
                check_chain(self._commitments[-1] if self._commitments else None, message)
                check_units(self.contract, body, self._units[: body.units_total])
            except Rejected as error:
                return effects + self._end(Outcome.INCONSISTENT, str(error))
            self._commitments.append(message)
            effects += self._start_round(self.contract, message, now_ms)
        return effects

    def _start_round(self, contract: Contract, commitment: Signed[Commitment], now_ms: int) -> list[Effect]:
        self._route(commitment.id)
        round_ = Round(
            contract,
            commitment,
            electorate=self._electorate,
            input=self.request.input,
            units=self._units[: commitment.body.units_total],
            draw_window_ms=self.request.draw_window_ms,
            job_id=self.job_id,
            network=self._node.network,
            crypto=self._node.crypto,
            sign=self._node.sign,
        )
        self.rounds[commitment.id] = round_
        self.payouts.touched.add(commitment.id)
        body = commitment.body
        return [
            Notify(
                self.job_id,
                "committed",
                {
                    "segment": body.segment,
                    "chunks": body.chunks,
                    "units_total": body.units_total,
                    "final": body.final,
                    "root": body.root,
                },
            ),
            *round_.start(now_ms),
            *self._fetch_output(commitment, now_ms),
        ]

    # --- Output that is blobs --------------------------------------------------------------------

    def _fetch_output(self, commitment: Signed[Commitment], now_ms: int) -> list[Effect]:
        """Have what the segment's units name: a name alone isn't delivered."""
        if not self.request.has_output_blobs:
            return []
        self._fetches[commitment.id] = now_ms
        self._undelivered.add(commitment.id)
        task = FetchBlobs(
            self.request.workload,
            self.request.input,
            tuple(self._units[: commitment.body.units_total]),
            sources=(self.candidate.peer,),
            private_job=self.job_id if self.request.is_private else b"",
        )
        return [
            Run(("outputs", commitment.id), task),
            SetTimer(self._timer_key("outputs"), now_ms + self.request.stall_ms),
        ]

    def _on_fetch(self, event: RunEvent, now_ms: int) -> list[Effect]:
        commitment_id = event.key[1]
        if commitment_id not in self._fetches or self.outcome is not None:
            return []
        match event:
            case RunProgress(done=done, total=total):
                self._fetches[commitment_id] = now_ms
                if now_ms - self._fetch_told_ms < FETCH_TOLD_MS:
                    return []
                self._fetch_told_ms = now_ms
                details = {"peer": self.candidate.peer, "phase": "collecting", "done": done, "total": total}
                return [Notify(self.job_id, "progress", details)]
            case RunFetched():
                del self._fetches[commitment_id]
                self._undelivered.discard(commitment_id)
                return self._settle_in_order(now_ms)
            case RunFailed(reason=reason, detail=detail):
                del self._fetches[commitment_id]
                outcome = Outcome.NO_ROOM if reason == NO_ROOM else Outcome.OUTPUT_WITHHELD
                return self._end(outcome, detail)
        return []

    def _check_fetches(self, now_ms: int) -> list[Effect]:
        if not self._fetches:
            return []
        due = min(self._fetches.values()) + self.request.stall_ms
        if now_ms < due:
            return [SetTimer(self._timer_key("outputs"), due)]
        return self._end(Outcome.OUTPUT_WITHHELD, f"no piece of it came for {self.request.stall_ms} ms")

    # --- Verification ----------------------------------------------------------------------------

    def _hear_in_round(self, message: Signed[Any], now_ms: int) -> list[Effect]:
        commitment_id = getattr(message.body, "commitment_id", b"")
        return self._advance(commitment_id, Heard(message), now_ms)

    def _on_run(self, event: RunEvent | DisputeEnded, now_ms: int) -> list[Effect]:
        if event.key[0] == "outputs" and not isinstance(event, DisputeEnded):
            return self._on_fetch(event, now_ms)
        return self._advance(event.key[1], event, now_ms)

    def _advance(self, commitment_id: bytes, event: Event, now_ms: int) -> list[Effect]:
        round_ = self.rounds.get(commitment_id)
        if round_ is None or round_.state is RoundState.DONE or self.outcome is not None:
            return []
        self._progress_ms = now_ms
        effects = round_.handle(event, now_ms)
        if round_.verdict is not None:
            effects += self._round_done(round_, round_.verdict, now_ms)
        elif round_.state is RoundState.SETTLING:
            parties = frozenset({self.candidate.peer, *round_.quarrels()})
            self.payouts.hold(commitment_id, parties)
            effects += self._node.disputes.begin(round_, now_ms)
        return effects

    def _round_done(self, round_: Round, verdict: Verdict, now_ms: int) -> list[Effect]:
        self.payouts.touched.add(round_.commitment.id)
        effects: list[Effect] = [
            Notify(
                self.job_id,
                "segment-verdict",
                {
                    "segment": round_.commitment.body.segment,
                    "verdict": verdict.value,
                    "chunk": round_.guilty_chunk,
                    "executor": self.candidate.peer,
                },
            )
        ]
        effects += self.payouts.release(round_.commitment.id, now_ms)
        for entry in round_.entries.values():
            if entry.is_payable:
                fee = self.award.body.verifier_fee_micros * len(entry.chunks)
                self._node.standings.record_work(entry.claim.signer, len(entry.chunks), now_ms)
                effects += self.payouts.pay(entry.claim.signer, fee, round_.commitment.id, now_ms)
        for proof in map(self._node.sign, round_.proofs):
            effects.append(Persist("frauds", self.job_id + proof.id, proof.raw))
            # It shows the job's input: of a private job it stays with us, and with its receipt.
            if not self.request.is_private:
                effects.append(Publish("convictions", proof))
        if verdict is Verdict.UNVERIFIED:
            effects += self._begin_closing()
        elif verdict is not Verdict.VERIFIED:
            return effects + self._end(_ROUND_OUTCOMES[verdict], "")
        return effects + self._settle_in_order(now_ms)

    def _settle_in_order(self, now_ms: int) -> list[Effect]:
        effects: list[Effect] = []
        before, is_unbroken = len(self._prefix), True
        for commitment in self._commitments:
            body, verdict = commitment.body, self.rounds[commitment.id].verdict
            first_unit, before = before, body.units_total
            if verdict is Verdict.UNVERIFIED:
                # Verifiers that kept silent cost the executor this segment, not those behind it.
                is_unbroken = False
                continue
            if verdict is not Verdict.VERIFIED or commitment.id in self._undelivered:
                break
            if commitment.id in self._paid:
                continue
            self._paid.add(commitment.id)
            amount = (body.units_total - first_unit) * self.award.body.price_micros
            self._node.standings.record_work(self.candidate.peer, body.chunks, now_ms)
            effects += self.payouts.pay(self.candidate.peer, amount, commitment.id, now_ms)
            if not is_unbroken:
                continue
            self.verified = tuple(self._units[: body.units_total])
            if body.final:
                effects += self._end(Outcome.VERIFIED, "")
        return effects + self._end_if_handed_back() + self._end_if_closed()

    def _begin_closing(self) -> list[Effect]:
        """Let the executor stop: what it would still make is made anew."""
        if self._is_closing:
            return []
        self._is_closing = True
        return [self._send_cancel(Outcome.UNVERIFIED)]

    def _end_if_closed(self) -> list[Effect]:
        """Once no round goes on and no blob is on its way."""
        if not self._is_closing or self.outcome is not None or self._fetches:
            return []
        if any(round_.state is not RoundState.DONE for round_ in self.rounds.values()):
            return []
        return self._end(Outcome.UNVERIFIED, "")

    def _end_if_handed_back(self) -> list[Effect]:
        """Once all that was committed to is verified, so that none of it is done again."""
        if self._handed_back is None or self.outcome is not None:
            return []
        if self._commitments and self._commitments[-1].body.units_total > len(self.verified):
            return []
        return self._end(Outcome.PAUSED, self._handed_back)

    # --- Endings ---------------------------------------------------------------------------------

    def _on_timer(self, name: str, now_ms: int) -> list[Effect]:
        if self.outcome is not None or (self._is_closing and name != "outputs"):
            return []
        if name == "accept" and self.contract is None:
            return self._end(Outcome.UNRESPONSIVE, "no answer to the award")
        if name == "finish" and not self._is_final_committed():
            return self._end(Outcome.UNRESPONSIVE, "the deadline of the contract passed")
        if name == "finish" and self._fetches:
            return self._end(Outcome.OUTPUT_WITHHELD, "not all of it came by the contract's deadline")
        if name == "outputs":
            return self._check_fetches(now_ms)
        if name == "stall":
            # Verification has its own deadlines; a stall is about the executor.
            due = self._progress_ms + self.request.stall_ms
            if self._is_final_committed():
                due = max(due, now_ms + self.request.stall_ms)
            if now_ms < due:
                return [SetTimer(self._timer_key("stall"), due)]
            return self._end(Outcome.UNRESPONSIVE, f"no output for {self.request.stall_ms} ms")
        is_gone = self.candidate.peer not in self._node.connected
        # Once all is committed only the opening is wanted of it, and that has its own deadline.
        if name == "lost" and is_gone and not self._is_final_committed():
            return self._end(Outcome.UNRESPONSIVE, f"gone for {RECONNECT_MS} ms")
        return []

    def link_lost(self, now_ms: int) -> list[Effect]:
        """The link to the executor broke: it has a moment to come back, long before a stall would show."""
        return [SetTimer(self._timer_key("lost"), now_ms + RECONNECT_MS)]

    def _is_final_committed(self) -> bool:
        return bool(self._commitments) and self._commitments[-1].body.final

    def cancel(self, reason: str) -> list[Effect]:
        """Stop on the client's word."""
        return [] if self.outcome is not None else self._end(Outcome.CANCELLED, reason)

    def contradict(self) -> list[Effect]:
        """The executor signed two commitments for one segment: nothing it says binds it."""
        return self._end(Outcome.INCONSISTENT, "two commitments for one segment")

    def _end(self, outcome: Outcome, detail: str) -> list[Effect]:
        if outcome is Outcome.UNRESPONSIVE and self._handed_back is not None:
            # It said that it would be.
            outcome = Outcome.PAUSED
        if self._is_closing and outcome not in _ROUND_OUTCOMES.values():
            outcome = Outcome.UNVERIFIED
        self.outcome, self.detail = outcome, detail
        if outcome in (Outcome.VERIFIED, Outcome.REFUSED):
            return []
        stopped = [CancelRun(("outputs", commitment_id)) for commitment_id in self._fetches]
        self._fetches.clear()
        return [
            *stopped,
            Notify(
                self.job_id,
                "attempt-failed",
                {
                    "peer": self.candidate.peer,
                    "outcome": outcome.value,
                    "detail": detail,
                },
            ),
            *([] if self._is_closing else [self._send_cancel(outcome)]),
        ]

    def _send_cancel(self, outcome: Outcome) -> Send:
        cancel = self._node.sign(Cancel(self.award.id, outcome.name.lower()))
        return Send(self.candidate.peer, cancel, self.award.body.finish_by_ms)

    def _timer_key(self, name: str) -> tuple[str, bytes, str]:
        return ("attempt", self.award.id, name)

    # --- The receipt -----------------------------------------------------------------------------

    def record(self) -> AttemptRecord:
        """This attempt, as the receipt tells it."""
        return AttemptRecord(
            award=self.award.raw,
            acceptance=self.contract.acceptance.raw if self.contract else b"",
            basis=self.candidate.basis.raw,
            outcome=self.outcome.value if self.outcome else "",
            segments=tuple(self._segment_record(commitment) for commitment in self._commitments),
        )

    def take_touched(self) -> list[int]:
        """Segments whose record changed since it was last asked for."""
        touched, self.payouts.touched = self.payouts.touched, set()
        if not touched:
            return []
        return [number for number, known in enumerate(self._commitments) if known.id in touched]

    def segment_numbers(self) -> range:
        """All segments that were committed to."""
        return range(len(self._commitments))

    def kept_segment(self, number: int) -> KeptVerdict:
        """One segment for the store, with its own units."""
        first = self._commitments[number - 1].body.units_total if number else len(self._prefix)
        commitment = self._commitments[number]
        units = tuple(self._units[first : commitment.body.units_total])
        return KeptVerdict(self._segment_record(commitment), units)

    def _segment_record(self, commitment: Signed[Commitment]) -> SegmentRecord:
        round_ = self.rounds[commitment.id]
        fraud = next((p for p in round_.proofs if round_.opening and p.statement == round_.opening.raw), None)
        voucher, receipt = self.payouts.raws(commitment.id, self.candidate.peer)
        return SegmentRecord(
            commitment=commitment.raw,
            widenings=tuple(widening.raw for widening in round_.widenings),
            opening=round_.opening.raw if round_.opening else b"",
            verifiers=tuple(
                VerifierRecord(
                    entry.claim.raw,
                    entry.membership,
                    entry.blind.raw if entry.blind else b"",
                    entry.reveal.raw if entry.reveal else b"",
                    *self.payouts.raws(commitment.id, entry.claim.signer),
                )
                for entry in round_.entries.values()
            ),
            verdict=round_.verdict.value if round_.verdict else "",
            fraud=self._node.sign(fraud).raw if fraud else b"",
            voucher=voucher,
            voucher_receipt=receipt,
            is_delivered=commitment.id not in self._undelivered,
        )
