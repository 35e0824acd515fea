"""An executor's contract: run, stream, commit, open, be paid, and every way it ends."""

from __future__ import annotations

from typing import Any

import pytest

from p2p_node.core.engagement import OUTPUT_PACE_MS, SETTLE_MS, Engagement, EngagementState
from p2p_node.core.kept import KeptContract
from protocols.codec import encode
from protocols.effects import CancelRun, Notify, Persist, Publish, Run, SetTimer
from protocols.errors import Rejected
from protocols.events import Heard, RunChunk, RunFailed, RunFinished, RunOutput, TimerFired
from protocols.messages import (
    Acceptance,
    Cancel,
    Commitment,
    ExecutionFailed,
    Opening,
    Output,
    Voucher,
    VoucherReceipt,
)
from protocols.units import units_digest
from tests.support.builders import (
    EXECUTOR,
    INPUT,
    NOW_MS,
    REQUESTER,
    UNITS,
    award,
    changed,
    digests,
    key,
    opening_request,
    signed,
)
from tests.support.machines import core, sent, the
from verification.evidence import check_chain, check_commitment, check_units


class Work:
    """An engagement and its worker."""

    def __init__(self, *, prefix: tuple[int, ...] = (), **fields: Any) -> None:
        terms = {"prefix_units": len(prefix), "prefix_digest": units_digest(prefix), **fields}
        self.node = core(EXECUTOR)
        self.engagement = Engagement(
            self.node, award(**terms), input=INPUT, prefix=prefix, device="cpu", eta_ms=320
        )
        self.terms = self.engagement.award.body
        self.key = self.engagement.run_key
        self.started = self.engagement.start(NOW_MS)

    def event(self, event: Any, now_ms: int = NOW_MS) -> list[Any]:
        return self.engagement.handle(event, now_ms)

    def chunk(self, number: int, units: tuple[int, ...] = UNITS) -> list[Any]:
        first, end = 32 * number, min(len(units), 32 * (number + 1))
        effects = self.event(RunOutput(self.key, first, units[first:end]))
        return effects + self.event(RunChunk(self.key, number, digests(self.terms, units)[number]))

    def finish(self, total: int = 64) -> list[Any]:
        return self.event(RunFinished(self.key, total, 1))

    def all(self) -> list[Any]:
        effects = [effect for number in range(2) for effect in self.chunk(number)]
        return effects + self.finish()

    def voucher(self, micros: int, sequence: int = 1, **fields: Any) -> list[Any]:
        body = Voucher(self.engagement.award.id, key(EXECUTOR), sequence, micros, 0, NOW_MS, bytes(32))
        return self.event(Heard(signed(REQUESTER, changed(body, **fields))))


def test_a_contract_is_written_down_accepted_and_run() -> None:
    work = Work()
    persist, _, _, run, timer = work.started
    acceptance = the(sent(work.started))
    assert isinstance(acceptance.body, Acceptance)
    award_ = work.engagement.award
    kept = KeptContract(award_.raw, acceptance.raw, INPUT, (), 0)
    assert persist == Persist("contracts", award_.id, encode(kept))
    assert isinstance(run, Run) and run.task.prefix == ()
    assert timer == SetTimer(("engagement", work.engagement.award.id, "finish"), NOW_MS + 60_000)


def test_output_is_streamed_and_committed_at_the_end() -> None:
    work = Work()
    effects = work.all()
    assert [message.body.first_unit for message in sent(effects, Output)] == [0, 32]
    commitment = the(sent(effects, Commitment))
    check_units(work.engagement.contract, check_commitment(work.engagement.contract, commitment), UNITS)
    assert commitment.body.final
    [published] = [effect for effect in effects if isinstance(effect, Publish)]
    assert published.topic == "jobs" and published.message.body.commitment == commitment.raw
    assert work.engagement.state is EngagementState.COMMITTED


def test_output_that_comes_in_small_pieces_is_sent_together() -> None:
    work = Work()
    first = work.event(RunOutput(work.key, 0, UNITS[:8]))
    assert the(sent(first, Output)).body.units == UNITS[:8]
    [timer] = work.event(RunOutput(work.key, 8, UNITS[8:16]))
    assert timer == SetTimer(("engagement", work.engagement.award.id, "output"), NOW_MS + OUTPUT_PACE_MS)
    assert work.event(RunOutput(work.key, 16, UNITS[16:24])) == []
    later = work.event(TimerFired(timer.key), NOW_MS + OUTPUT_PACE_MS)
    assert the(sent(later, Output)).body == Output(work.engagement.award.id, 8, UNITS[8:24])
    # What a commitment is about goes before it.
    work.chunk(0)
    ended = [type(message.body) for message in sent(work.chunk(1) + work.finish())]
    assert ended[0] is Output and ended[-1] is Commitment


def test_a_full_segment_is_committed_to_at_once_unless_it_may_be_the_last() -> None:
    work = Work(segment_chunks=1)
    first = the(sent(work.chunk(0), Commitment))
    assert (first.body.units_total, first.body.final) == (32, False)
    work.event(RunOutput(work.key, 32, UNITS[32:]))
    work.event(RunChunk(work.key, 1, digests(work.terms)[1]))
    second = the(sent(work.finish(), Commitment))
    assert second.body.final
    check_chain(first, second)


def test_a_full_segment_that_ends_with_the_stop_unit_is_the_last() -> None:
    work = Work(segment_chunks=1, stop_unit=UNITS[31])
    assert sent(work.chunk(0), Commitment) == []
    only = the(sent(work.finish(32), Commitment))
    assert (only.body.units_total, only.body.final) == (32, True)


def test_a_later_attempt_goes_on_after_the_prefix() -> None:
    work = Work(prefix=UNITS[:32])
    work.chunk(1)
    commitment = the(sent(work.finish(), Commitment))
    assert (commitment.body.first_chunk, commitment.body.chunks) == (1, 1)
    check_units(work.engagement.contract, check_commitment(work.engagement.contract, commitment), UNITS)
    assert work.engagement.lane.delivered_micros == 32 * 100


def test_openings_are_given_on_a_proved_draw_in_any_state() -> None:
    work = Work()
    commitment = the(sent(work.all(), Commitment))
    request = opening_request(commitment, digests(work.terms), 2)
    assert isinstance(the(sent(work.event(Heard(request)))).body, Opening)
    work.voucher(6_400)
    assert work.engagement.state is EngagementState.DONE
    assert isinstance(the(sent(work.event(Heard(request)))).body, Opening)
    with pytest.raises(Rejected, match="isn't the requester's"):
        work.event(Heard(signed(3, request.body)))


# --- Payment -------------------------------------------------------------------------------------


def test_full_payment_ends_it() -> None:
    work = Work()
    work.all()
    effects = work.voucher(6_400)
    assert isinstance(effects[0], Persist) and effects[0].table == "vouchers"
    assert the(sent(effects, VoucherReceipt)).body.settled_micros == 6_400
    assert work.engagement.state is EngagementState.DONE


def test_payment_for_what_was_not_delivered_is_refused() -> None:
    work = Work()
    with pytest.raises(Rejected, match="exceeds 0 delivered"):
        work.voucher(1)
    work.all()
    with pytest.raises(Rejected, match="exceeds 6400 delivered"):
        work.voucher(6_401)


def test_where_nothing_is_owed_each_segment_still_gets_its_turn() -> None:
    """At a price of 0 the first voucher settles everything, and openings are wanted still."""
    work = Work(price_micros=0, segment_chunks=1)
    work.all()
    work.voucher(0, sequence=1)
    assert work.engagement.state is EngagementState.COMMITTED
    work.voucher(0, sequence=2)
    assert work.engagement.state is EngagementState.DONE


def test_a_repeated_voucher_is_confirmed_again_and_counts_once() -> None:
    work = Work()
    work.all()
    work.voucher(6_400)
    effects = work.voucher(6_400)
    assert len(effects) == 1 and isinstance(the(sent(effects)).body, VoucherReceipt)


# --- Endings -------------------------------------------------------------------------------------


def failure(effects: list[Any]) -> ExecutionFailed:
    body = the(sent(effects, ExecutionFailed)).body
    assert isinstance(body, ExecutionFailed)
    return body


def test_a_failed_run_is_told_with_its_reason() -> None:
    work = Work()
    effects = work.event(RunFailed(work.key, "memory", "x" * 300))
    assert failure(effects).reason == "memory" and len(failure(effects).detail) == 250
    assert CancelRun(work.key) in effects and work.engagement.state is EngagementState.DONE


def test_the_deadline_ends_a_run() -> None:
    work = Work()
    assert (
        failure(work.event(TimerFired(("engagement", work.engagement.award.id, "finish")))).reason
        == "deadline"
    )


def test_the_deadline_means_nothing_once_all_is_committed() -> None:
    work = Work()
    work.all()
    assert work.event(TimerFired(("engagement", work.engagement.award.id, "finish"))) == []


def test_work_beyond_the_terms_is_not_given_away() -> None:
    """An input may ask for more than the terms pay for."""
    work = Work()
    work.chunk(0)
    effects = work.event(RunOutput(work.key, 32, (*UNITS[32:], 7)))
    assert failure(effects).reason == "terms" and sent(effects, Output) == []
    assert CancelRun(work.key) in effects


@pytest.mark.parametrize("chunks", [0, 1])
def test_a_run_that_ends_without_its_chunks_frees_the_slot_at_once(chunks: int) -> None:
    work = Work()
    for number in range(chunks):
        work.chunk(number)
    work.event(RunOutput(work.key, 32 * chunks, UNITS[32 * chunks : 32 * chunks + 8]))
    assert failure(work.finish(8)).reason == "incomplete"
    assert work.node.provider.running() == []


def test_only_the_requester_cancels() -> None:
    work = Work()
    cancel = Cancel(work.engagement.award.id, "fraud")
    with pytest.raises(Rejected, match="cancel isn't the requester's"):
        work.event(Heard(signed(3, cancel)))
    effects = work.event(Heard(signed(REQUESTER, cancel)))
    assert CancelRun(work.key) in effects and isinstance(effects[1], Notify)
    assert work.event(Heard(signed(REQUESTER, cancel))) == []
    assert work.chunk(0) == []


def test_without_a_verdict_it_ends_by_itself() -> None:
    work = Work()
    effects = work.all()
    timer = SetTimer(("engagement", work.engagement.award.id, "settle"), NOW_MS + SETTLE_MS)
    assert timer in effects
    [note] = work.event(TimerFired(timer.key))
    assert note.details["why"] == "no verdict came"


def test_late_vouchers_find_it_for_a_while() -> None:
    work = Work(segment_chunks=1)
    work.all()
    work.event(Heard(signed(REQUESTER, Cancel(work.engagement.award.id, "enough"))))
    kept_ms = SETTLE_MS + 2 * work.engagement.award.body.answer_within_ms
    assert not work.engagement.is_forgettable(NOW_MS + kept_ms - 1)
    assert sent(work.voucher(3_200), VoucherReceipt)
    assert work.engagement.is_forgettable(NOW_MS + kept_ms)
