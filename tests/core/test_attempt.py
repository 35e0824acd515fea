"""The requester's side of one award: output, commitments, payment, and each way it fails."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from p2p_node.core.attempt import EXECUTOR_FAULTS, Attempt, Outcome
from p2p_node.core.request import JobRequest
from p2p_node.core.sampling import plan_sampling
from p2p_node.sim.scenario import job_request
from protocols.auction import Candidate
from protocols.effects import Notify, Persist, Publish, Send, SetTimer
from protocols.errors import Rejected
from protocols.events import Heard, RunRecomputed, TimerFired
from protocols.messages import (
    Acceptance,
    Assignment,
    Cancel,
    ExecutionFailed,
    OpeningRequest,
    Output,
    Proposal,
    Refusal,
    Voucher,
    VoucherReceipt,
)
from tests.support.builders import (
    ELECTORATE,
    EXECUTOR,
    INPUT,
    NOW_MS,
    REQUESTER,
    UNITS,
    advert,
    blind,
    changed,
    claim,
    digests,
    key,
    offer,
    prover,
    reveal,
    signed,
)
from tests.support.machines import core, sent, the
from verification.evidence import Contract

JOB = b"j" * 32


def request(**fields: Any) -> JobRequest:
    base = dataclasses.replace(
        job_request(0),
        input=INPUT,
        segment_chunks=1,
        expected_verifiers_milli=1_000_000,
        execution_ms=60_000,
    )
    return dataclasses.replace(base, **fields)


class Trial:
    """An attempt, and the executor that it is awarded to."""

    def __init__(self, **fields: Any) -> None:
        self.routed: list[bytes] = []
        self.node = core(REQUESTER)
        self.node.connected.add(key(EXECUTOR))
        self.attempt = Attempt(
            self.node,
            request(**fields),
            offer(mode="posted"),
            Candidate(key(EXECUTOR), advert(EXECUTOR), 100, 20, 320),
            ELECTORATE,
            plan=plan_sampling(request(**fields), (1, 1, 1, 1), check_share_ppm=1_000_000),
            price_micros=100,
            prefix=(),
            index=0,
            job_id=JOB,
            route=self.routed.append,
            now_ms=NOW_MS,
        )
        self.id = self.attempt.award.id
        self.started = self.attempt.start()
        self.acceptance = signed(EXECUTOR, Acceptance(self.id, "cpu", 320))
        self.prover = prover(Contract(self.attempt.award, self.acceptance))
        self.truth = digests(self.attempt.award.body)

    def hear(self, body: Any, number: int = EXECUTOR, now_ms: int = NOW_MS) -> list[Any]:
        return self.attempt.handle(Heard(signed(number, body)), now_ms)

    def timer(self, name: str, now_ms: int = NOW_MS) -> list[Any]:
        return self.attempt.handle(TimerFired(("attempt", self.id, name)), now_ms)

    def accepted(self) -> Trial:
        self.attempt.handle(Heard(self.acceptance), NOW_MS)
        return self

    def output(self, first: int, end: int) -> list[Any]:
        return self.hear(Output(self.id, first, UNITS[first:end]))

    def commitments(self, *, variant: bytes = b"") -> list[Any]:
        false = digests(self.attempt.award.body, variant=variant)
        return [
            self.prover.commit(false[:1], UNITS[:32], final=False),
            self.prover.commit(false[1:], UNITS, final=True),
        ]

    def commit(self, commitment: Any) -> list[Any]:
        return self.attempt.handle(Heard(commitment), NOW_MS)

    def verify(self, commitment: Any, number: int = 2) -> list[Any]:
        """One verifier recomputes honestly, all the way to the verdict."""
        chunk = commitment.body.segment
        drawn = claim(number, commitment)
        effects = self.attempt.handle(Heard(drawn), NOW_MS)
        effects += self.attempt.handle(TimerFired(("round", commitment.id, "draw", 0)), NOW_MS)
        results = ((chunk, self.truth[chunk]),)
        hidden = blind(number, commitment, self.truth, claimed=drawn)
        hidden = signed(number, changed(hidden.body, hidden=hidden.body.hidden[chunk : chunk + 1]))
        effects += self.attempt.handle(Heard(hidden), NOW_MS)
        wanted = the(sent(effects, OpeningRequest))
        effects += self.attempt.handle(Heard(self.prover.open(wanted)), NOW_MS)
        shown = reveal(number, commitment, hidden, self.truth)
        return effects + self.hear(changed(shown.body, results=results), number)


def ended(effects: list[Any], outcome: Outcome) -> bool:
    notes = [e.details for e in effects if isinstance(e, Notify) and e.event == "attempt-failed"]
    cancels = [m.body for m in sent(effects, Cancel)]
    return [note["outcome"] for note in notes] == [outcome.value] and [c.reason for c in cancels] == [
        outcome.name.lower()
    ]


# --- The award -----------------------------------------------------------------------------------


def test_the_award_is_proposed_with_all_that_is_needed_to_judge_it() -> None:
    trial = Trial()
    proposal = the(sent(trial.started)).body
    assert isinstance(proposal, Proposal)
    assert (proposal.input, proposal.prefix, proposal.electorate) == (INPUT, (), ELECTORATE.members)
    assert SetTimer(("attempt", trial.id, "accept"), NOW_MS + 5_000) in trial.started
    assert trial.routed == [trial.id]


def test_an_acceptance_makes_the_contract() -> None:
    trial = Trial()
    assert trial.attempt.handle(Heard(trial.acceptance), NOW_MS) != []
    assert trial.attempt.contract is not None
    assert trial.attempt.record().acceptance == trial.acceptance.raw
    assert trial.attempt.handle(Heard(trial.acceptance), NOW_MS) == []


@pytest.mark.parametrize(
    "body",
    [
        Acceptance(bytes(32), "cpu", 1),
        Output(bytes(32), 0, ()),
        Refusal(bytes(32), "busy", ""),
        ExecutionFailed(bytes(32), "memory", ""),
    ],
)
def test_only_the_executor_speaks_for_itself(body: Any) -> None:
    trial = Trial()
    with pytest.raises(Rejected, match="isn't from the awarded executor"):
        trial.hear(changed(body, award_id=trial.id), 3)
    assert trial.attempt.outcome is None


def test_a_refusal_ends_it_without_blame() -> None:
    trial = Trial()
    assert trial.hear(Refusal(trial.id, "busy", "none free")) == []
    assert (trial.attempt.outcome, trial.attempt.detail) == (Outcome.REFUSED, "busy: none free")
    assert Outcome.REFUSED not in EXECUTOR_FAULTS


def test_nobody_refuses_what_it_has_accepted() -> None:
    trial = Trial().accepted()
    assert trial.hear(Refusal(trial.id, "busy", "")) == []
    assert trial.attempt.outcome is None


def test_no_answer_loses_the_award() -> None:
    assert ended(Trial().timer("accept"), Outcome.UNRESPONSIVE)
    assert Trial().accepted().timer("accept") == []


# --- Output --------------------------------------------------------------------------------------


def told(effects: list[Any]) -> tuple[int, ...]:
    return tuple(
        u for e in effects if isinstance(e, Notify) and e.event == "output" for u in e.details["units"]
    )


def test_output_is_told_in_order_whatever_the_order_of_arrival() -> None:
    trial = Trial().accepted()
    assert trial.output(16, 24) == []
    assert trial.output(40, 48) == []
    assert told(trial.output(0, 20)) == UNITS[:24]
    assert trial.output(4, 10) == []
    assert told(trial.output(24, 40)) == UNITS[24:48]


def test_output_beyond_the_terms_is_refused() -> None:
    with pytest.raises(Rejected, match="up to unit 65 exceeds units_max=64"):
        Trial().accepted().hear(Output(bytes(32), 1, UNITS))


def test_output_held_for_a_missing_part_is_bounded() -> None:
    trial = Trial().accepted()
    for first in range(1, 4):
        trial.hear(Output(trial.id, first, UNITS[:20]))
    with pytest.raises(Rejected, match="outputs overlap"):
        trial.hear(Output(trial.id, 5, UNITS[:20]))
    assert trial.hear(Output(trial.id, 60, ())) == []
    for first in range(10, 30):
        assert trial.hear(Output(trial.id, first, ())) == []
    assert len(trial.attempt._early) == 3
    # The part that was missing frees all of it again.
    trial.output(0, 5)
    assert trial.attempt._early_units == 0


# --- Commitments ---------------------------------------------------------------------------------


def test_a_commitment_waits_for_acceptance_and_units() -> None:
    trial = Trial()
    first, _ = trial.commitments()
    assert trial.commit(first) == []
    trial.accepted()
    assert trial.attempt.rounds == {}
    effects = trial.output(0, 32)
    assert SetTimer(("round", first.id, "draw", 0), NOW_MS + 800) in effects
    assert list(trial.attempt.rounds) == [first.id] and first.id in trial.routed


def test_commitments_may_overtake_each_other() -> None:
    trial = Trial().accepted()
    first, second = trial.commitments()
    trial.output(0, 64)
    assert trial.commit(second) == []
    trial.commit(first)
    assert list(trial.attempt.rounds) == [first.id, second.id]
    assert trial.commit(first) == []


@pytest.mark.parametrize("wait", [True, False])
def test_two_commitments_for_one_segment_are_the_end(wait: bool) -> None:
    trial = Trial().accepted()
    first, _ = trial.commitments()
    other = signed(EXECUTOR, changed(first.body, root=bytes(32)))
    if not wait:
        trial.output(0, 32)
    trial.commit(first)
    assert ended(trial.commit(other), Outcome.INCONSISTENT)
    assert trial.attempt.detail == "two commitments for segment 0"


def test_waiting_commitments_are_bounded() -> None:
    trial = Trial().accepted()
    first, _ = trial.commitments()
    with pytest.raises(Rejected, match="segment=2 must be below 2"):
        trial.commit(signed(EXECUTOR, changed(first.body, segment=2)))


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({"units_digest": bytes(32)}, "don't match the commitment's digest"),
        ({"final": True}, "ends before units_max"),
        ({"first_chunk": 1}, "doesn't follow from segment"),
    ],
)
def test_what_differs_from_the_output_is_the_end(fields: dict[str, Any], detail: str) -> None:
    trial = Trial().accepted()
    first, _ = trial.commitments()
    trial.output(0, 32)
    assert ended(trial.commit(signed(EXECUTOR, changed(first.body, **fields))), Outcome.INCONSISTENT)
    assert detail in trial.attempt.detail


# --- Verdicts and pay ----------------------------------------------------------------------------


def paid(effects: list[Any]) -> list[tuple[bytes, int]]:
    return [
        (effect.peer, effect.message.body.settled_micros)
        for effect in effects
        if isinstance(effect, Send) and isinstance(effect.message.body, Voucher)
    ]


def test_segments_are_paid_as_they_are_verified() -> None:
    trial = Trial().accepted()
    first, second = trial.commitments()
    trial.output(0, 64)
    trial.commit(first)
    trial.commit(second)
    effects = trial.verify(first)
    assert the(sent(effects, Assignment)).body.units == UNITS[:32]
    assert paid(effects) == [(key(2), 10), (key(EXECUTOR), 3_200)]
    assert [e.table for e in effects if isinstance(e, Persist)] == ["vouchers", "vouchers"]
    assert trial.attempt.verified == UNITS[:32] and trial.attempt.outcome is None
    assert paid(trial.verify(second)) == [(key(2), 20), (key(EXECUTOR), 6_400)]
    assert (trial.attempt.outcome, trial.attempt.verified) == (Outcome.VERIFIED, UNITS)


def test_a_later_segment_is_paid_only_after_the_earlier_one() -> None:
    trial = Trial().accepted()
    first, second = trial.commitments()
    trial.output(0, 64)
    trial.commit(first)
    trial.commit(second)
    assert paid(trial.verify(second)) == [(key(2), 10)]
    assert trial.attempt.verified == ()
    assert paid(trial.verify(first, 3)) == [(key(3), 10), (key(EXECUTOR), 3_200), (key(EXECUTOR), 6_400)]
    assert trial.attempt.outcome is Outcome.VERIFIED


def unverified(trial: Trial, commitment: Any) -> list[Any]:
    """Nobody claims a draw, at any level."""
    timers = [TimerFired(("round", commitment.id, "draw", level)) for level in range(3)]
    return [effect for timer in timers for effect in trial.attempt.handle(timer, NOW_MS)]


@pytest.mark.parametrize("gap", [0, 1])
def test_when_nobody_verifies_a_segment_the_other_rounds_are_seen_through_and_paid(gap: int) -> None:
    trial = Trial().accepted()
    commitments = trial.commitments()
    trial.output(0, 64)
    for commitment in commitments:
        trial.commit(commitment)
    effects = unverified(trial, commitments[gap])
    # The executor may stop at once, but is still there to open what it committed to.
    assert the(sent(effects, Cancel)).body.reason == "unverified"
    assert trial.attempt.outcome is None
    assert trial.timer("stall", NOW_MS + 10_000_000) == []
    assert trial.hear(ExecutionFailed(trial.id, "x", "")) == []
    effects = trial.verify(commitments[1 - gap])
    assert trial.attempt.outcome is Outcome.UNVERIFIED
    assert not sent(effects, Cancel)
    assert paid(effects) == [(key(2), 10), (key(EXECUTOR), 3_200)]
    # What is behind the gap is paid for and made anew.
    assert trial.attempt.verified == (UNITS[:32] if gap else ())


def test_the_client_cancels_an_attempt_whose_rounds_are_seen_through() -> None:
    trial = Trial().accepted()
    first, second = trial.commitments()
    trial.output(0, 64)
    trial.commit(first)
    trial.commit(second)
    unverified(trial, first)
    trial.attempt.cancel("enough")
    # Its verdict stands, whatever ended the wait.
    assert trial.attempt.outcome is Outcome.UNVERIFIED


def test_fraud_is_published_and_only_the_verifier_is_paid() -> None:
    trial = Trial().accepted()
    first, _ = trial.commitments(variant=b"cheap")
    trial.output(0, 32)
    trial.commit(first)
    trial.verify(first)
    settled = RunRecomputed(("settle", first.id), ((0, trial.truth[0]),), 1)
    effects = trial.attempt.handle(settled, NOW_MS)
    assert ended(effects, Outcome.FRAUD)
    assert paid(effects) == [(key(2), 10)]
    [published] = [effect for effect in effects if isinstance(effect, Publish)]
    assert published.topic == "convictions"


@pytest.mark.parametrize(
    ("timers", "outcome"),
    [
        ([("draw", 0), ("draw", 1), ("draw", 2)], Outcome.UNVERIFIED),
        ([("draw", 0), ("blind", 0), ("opening", 0)], Outcome.WITHHELD),
    ],
)
def test_a_round_that_fails_ends_the_attempt(timers: list[tuple[str, int]], outcome: Outcome) -> None:
    trial = Trial().accepted()
    first, _ = trial.commitments()
    trial.output(0, 32)
    trial.commit(first)
    effects: list[Any] = []
    for name, level in timers:
        if (name, outcome) == ("draw", Outcome.WITHHELD):
            drawn = claim(2, first)
            trial.attempt.handle(Heard(drawn), NOW_MS)
            hidden = blind(2, first, trial.truth[:1], claimed=drawn)
            trial.attempt.handle(Heard(hidden), NOW_MS)
        effects = trial.attempt.handle(TimerFired(("round", first.id, name, level)), NOW_MS)
    assert ended(effects, outcome)


def test_vouchers_are_confirmed_by_their_payees() -> None:
    trial = Trial().accepted()
    first, _ = trial.commitments()
    trial.output(0, 32)
    trial.commit(first)
    vouchers = sent(trial.verify(first), Voucher)
    assert not trial.attempt.payouts.is_acknowledged
    fee, price = vouchers
    with pytest.raises(Rejected, match="isn't the payee's"):
        trial.hear(VoucherReceipt(fee.id, 10), EXECUTOR)
    trial.hear(VoucherReceipt(fee.id, 10), 2)
    trial.hear(VoucherReceipt(price.id, 3_200), EXECUTOR)
    assert trial.attempt.payouts.is_acknowledged
    record = trial.attempt.record()
    assert len(record.segments) == 1 and record.segments[0].voucher == price.raw


# --- Deadlines -----------------------------------------------------------------------------------


def test_a_failed_execution_is_the_executors_fault() -> None:
    trial = Trial().accepted()
    assert ended(trial.hear(ExecutionFailed(trial.id, "memory", "too little")), Outcome.FAILED)
    assert trial.attempt.detail == "memory: too little"
    assert trial.output(0, 8) == []


def test_a_stall_is_measured_from_the_last_progress() -> None:
    trial = Trial().accepted()
    trial.hear(Output(trial.id, 0, UNITS[:8]), now_ms=NOW_MS + 6_000)
    assert trial.timer("stall", NOW_MS + 10_000) == [
        SetTimer(("attempt", trial.id, "stall"), NOW_MS + 16_000)
    ]
    assert ended(trial.timer("stall", NOW_MS + 16_000), Outcome.UNRESPONSIVE)


def test_the_deadline_is_the_executors_until_all_is_committed() -> None:
    assert ended(Trial().accepted().timer("finish"), Outcome.UNRESPONSIVE)
    trial = Trial().accepted()
    trial.output(0, 64)
    for commitment in trial.commitments():
        trial.commit(commitment)
    # Slow verifiers aren't the executor's fault; rounds have deadlines of their own.
    assert trial.timer("finish") == []
    assert trial.attempt.outcome is None


def test_cancelling_is_said_once() -> None:
    trial = Trial().accepted()
    assert ended(trial.attempt.cancel("the client"), Outcome.CANCELLED)
    assert trial.attempt.cancel("again") == []


def test_messages_after_the_end_change_nothing() -> None:
    trial = Trial().accepted()
    first, _ = trial.commitments()
    trial.output(0, 32)
    trial.commit(first)
    trial.attempt.cancel("over")
    assert trial.attempt.handle(Heard(claim(2, first)), NOW_MS) == []
    assert trial.attempt.handle(TimerFired(("round", first.id, "draw", 0)), NOW_MS) == []
