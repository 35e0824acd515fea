"""A requester that doesn't pay gets a bounded amount of work, and one that pays gets more and more."""

from __future__ import annotations

from typing import Any

from p2p_node.core.credit import CREDIT_CHUNKS, CreditBook
from p2p_node.core.engagement import SETTLE_MS, Engagement, EngagementState
from p2p_node.core.node import NodeCore
from p2p_node.sim.workload import derive_unit
from protocols.digest import tagged
from protocols.effects import SetTimer
from protocols.events import Heard, RunChunk, RunFinished, RunOutput, TimerFired
from protocols.limits import CREDIT_ACCOUNTS_MAX
from protocols.messages import Commitment, ExecutionFailed, Offer, Output, Proposal, Refusal, Voucher
from protocols.units import chunk_count
from tests.support.builders import (
    ELECTORATE,
    EXECUTOR,
    INPUT,
    NOW_MS,
    REQUESTER,
    award,
    changed,
    digests,
    key,
    offer,
    signed,
)
from tests.support.machines import core, deliver, said, sent, the

CHUNKS = 64
UNITS = tuple(derive_unit(INPUT, index) for index in range(32 * CHUNKS))
CHUNK_MICROS = 3_200


def engaged(node: NodeCore, *, segment_chunks: int = 4, price: int = 100) -> Engagement:
    terms = award(units_max=len(UNITS), segment_chunks=segment_chunks, price_micros=price)
    engagement = Engagement(node, terms, input=INPUT, prefix=(), device="cpu", eta_ms=1)
    engagement.start(NOW_MS)
    return engagement


def run(engagement: Engagement) -> list[Any]:
    """The worker produces everything, without a pause."""
    effects: list[Any] = []
    truth = digests(engagement.award.body, UNITS)
    for chunk in range(chunk_count(len(UNITS), 32)):
        units = UNITS[32 * chunk : 32 * chunk + 32]
        effects += engagement.handle(RunOutput(engagement.run_key, 32 * chunk, units), NOW_MS)
        effects += engagement.handle(RunChunk(engagement.run_key, chunk, truth[chunk]), NOW_MS)
    return effects + engagement.handle(RunFinished(engagement.run_key, len(UNITS), 1), NOW_MS)


def units_in(effects: list[Any]) -> int:
    return max((m.body.first_unit + len(m.body.units) for m in sent(effects, Output)), default=0)


def pay(engagement: Engagement, sequence: int, settled: int) -> list[Any]:
    body = Voucher(engagement.award.id, key(EXECUTOR), sequence, settled, 0, NOW_MS, bytes(32))
    return engagement.handle(Heard(signed(REQUESTER, body)), NOW_MS)


def test_a_stranger_gets_a_little_and_no_more_until_it_pays() -> None:
    engagement = engaged(core(EXECUTOR))
    effects = run(engagement)
    # The last segment is begun while there is credit left, and the one after it was covered with it.
    segments = CREDIT_CHUNKS // 4
    assert len(sent(effects, Commitment)) == segments + 1
    assert units_in(effects) == 32 * 4 * (segments + 1)
    assert engagement.state is EngagementState.RUNNING
    more = pay(engagement, 1, 4 * CHUNK_MICROS)
    # What is settled no longer counts as debt, and is trusted again on top.
    assert len(sent(more, Commitment)) == 2
    for sequence in range(2, 40):
        more += pay(engagement, sequence, min(sequence * 4, CHUNKS) * CHUNK_MICROS)
    assert units_in(more) == len(UNITS)
    assert engagement.state is EngagementState.DONE


def test_results_that_wait_for_payment_are_complete_and_in_order() -> None:
    engagement = engaged(core(EXECUTOR))
    effects = run(engagement)
    for sequence in range(1, 40):
        effects += pay(engagement, sequence, min(sequence * 4, CHUNKS) * CHUNK_MICROS)
    got: list[int] = []
    for message in sent(effects, Output):
        assert message.body.first_unit == len(got)
        got += message.body.units
    assert tuple(got) == UNITS


def test_who_lets_it_wait_too_long_loses_the_contract() -> None:
    engagement = engaged(core(EXECUTOR))
    timers = [e for e in run(engagement) if isinstance(e, SetTimer) and e.key[-1] == "credit"]
    assert the(timers).at_ms == NOW_MS + SETTLE_MS
    effects = engagement.handle(TimerFired(timers[0].key), NOW_MS + SETTLE_MS)
    assert the(sent(effects, ExecutionFailed)).body.reason == "credit"
    assert engagement.state is EngagementState.DONE


def test_the_first_segment_is_always_delivered_or_nothing_could_be_verified() -> None:
    engagement = engaged(core(EXECUTOR), segment_chunks=CHUNKS)
    assert units_in(run(engagement)) == len(UNITS)


def test_work_that_costs_nothing_needs_no_credit() -> None:
    engagement = engaged(core(EXECUTOR), price=0)
    assert units_in(run(engagement)) == len(UNITS)


def test_a_debtor_is_refused_whatever_contract_it_comes_with() -> None:
    node = core(EXECUTOR, knows=(2, 3, 4, 5))
    node.credit.deliver(key(REQUESTER), CREDIT_CHUNKS * CHUNK_MICROS)
    wanted: Any = offer(mode="posted")
    terms = award(job_id=wanted.id)
    proposal = signed(REQUESTER, Proposal(terms.raw, wanted.raw, INPUT, (), ELECTORATE.members, 0))
    _, refusal = the(said(deliver(node, proposal), Refusal))
    assert refusal.body.reason == "standing"
    assert refusal.body.detail == f"the requester owes us {CREDIT_CHUNKS * CHUNK_MICROS} micro-units"
    node.credit.settle(key(REQUESTER), CREDIT_CHUNKS * CHUNK_MICROS)
    again = signed(REQUESTER, changed(proposal.body, award=award(job_id=wanted.id, attempt=1).raw))
    assert said(deliver(node, again), Refusal) == []
    assert isinstance(wanted.body, Offer)


def test_a_contract_that_a_restart_interrupted_is_not_run_again() -> None:
    node = core(EXECUTOR, knows=(2, 3, 4, 5))
    wanted: Any = offer(mode="posted")
    terms = award(job_id=wanted.id)
    # Where honest runs may differ, a second one would contradict what the first committed to.
    node.provider.remember([terms.id])
    proposal = signed(REQUESTER, Proposal(terms.raw, wanted.raw, INPUT, (), ELECTORATE.members, 0))
    assert said(deliver(node, proposal)) == []
    assert node.provider.engagements == {}


def test_the_book_is_bounded_and_keeps_who_came_last() -> None:
    book = CreditBook()
    keys = [tagged("debtor", number.to_bytes(4, "little")) for number in range(CREDIT_ACCOUNTS_MAX + 1)]
    for debtor in keys:
        book.deliver(debtor, 10)
    assert book.owed_micros(keys[0]) == 0
    assert book.owed_micros(keys[-1]) == 10


def test_credit_grows_with_what_was_settled() -> None:
    book = CreditBook()
    book.deliver(b"client", CREDIT_CHUNKS * 100)
    assert not book.is_good(b"client", 100)
    book.settle(b"client", 1)
    assert book.is_good(b"client", 100)
    book.deliver(b"client", 2)
    assert not book.is_good(b"client", 100)
