"""A job on the requester's side: from offer to receipt, with every way on and every end."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from p2p_node.core.attempt import DECEITS, Outcome
from p2p_node.core.node import NodeCore
from p2p_node.core.request import JobState
from p2p_node.core.requester import SEEK_MS, Job
from p2p_node.sim.scenario import job_request
from protocols.auction import REVEAL_MS, bid_seal
from protocols.codec import decode, encode
from protocols.effects import Notify, Persist, Publish, Send, SetTimer
from protocols.events import Heard, TimerFired
from protocols.limits import ATTEMPTS_MAX, RECEIPT_BYTES_MAX
from protocols.messages import (
    AuctionClose,
    Bid,
    BidSeal,
    Cancel,
    Closed,
    Decline,
    ExecutionFailed,
    Offer,
    Proposal,
    ReceiptBody,
    Refusal,
)
from protocols.standing import DECEIT_FAILURES
from protocols.units import input_digest
from tests.support.builders import INPUT, NOW_MS, advert, changed, key, offer, signed
from tests.support.machines import core, sent, the

BIDDERS = (1, 2, 3, 4)


class Case:
    """A job of peer 0, and how others answer it."""

    def __init__(
        self,
        *,
        mode: str = "auction",
        knows: tuple[int, ...] = BIDDERS,
        failed: tuple[int, ...] = (),
        **fields: Any,
    ) -> None:
        self.node: NodeCore = core(0, knows=knows)
        for number in failed:
            self.node.standings.record_failure(key(number), NOW_MS, is_mishap=True)
        request = dataclasses.replace(job_request(0, mode=mode), **{"input": INPUT, **fields})
        self.job = Job(self.node, request, nonce=bytes(16), now_ms=NOW_MS)
        self.node.jobs[self.job.id] = self.job
        self.now_ms = NOW_MS
        self.started = self.job.start(NOW_MS)

    @property
    def offer_id(self) -> bytes:
        return self.job.offers[-1].id

    def hear(self, number: int, body: Any) -> list[Any]:
        return self.job.handle(Heard(signed(number, body)), self.now_ms)

    def timer(self, name: str, *, after_ms: int = 0) -> list[Any]:
        self.now_ms += after_ms
        key = (name, self.offer_id) if name in ("bids", "reveals") else ("job", self.job.id, name)
        return self.job.handle(TimerFired(key), self.now_ms)

    def bid(self, number: int, price: int) -> Bid:
        return Bid(self.offer_id, bytes(32), price, 320, 200_000, "cpu", True, 1)

    def auctioned(self, *prices: int) -> list[Any]:
        """Peers 1, 2, ... bid these prices, and the winner is chosen."""
        for number, price in enumerate(prices, start=1):
            self.hear(number, BidSeal(self.offer_id, bid_seal(key(number), self.bid(number, price))))
        effects = self.timer("bids", after_ms=1_000)
        for number, price in enumerate(prices, start=1):
            effects += self.hear(number, self.bid(number, price))
        return effects

    def fail(self, number: int, reason: str = "memory") -> list[Any]:
        return self.hear(number, ExecutionFailed(self.job.attempts[-1].award.id, reason, ""))

    def refuse(self, number: int) -> list[Any]:
        return self.hear(number, Refusal(self.job.attempts[-1].award.id, "busy", ""))


def awarded(effects: list[Any]) -> bytes:
    [receiver] = [e.peer for e in effects if isinstance(e, Send) and isinstance(e.message.body, Proposal)]
    return bytes(receiver)


def noted(effects: list[Any], event: str) -> list[Any]:
    return [effect.details for effect in effects if isinstance(effect, Notify) and effect.event == event]


# --- Offer and auction ---------------------------------------------------------------------------


def test_an_auction_begins_with_a_published_offer_and_two_deadlines() -> None:
    case = Case()
    [published] = [effect for effect in case.started if isinstance(effect, Publish)]
    body = published.message.body
    assert isinstance(body, Offer) and published.topic == "jobs"
    assert (body.input_digest, body.bids_close_ms) == (input_digest(INPUT), NOW_MS + 1_000)
    timers = [effect for effect in case.started if isinstance(effect, SetTimer)]
    assert [timer.at_ms for timer in timers] == [NOW_MS + 240_000, NOW_MS + 1_000]
    assert case.job.state is JobState.BIDDING


def test_the_lowest_score_wins_and_is_paid_the_second() -> None:
    case = Case()
    effects = case.auctioned(120, 100, 150)
    assert awarded(effects) == key(2)
    assert case.job.attempts[0].award.body.price_micros == 120
    assert case.job.state is JobState.AWARDING


def test_seals_are_listed_to_every_bidder() -> None:
    case = Case()
    effects = case.auctioned(100, 110)
    close = [m.body for m in sent(effects, AuctionClose)]
    assert len(close) == 2 and {entry.bidder for entry in close[0].seals} == {key(1), key(2)}


def test_a_bidder_that_does_not_open_is_not_waited_for() -> None:
    case = Case()
    case.hear(1, BidSeal(case.offer_id, bytes(32)))
    case.hear(2, BidSeal(case.offer_id, bid_seal(key(2), case.bid(2, 90))))
    effects = case.timer("bids", after_ms=1_000)
    assert SetTimer(("reveals", case.offer_id), case.now_ms + REVEAL_MS) in effects
    assert case.hear(2, case.bid(2, 90)) != []
    assert case.job.state is JobState.BIDDING
    assert awarded(case.timer("reveals", after_ms=REVEAL_MS)) == key(2)


def test_an_unwelcome_bidder_does_not_win() -> None:
    case = Case()
    case.node.standings.record_failure(key(1), NOW_MS)
    assert awarded(case.auctioned(50, 100)) == key(2)


@pytest.mark.parametrize("mode", ["auction", "posted"])
def test_a_requester_that_everybody_failed_goes_on_at_once(mode: str) -> None:
    # As after a flood, in which none of its peers could answer in time.
    case = Case(mode=mode, failed=BIDDERS)
    effects = case.started if mode == "posted" else case.auctioned(100, 120)
    assert awarded(effects) in {key(number) for number in BIDDERS}
    assert case.job.attempts[0].award.body.electorate_count == len(BIDDERS) - 1


def test_posted_work_goes_straight_to_the_best_standing_ask() -> None:
    case = Case(mode="posted", knows=())
    assert case.job.state is JobState.BIDDING and case.job.attempts == []
    case = Case(mode="posted")
    assert awarded(case.started) in {key(number) for number in BIDDERS}
    assert case.job.attempts[0].award.body.price_micros == 100


def test_an_offer_nobody_takes_is_made_again_more_slowly_and_then_given_up() -> None:
    case = Case(rebids=2)
    for pause_ms in (1_000, 2_000):
        effects = case.timer("bids", after_ms=1_000)
        assert SetTimer(("job", case.job.id, "rebid"), case.now_ms + pause_ms) in effects
        again = case.timer("rebid", after_ms=pause_ms)
        assert any(isinstance(effect, Publish) for effect in again)
    effects = case.timer("bids", after_ms=1_000)
    assert (case.job.state, case.job.reason) == (JobState.NO_BIDS, "no peer took the job at these terms")
    assert noted(effects, "finished") and len(case.job.offers) == 3


def test_a_model_that_nobody_advertises_is_named() -> None:
    case = Case(rebids=0, model=bytes(32), model_name="unheard-of")
    case.timer("bids", after_ms=1_000)
    assert case.job.reason == "nobody has model unheard-of for sim.hash in profile exact14"


def test_waiting_for_bids_has_a_limit() -> None:
    case = Case(queue_ms=1_500)
    case.timer("bids", after_ms=1_000)
    assert case.job.state is JobState.NO_BIDS


def test_while_peers_are_busy_an_offer_waits_as_long_as_the_queue() -> None:
    case = Case(rebids=0, queue_ms=30_000)
    for pause_ms in (1_000, 2_000, 4_000, 8_000):
        for number in BIDDERS:
            case.hear(number, Decline(case.job.offers[-1].id, "busy", 0, 1, ""))
        case.timer("bids", after_ms=1_000)
        assert case.job.state is JobState.BIDDING
        case.timer("rebid", after_ms=pause_ms)
    case.timer("bids", after_ms=12_000)
    assert case.job.state is JobState.NO_BIDS and len(case.job.offers) == 5


def test_in_a_wide_network_the_window_outlasts_the_search_for_bidders() -> None:
    narrow = Case()
    narrow.node.rooms.is_wide = True
    wide = Job(narrow.node, narrow.job.request, nonce=bytes(16), now_ms=NOW_MS)
    windows = [job.offers[0].body.bids_close_ms - NOW_MS for job in (narrow.job, wide)]
    assert windows == [1_000, 1_000 + SEEK_MS]


def test_who_slept_through_its_auction_offers_once_more() -> None:
    case = Case(queue_ms=30_000)
    case.timer("bids", after_ms=60_000)
    assert case.job.state is JobState.BIDDING
    case.timer("rebid", after_ms=1_000)
    assert len(case.job.offers) == 2
    case.timer("bids", after_ms=60_000)
    assert case.job.state is JobState.NO_BIDS


def test_declines_are_kept_for_the_client() -> None:
    case = Case()
    case.hear(3, Decline(case.offer_id, "price", 100, 200, ""))
    assert [message.body.need for message in case.job.declines()] == [200]


# --- Attempts ------------------------------------------------------------------------------------


def test_the_runner_up_is_next_and_the_failed_one_is_left_out() -> None:
    case = Case()
    case.auctioned(100, 120, 150)
    effects = case.fail(1)
    assert awarded(effects) == key(2)
    assert case.job.attempts[1].award.body.price_micros == 150
    assert not case.node.standings.is_welcome(key(1), case.now_ms)
    case.fail(2)
    case.fail(3)
    case.timer("rebid", after_ms=1_000)
    assert set(case.job.offers[-1].body.exclude) == {key(1), key(2), key(3)}


def test_attempts_are_limited() -> None:
    case = Case(attempts_max=2)
    case.auctioned(100, 120, 150)
    case.fail(1)
    case.fail(2)
    assert (case.job.state, case.job.reason) == (JobState.TASK_FAILED, "execution failed: memory: ")


def test_refusals_use_up_no_attempt_and_blame_nobody() -> None:
    case = Case(attempts_max=1)
    case.auctioned(100, 120, 150)
    case.refuse(1)
    case.refuse(2)
    assert case.job.attempts[-1].candidate.peer == key(3)
    assert case.node.standings.peers == {}
    case.refuse(3)
    assert case.job.state is JobState.BIDDING
    case.timer("rebid", after_ms=1_000)
    # Who was only busy may bid again, and what it refused leaves nothing to show.
    assert case.job.offers[-1].body.exclude == () and case.job.attempts == []
    assert awarded(case.auctioned(100)) == key(1)


@pytest.mark.parametrize("deceit", sorted(DECEITS, key=lambda outcome: outcome.value))
def test_deceit_uses_up_no_attempt(deceit: Outcome) -> None:
    case = Case(attempts_max=1)
    case.auctioned(100, 120, 150)
    for number in (1, 2):
        attempt = case.job.attempts[-1]
        assert attempt.candidate.peer == key(number)
        attempt.outcome = deceit
        case.job._attempt_ended(attempt, case.now_ms)
    assert case.job.attempts[-1].candidate.peer == key(3)
    case.fail(3)
    assert case.job.state is JobState.TASK_FAILED


def test_who_withheld_an_opening_does_not_underbid_the_next_job_either() -> None:
    case = Case()
    case.node.standings.record_failure(key(1), NOW_MS - 3_600_000, weight=DECEIT_FAILURES)
    assert case.node.standings.is_welcome(key(1), NOW_MS)
    assert awarded(case.auctioned(20, 100, 120)) == key(2)
    # What it asks doesn't lower what the winner is paid.
    assert case.job.attempts[0].award.body.price_micros == 120


def test_refusals_before_a_failure_keep_their_numbers() -> None:
    case = Case(attempts_max=3)
    case.auctioned(100, 120, 150)
    case.refuse(1)
    case.fail(2)
    case.refuse(3)
    case.timer("rebid", after_ms=1_000)
    case.auctioned(100)
    # The second attempt's award says that it is the second: a receipt must show what the first was.
    assert [attempt.award.body.attempt for attempt in case.job.attempts] == [0, 1, 2]


def test_more_refusals_than_attempts_may_be_numbered_do_not_end_a_job() -> None:
    everybody = tuple(range(1, ATTEMPTS_MAX + 4))
    case = Case(mode="posted", knows=everybody)
    for _ in range(ATTEMPTS_MAX):
        peer = case.job.attempts[-1].candidate.peer
        case.refuse(next(number for number in everybody if key(number) == peer))
    assert len(case.job.attempts) == ATTEMPTS_MAX and case.job.state is JobState.BIDDING
    assert awarded(case.timer("rebid", after_ms=1_000)) is not None


def test_without_anybody_who_could_verify_no_work_is_awarded() -> None:
    case = Case(mode="posted", knows=(1,))
    # Somebody may come who could, so it waits as long as for a bid.
    assert case.job.state is JobState.BIDDING
    for _ in range(3):
        assert not any(isinstance(effect, Send) for effect in case.timer("rebid", after_ms=20_000))
    assert (case.job.state, case.job.reason) == (
        JobState.VERIFICATION_FAILED,
        "no peer is known that could verify this job",
    )


# --- Ends ----------------------------------------------------------------------------------------


def test_the_total_time_ends_whatever_is_open() -> None:
    case = Case()
    case.auctioned(100, 120)
    effects = case.timer("total")
    assert case.job.state is JobState.TIMED_OUT
    assert the(sent(effects, Cancel)).body.award_id == case.job.attempts[0].award.id
    assert case.job.attempts[0].outcome is Outcome.CANCELLED


def test_bidders_are_told_that_it_is_over() -> None:
    case = Case()
    case.auctioned(100, 120)
    closed = [
        e for e in case.job.cancel(case.now_ms) if isinstance(e, Send) and isinstance(e.message.body, Closed)
    ]
    assert sorted(e.peer for e in closed) == sorted([key(1), key(2)])
    assert case.job.state is JobState.CANCELLED
    assert case.job.cancel(case.now_ms) == []


def test_nothing_moves_a_job_that_has_ended() -> None:
    case = Case()
    case.job.cancel(NOW_MS)
    receipt = case.job.receipt
    assert case.timer("total") == case.timer("bids") == []
    assert case.hear(1, BidSeal(case.offer_id, bytes(32))) == []
    assert case.job.receipt is receipt


def test_every_end_leaves_a_receipt() -> None:
    case = Case()
    case.auctioned(100, 120)
    effects = case.job.cancel(case.now_ms)
    persist = the(
        [effect for effect in effects if isinstance(effect, Persist) and effect.table == "receipts"]
    )
    assert case.job.receipt is not None and persist.value == case.job.receipt.raw
    body = case.job.receipt.body
    assert (body.state, len(body.bids), len(body.attempts)) == ("cancelled", 2, 1)


@pytest.mark.parametrize("auctions", [4, 16])
def test_a_receipt_has_room_for_every_bid(auctions: int) -> None:
    """A crowd of bidders must not make an honest requester's receipt unreadable."""
    case = Case()
    case.job.cancel(NOW_MS)
    assert case.job.receipt is not None
    bid = signed(1, case.bid(1, 100)).raw
    crowded = changed(case.job.receipt.body, bids=(bid,) * (256 * auctions))
    assert decode(encode(crowded), ReceiptBody, bytes_max=RECEIPT_BYTES_MAX) == crowded


def test_fraud_in_the_native_profile_convicts_too_since_the_exact_run_showed_it() -> None:
    case = Case(profile="native", mode="posted", knows=())
    for number in BIDDERS:
        native = changed(advert(number).body.offerings[0], profiles=("native",))
        case.node.registry.hear(advert(number, offerings=(native,), sequence=NOW_MS + 1), NOW_MS)
    case.timer("rebid", after_ms=1_000)
    attempt = case.job.attempts[0]
    attempt.outcome = Outcome.FRAUD
    case.job._attempt_ended(attempt, case.now_ms)
    standing = case.node.standings.of(attempt.candidate.peer)
    assert standing.failed == DECEIT_FAILURES and standing.convicted


def test_the_offer_of_another_job_concerns_us_not() -> None:
    case = Case()
    stranger = offer(5)
    assert case.hear(1, BidSeal(stranger.id, bytes(32))) == []
    assert case.job.auctions[0].seals == {}
