"""The executor's side of one contract: run, stream, commit segment by segment, open, be paid.

A segment is committed once it is full and the next unit (or the end) has come, because the last
segment must say that it is the last. Results are streamed on credit: beyond what the requester may owe,
they wait for its vouchers.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from p2p_node.core.disputes import Ground
from p2p_node.core.kept import KeptContract, KeptSegment, segment_key
from p2p_node.core.surroundings import Surroundings
from protocols.codec import encode
from protocols.effects import CancelRun, Effect, Execute, Notify, Persist, Publish, Run, Send, SetTimer
from protocols.envelope import Signed
from protocols.errors import Rejected
from protocols.events import (
    Event,
    Heard,
    RunChunk,
    RunFailed,
    RunFinished,
    RunOutput,
    RunProgress,
    TimerFired,
)
from protocols.lane import PayeeLane
from protocols.limits import OUTPUT_UNITS_PER_MESSAGE_MAX
from protocols.messages import (
    Acceptance,
    Award,
    Cancel,
    Commitment,
    CommitmentNotice,
    ExecutionFailed,
    OpeningRequest,
    Output,
    Progress,
    Voucher,
    VoucherReceipt,
)
from protocols.units import chunk_count
from verification.evidence import Contract
from verification.findings import numerics
from verification.prover import Prover

__all__ = ["PAUSED", "Engagement", "EngagementState"]

PAUSED = "paused"
"""Reason of an executor that hands a contract back because its owner wants the machine."""

SETTLE_MS = 120_000
"""After the last commitment, or while the requester's credit is used up, how long the executor waits."""


PROGRESS_PACE_MS = 500
"""How often the requester hears what we are at, while that stays the same."""

OUTPUT_PACE_MS = 100
"""Output that comes sooner after the last goes out together: each message is signed, sent and checked."""


class EngagementState(enum.Enum):
    """Where an engagement stands."""

    RUNNING = "running"
    COMMITTED = "awaiting verification"
    DONE = "done"


class Engagement:
    """Feed it events with `handle`; it is over when `state` is DONE."""

    def __init__(
        self,
        node: Surroundings,
        award: Signed[Award],
        *,
        input: bytes,
        prefix: tuple[int, ...],
        device: str,
        eta_ms: int,
    ) -> None:
        self.award = award
        self.state = EngagementState.RUNNING
        self.acceptance: Signed[Acceptance] = node.sign(Acceptance(award.id, device, eta_ms))
        self.contract = Contract(award, self.acceptance)
        self.lane = PayeeLane(award.id, payer=award.signer, payee=award.body.executor)
        self._node = node
        self._input = input
        self._prefix = prefix
        self._units = list(prefix)
        self._sent_units = self._covered_units = len(prefix)
        self._is_held = False
        self._phase, self._progress_ms = "", 0
        self._output_due_ms = 0
        self._is_output_waiting = False
        self._digests: dict[int, bytes] = {}
        self._has_output_all = False
        self._done_ms = 0
        self._prover = Prover(
            self.contract, secret=node.secret, network=node.network, crypto=node.crypto, sign=node.sign
        )

    @property
    def run_key(self) -> tuple[str, bytes]:
        """The key of the run in the worker."""
        return ("execute", self.award.id)

    def start(self, now_ms: int) -> list[Effect]:
        """Accept and run."""
        terms = self.award.body
        self._node.route(self.award.id, self)
        task = Execute(
            terms.workload,
            terms.model,
            numerics(terms),
            self._input,
            self._prefix,
            sources=(self.award.signer,),
            private_to=self.award.signer if terms.is_private else b"",
        )
        return [
            Persist("contracts", self.award.id, self._kept()),
            Notify(b"", "engaged", {"award": self.award.id, "requester": self.award.signer}),
            Send(self.award.signer, self.acceptance, terms.accept_by_ms),
            Run(self.run_key, task),
            SetTimer(("engagement", self.award.id, "finish"), terms.finish_by_ms),
        ]

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        """React to the worker, the requester or a timer.

        Raises:
            Rejected: the sender broke a rule.
        """
        match event:
            case Heard(message) if isinstance(message.body, Voucher):
                return self._hear_voucher(message, now_ms)
            case Heard(message) if isinstance(message.body, OpeningRequest):
                opening = self._prover.open(message)
                return [Send(message.signer, opening, now_ms + self.award.body.answer_within_ms)]
            case Heard(message) if isinstance(message.body, Cancel):
                if message.signer != self.award.signer:
                    raise Rejected("cancel isn't the requester's")
                return self._stop(f"cancelled: {message.body.reason}", now_ms)
            case RunOutput(first_unit=first, units=units) if self.state is EngagementState.RUNNING:
                return self._produce(first, units, now_ms)
            case RunChunk(chunk=chunk, digest=digest) if self.state is EngagementState.RUNNING:
                self._digests[chunk] = digest
                return self._deliver(now_ms)
            case RunProgress() if self.state is EngagementState.RUNNING:
                return self._tell_progress(event, now_ms)
            case RunFinished() if self.state is EngagementState.RUNNING:
                self._has_output_all = True
                return self._finish(now_ms)
            case RunFailed(reason=reason, detail=detail) if self.state is EngagementState.RUNNING:
                return self._fail(reason, detail, now_ms)
            case TimerFired((_, _, "output")):
                self._is_output_waiting = False
                return self._deliver(now_ms) if self.state is EngagementState.RUNNING else []
            case TimerFired((_, _, "finish")) if self.state is EngagementState.RUNNING:
                return self._fail("deadline", "the contract's deadline passed", now_ms)
            case TimerFired((_, _, "credit")) if self._is_held and self.state is EngagementState.RUNNING:
                return self._fail("credit", "what was delivered isn't paid for", now_ms)
            case TimerFired((_, _, "settle")):
                return self._stop("no verdict came" if self.lane.best is None else "over", now_ms)
        return []

    def hand_back(self, why: str, now_ms: int) -> list[Effect]:
        """Stop at the last committed segment; what was committed to is still opened and paid for."""
        return self._fail(PAUSED, why, now_ms) if self.state is EngagementState.RUNNING else []

    def ground(self, commitment_id: bytes) -> Ground | None:
        """What it takes to trace a chunk of one of our commitments."""
        commitment = next((c for c in self._prover.commitments if c.id == commitment_id), None)
        if commitment is None:
            return None
        units = tuple(self._units[: commitment.body.units_total])
        drawn = frozenset(self._prover.drawn.get(commitment_id, ()))
        return Ground(self.contract, commitment, self._input, units, drawn)

    def is_forgettable(self, now_ms: int) -> bool:
        """Whether it is over for so long that neither a request to open nor a voucher can come."""
        # What was committed to before a contract ended is verified: blind verdicts and revealed ones.
        kept_ms = SETTLE_MS + 2 * self.award.body.answer_within_ms
        return self.state is EngagementState.DONE and now_ms >= self._done_ms + kept_ms

    # --- Output and commitments ------------------------------------------------------------------

    def _produce(self, first_unit: int, units: tuple[int, ...], now_ms: int) -> list[Effect]:
        units_max = self.award.body.units_max
        if first_unit + len(units) > units_max:
            # What the input asks for beyond the terms nobody pays, nor could it be committed to.
            return self._fail("terms", f"the input's output exceeds units_max={units_max}", now_ms)
        self._units[first_unit:] = units
        self._sent_units = min(self._sent_units, first_unit)
        return self._deliver(now_ms)

    def _tell_progress(self, event: RunProgress, now_ms: int) -> list[Effect]:
        if event.phase == self._phase and now_ms - self._progress_ms < PROGRESS_PACE_MS:
            return []
        self._phase, self._progress_ms = event.phase, now_ms
        message = self._node.sign(Progress(self.award.id, event.phase, event.done, event.total))
        # Late news of this kind is none.
        return [Send(self.award.signer, message, now_ms + PROGRESS_PACE_MS)]

    def _finish(self, now_ms: int) -> list[Effect]:
        effects = self._deliver(now_ms)
        if self.state is EngagementState.RUNNING and not self._is_held:
            # Nothing more will come, so waiting would only hold the slot.
            effects += self._fail("incomplete", "the run ended without all of its chunks", now_ms)
        return effects

    def _deliver(self, now_ms: int) -> list[Effect]:
        """Send and commit to what the requester's credit covers; the rest waits for its vouchers."""
        effects: list[Effect] = []
        while self.state is EngagementState.RUNNING:
            self._extend_credit()
            committed = self._commit_ready(now_ms)
            effects += self._send_output(now_ms, is_urgent=bool(committed) or self._has_output_all)
            if not committed:
                break
            effects += committed
        was_held, self._is_held = self._is_held, len(self._units) > self._covered_units
        if self._is_held and not was_held:
            effects.append(SetTimer(("engagement", self.award.id, "credit"), now_ms + SETTLE_MS))
        return effects

    def _extend_credit(self) -> None:
        terms = self.award.body
        # The segment in hand and the next: nobody waits while one is checked.
        segments = len(self._prover.commitments) + 2
        if self._node.credit.is_good(self.award.signer, terms.chunk_units * terms.price_micros):
            first = terms.prefix_units // terms.chunk_units
            self._covered_units = (first + segments * terms.segment_chunks) * terms.chunk_units

    def _send_output(self, now_ms: int, *, is_urgent: bool) -> list[Effect]:
        effects: list[Effect] = []
        end = min(len(self._units), self._covered_units)
        waiting = end - self._sent_units
        if not is_urgent and now_ms < self._output_due_ms and waiting < OUTPUT_UNITS_PER_MESSAGE_MAX:
            if waiting > 0 and not self._is_output_waiting:
                self._is_output_waiting = True
                effects.append(SetTimer(("engagement", self.award.id, "output"), self._output_due_ms))
            return effects
        if waiting > 0:
            self._output_due_ms = now_ms + OUTPUT_PACE_MS
        while self._sent_units < end:
            first, last = self._sent_units, min(end, self._sent_units + OUTPUT_UNITS_PER_MESSAGE_MAX)
            output = self._node.sign(Output(self.award.id, first, tuple(self._units[first:last])))
            effects.append(Send(self.award.signer, output, self.award.body.finish_by_ms))
            self._sent_units = last
        return effects

    def _commit_ready(self, now_ms: int) -> list[Effect]:
        terms = self.award.body
        segment = len(self._prover.commitments)
        first = terms.prefix_units // terms.chunk_units + segment * terms.segment_chunks
        end_unit = (first + terms.segment_chunks) * terms.chunk_units
        is_over = self._has_output_all and len(self._units) <= end_unit
        units = self._units[: min(end_unit, len(self._units))]
        # What is shorter than it may be ends with the stop unit: a full segment without it isn't the last.
        is_full = len(units) == end_unit < terms.units_max and units[-1] != terms.stop_unit
        if not (is_over or is_full or len(self._units) > end_unit) or len(units) > self._covered_units:
            return []
        chunks = range(first, chunk_count(len(units), terms.chunk_units))
        if not chunks or any(chunk not in self._digests for chunk in chunks):
            return []
        return self._commit(chunks, units, is_over, now_ms)

    def _commit(self, chunks: range, units: list[int], is_final: bool, now_ms: int) -> list[Effect]:
        terms = self.award.body
        before = self._prover.commitments[-1].body.units_total if self._prover.commitments else None
        findings = tuple(self._digests[chunk] for chunk in chunks)
        commitment = self._prover.commit(findings, units, final=is_final)
        self._node.route(commitment.id, self)
        first_unit = before or terms.prefix_units
        self._book(len(units) - first_unit)
        kept = KeptSegment(commitment.raw, findings, tuple(units[first_unit:]))
        effects: list[Effect] = [
            Send(self.award.signer, commitment, terms.finish_by_ms),
            Publish("jobs", self._notice(commitment)),
        ]
        if not terms.is_private:
            key = segment_key(self.award.id, commitment.body.segment)
            effects.insert(0, Persist("contracts", key, encode(kept)))
        if is_final:
            self.state = EngagementState.COMMITTED
            effects.append(SetTimer(("engagement", self.award.id, "settle"), now_ms + SETTLE_MS))
        return effects

    def _book(self, units: int) -> None:
        worth = units * self.award.body.price_micros
        self.lane.deliver(worth)
        self._node.credit.deliver(self.award.signer, worth)

    def _notice(self, commitment: Signed[Commitment]) -> Signed[CommitmentNotice]:
        return self._node.sign(CommitmentNotice(self.award.raw, self.acceptance.raw, commitment.raw))

    # --- Over a restart --------------------------------------------------------------------------

    def _kept(self) -> bytes:
        if self.award.body.is_private:
            # Input and output don't go to a disk of ours: a crash costs us this contract, and what we
            # took on is remembered all the same.
            return self.acceptance.raw
        depth = self._node.rooms.depth_of_job(self.award.body.job_id)
        return encode(KeptContract(self.award.raw, self.acceptance.raw, self._input, self._prefix, depth))

    def restore(
        self,
        segments: Sequence[tuple[Signed[Commitment], KeptSegment]],
        voucher: Signed[Voucher] | None,
        now_ms: int,
    ) -> list[Effect]:
        """Take up a contract of before a restart, in place of `start`.

        What was committed to is delivered once more, opened and paid for; what wasn't is handed back, since
        the run is gone.

        Args:
            segments: what was committed to, in order.
            voucher: the newest one that came.
            now_ms: the time.
        """
        self._node.route(self.award.id, self)
        for commitment, kept in segments:
            self._prover.restore(commitment, kept.findings)
            self._node.route(commitment.id, self)
            self._units.extend(kept.units)
            self._book(len(kept.units))
        if voucher is not None:
            self.lane.accept(voucher, now_ms)
            self._node.credit.settle(self.award.signer, self.lane.settled_micros)
        is_paid = bool(segments) and self.lane.sequence >= len(segments)
        is_final = bool(segments) and segments[-1][0].body.final
        if now_ms > self.award.body.finish_by_ms + SETTLE_MS or (is_final and is_paid):
            self.state, self._done_ms = EngagementState.DONE, now_ms
            return []
        self._covered_units = len(self._units)
        effects = self._send_output(now_ms, is_urgent=True)
        for commitment, _ in segments:
            effects.append(Send(self.award.signer, commitment, self.award.body.finish_by_ms))
            effects.append(Publish("jobs", self._notice(commitment)))
        if not is_final:
            return [*effects, *self._fail(PAUSED, "the node was restarted", now_ms)]
        self.state = EngagementState.COMMITTED
        return [*effects, SetTimer(("engagement", self.award.id, "settle"), now_ms + SETTLE_MS)]

    def forget(self) -> list[Effect]:
        """It is over: nothing of it needs to be found after a restart but what is unpaid."""
        keys = [segment_key(self.award.id, number) for number in range(len(self._prover.commitments))]
        return [Persist("contracts", key, None) for key in (self.award.id, *keys)]

    # --- Payment and endings ---------------------------------------------------------------------

    def _hear_voucher(self, message: Signed[Voucher], now_ms: int) -> list[Effect]:
        before = self.lane.settled_micros
        is_news = self.lane.accept(message, now_ms)
        self._node.credit.settle(self.award.signer, self.lane.settled_micros - before)
        receipt = self._node.sign(VoucherReceipt(message.id, message.body.settled_micros))
        effects: list[Effect] = [Send(self.award.signer, receipt, now_ms + 60_000)]
        if is_news:
            effects.insert(0, Persist("vouchers", self.award.id + self.award.body.executor, message.raw))
            effects.append(
                Notify(
                    b"",
                    "earned",
                    {
                        "settled_micros": self.lane.settled_micros,
                        "requester": self.award.signer,
                        "award": self.award.id,
                    },
                )
            )
        # By segments, not by money: where the price is 0 nothing is ever owed, and openings still are.
        is_all_paid = self.lane.sequence >= len(self._prover.commitments)
        if is_all_paid and self.state is EngagementState.COMMITTED:
            self.state, self._done_ms = EngagementState.DONE, now_ms
        return effects + self._deliver(now_ms)

    def _fail(self, reason: str, detail: str, now_ms: int) -> list[Effect]:
        message = self._node.sign(ExecutionFailed(self.award.id, reason[:64], detail[:250]))
        return [*self._stop(f"failed: {reason}", now_ms), Send(self.award.signer, message, now_ms + 60_000)]

    def _stop(self, why: str, now_ms: int) -> list[Effect]:
        was_running = self.state is EngagementState.RUNNING
        if self.state is EngagementState.DONE:
            return []
        self.state, self._done_ms = EngagementState.DONE, now_ms
        effects: list[Effect] = [Notify(b"", "disengaged", {"award": self.award.id, "why": why})]
        return [CancelRun(self.run_key), *effects] if was_running else effects
