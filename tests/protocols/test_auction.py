"""The sealed, second-score auction: what it pays, and what it refuses."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.auction import (
    REVEAL_MS,
    STRANGERS_REVEAL_MS,
    Auction,
    AuctionState,
    Candidate,
    Ranking,
    bid_seal,
    price_to_pay,
    score_micros,
)
from protocols.effects import Send, SetTimer
from protocols.envelope import Signed, seal
from protocols.errors import Rejected
from protocols.events import Heard, TimerFired
from protocols.limits import BIDS_PER_JOB_MAX, DECLINES_PER_JOB_MAX
from protocols.messages import AuctionClose, Bid, BidSeal, Body, Decline, Offer
from tests.support.keys import keyring

CLOSE_MS = 2_000
CEILING = 500


def signed(body: Body, number: int) -> Signed[Any]:
    return seal(body, network="testnet", key=keyring(number))


def _offer() -> Signed[Offer]:
    body = Offer(
        nonce=bytes(16),
        mode="auction",
        workload="lm.generate",
        model=bytes(32),
        profile="exact14",
        input_digest=bytes(32),
        input_units=1,
        units_max=64,
        price_micros_max=CEILING,
        ram_bytes_min=0,
        rate_milli_min=0,
        exclude=(),
        sent_ms=0,
        bids_close_ms=CLOSE_MS,
        expires_ms=10_000,
    )
    return signed(body, 0)


OFFER = _offer()
CLOSED = TimerFired(("bids", OFFER.id))
REVEALED = TimerFired(("reveals", OFFER.id))


def bid(number: int, price: int, eta_ms: int = 1_000) -> Signed[Bid]:
    return signed(Bid(OFFER.id, bytes(32), price, eta_ms, 1, "cpu", True, 1), number)


def seal_of(message: Signed[Bid]) -> Signed[BidSeal]:
    number = next(n for n in range(300) if keyring(n).public == message.signer)
    return signed(BidSeal(OFFER.id, bid_seal(message.signer, message.body)), number)


def fresh(penalties: dict[bytes, int] | None = None) -> Auction:
    return Auction(
        OFFER,
        appraise=lambda peer, body: ((penalties or {}).get(peer, 0), body.eta_ms),
        sign=lambda body: signed(body, 0),
    )


def held(bids: list[Signed[Bid]], penalties: dict[bytes, int] | None = None) -> Auction:
    """An auction that went through with these bids, in this order of arrival."""
    auction = fresh(penalties)
    auction.start()
    for message in bids:
        auction.handle(Heard(seal_of(message)), 1)
    auction.handle(CLOSED, CLOSE_MS)
    for message in bids:
        auction.handle(Heard(message), CLOSE_MS + 1)
    auction.handle(REVEALED, CLOSE_MS + REVEAL_MS)
    return auction


asks = st.dictionaries(st.integers(1, 12), st.integers(0, CEILING), min_size=1, max_size=8)
penalties_of = st.dictionaries(st.integers(1, 12), st.integers(0, 200))


# --- The window ----------------------------------------------------------------------------------


def waiting_for(*numbers: int) -> Auction:
    auction = Auction(
        OFFER,
        appraise=lambda peer, body: (0, body.eta_ms),
        sign=lambda body: signed(body, 0),
        expected=frozenset(keyring(number).public for number in numbers),
    )
    auction.start()
    return auction


def decline(number: int) -> Heard:
    return Heard(signed(Decline(OFFER.id, "busy", 0, 0, ""), number))


def test_the_window_closes_once_everybody_expected_has_answered() -> None:
    auction = waiting_for(1, 2)
    # A stranger's seal counts, and doesn't stand for anybody else's.
    assert auction.handle(Heard(seal_of(bid(3, 10))), 1) == []
    assert auction.handle(Heard(seal_of(bid(1, 20))), 2) == []
    effects = auction.handle(decline(2), 3)
    assert auction.state is AuctionState.COLLECTING_BIDS
    assert auction.close is not None and auction.close.body.closed_ms == 3
    assert {entry.bidder for entry in auction.close.body.seals} == {keyring(n).public for n in (1, 3)}
    assert {effect.peer for effect in effects if isinstance(effect, Send)} == auction.seals.keys()
    # The window's own end comes later and changes nothing.
    assert auction.handle(CLOSED, CLOSE_MS) == []


@pytest.mark.parametrize("expected", [(), (1, 2), (1, 2, 3)])
def test_the_window_stays_open_while_nobody_bids_or_somebody_is_silent(expected: tuple[int, ...]) -> None:
    auction = waiting_for(*expected)
    for number in (1, 2):
        assert auction.handle(decline(number), 1) == []
    assert auction.state is AuctionState.COLLECTING_SEALS
    if expected != (1, 2):
        assert auction.handle(Heard(seal_of(bid(4, 10))), 2) == []
        assert auction.state is AuctionState.COLLECTING_SEALS


# --- Prices ------------------------------------------------------------------------------------


@given(prices=asks, slowness=penalties_of)
def test_whoever_wins_gets_its_ask_or_more_and_never_over_the_ceiling(
    prices: dict[int, int], slowness: dict[int, int]
) -> None:
    penalties = {keyring(number).public: penalty for number, penalty in slowness.items()}
    auction = held([bid(number, price) for number, price in prices.items()], penalties)
    assert auction.state is AuctionState.DECIDED
    assert len(auction.candidates) == len(prices)
    scores = [candidate.score_micros for candidate in auction.candidates]
    assert scores == sorted(scores)
    for index, candidate in enumerate(auction.candidates):
        price = price_to_pay(auction.candidates, index, price_max=CEILING)
        assert candidate.ask_micros <= price <= CEILING
        if index + 1 < len(scores):
            # At that price it isn't worse than the next one, or it was paid its ask or the ceiling.
            assert price + candidate.penalty_micros <= max(scores[index + 1], candidate.score_micros)


@given(prices=asks, slowness=penalties_of, seed=st.integers(0, 2**32))
def test_the_order_of_arrival_changes_nothing(
    prices: dict[int, int], slowness: dict[int, int], seed: int
) -> None:
    penalties = {keyring(number).public: penalty for number, penalty in slowness.items()}
    bids = [bid(number, price) for number, price in prices.items()]
    shuffled = random.Random(seed).sample(bids, len(bids))
    assert held(bids, penalties).candidates == held(shuffled, penalties).candidates


@given(own=st.integers(0, CEILING), lie=st.integers(0, CEILING), others=asks)
def test_a_false_ask_never_pays(own: int, lie: int, others: dict[int, int]) -> None:
    """Utility is price minus own cost; asking the cost is as good as any other ask."""

    def utility(ask: int) -> int:
        rivals = [bid(number, price) for number, price in others.items() if number != 1]
        auction = held([bid(1, ask), *rivals])
        if auction.candidates[0].peer != keyring(1).public:
            return 0
        return price_to_pay(auction.candidates, 0, price_max=CEILING) - own

    rivals = len(others.keys() - {1})
    if rivals:
        assert utility(own) >= utility(lie)


def test_a_tie_breaks_by_the_bids_id() -> None:
    one, two = bid(1, 100), bid(2, 100)
    first = min(one, two, key=lambda message: message.id)
    assert held([one, two]).candidates[0].basis == first
    assert held([two, one]).candidates[0].basis == first


def test_a_lone_bidder_is_paid_its_ask() -> None:
    auction = held([bid(1, 70)])
    assert price_to_pay(auction.candidates, 0, price_max=CEILING) == 70


def test_slowness_and_a_bad_name_cost_the_bidder() -> None:
    def candidate(number: int, ask: int, penalty: int) -> Candidate:
        return Candidate(keyring(number).public, bid(number, ask), ask, penalty, 1_000)

    ranked = [candidate(1, 100, 0), candidate(2, 90, 30)]
    assert price_to_pay(ranked, 0, price_max=CEILING) == 120
    ranked = [candidate(2, 90, 30), candidate(1, 130, 0)]
    assert price_to_pay(ranked, 0, price_max=CEILING) == 100


@pytest.mark.parametrize(
    ("eta_ms", "reputation_ppm", "score"),
    [(0, 1_000_000, 0), (0, 0, 20), (9_999, 1_000_000, 9), (10_000, 500_000, 20)],
)
def test_scores_are_whole_numbers(eta_ms: int, reputation_ppm: int, score: int) -> None:
    assert score_micros(eta_ms=eta_ms, reputation_ppm=reputation_ppm, ranking=Ranking()) == score


# --- Rules -------------------------------------------------------------------------------------


def test_start_sets_the_end_of_the_window() -> None:
    assert fresh().start() == [SetTimer(("bids", OFFER.id), CLOSE_MS)]


def test_the_record_lists_every_counted_seal_in_order_and_goes_to_every_bidder() -> None:
    auction = fresh()
    bids = [bid(number, 100) for number in (3, 1, 2)]
    for message in bids:
        assert auction.handle(Heard(seal_of(message)), 1) == []
    *sends, timer = auction.handle(CLOSED, CLOSE_MS)
    assert timer == SetTimer(("reveals", OFFER.id), CLOSE_MS + REVEAL_MS)
    close = auction.close
    assert close is not None
    assert close.body.closed_ms == CLOSE_MS
    expected = sorted((message.signer, bid_seal(message.signer, message.body)) for message in bids)
    assert [(entry.bidder, entry.seal) for entry in close.body.seals] == expected
    assert {effect.peer for effect in sends if isinstance(effect, Send)} == {m.signer for m in bids}
    assert all(isinstance(e, Send) and isinstance(e.message.body, AuctionClose) for e in sends)


def test_bids_wait_for_the_close_so_nobody_has_a_last_look() -> None:
    auction, message = fresh(), bid(1, 100)
    auction.handle(Heard(seal_of(message)), 1)
    assert auction.handle(Heard(message), 2) == []
    assert auction.bids == {}


def test_the_last_opened_bid_decides() -> None:
    auction, message = fresh(), bid(1, 100)
    auction.handle(Heard(seal_of(message)), 1)
    auction.handle(CLOSED, CLOSE_MS)
    auction.handle(Heard(message), CLOSE_MS + 1)
    assert auction.state is AuctionState.DECIDED


def test_an_unsealed_bid_is_rejected() -> None:
    auction = fresh()
    auction.handle(Heard(seal_of(bid(1, 100))), 1)
    auction.handle(CLOSED, CLOSE_MS)
    with pytest.raises(Rejected, match="doesn't match the seal"):
        auction.handle(Heard(bid(2, 50)), CLOSE_MS + 1)
    with pytest.raises(Rejected, match="doesn't match the seal"):
        auction.handle(Heard(bid(1, 99)), CLOSE_MS + 1)


def test_a_copied_seal_opens_for_its_maker_only() -> None:
    auction, message = fresh(), bid(1, 100)
    stolen = signed(BidSeal(OFFER.id, bid_seal(message.signer, message.body)), 2)
    auction.handle(Heard(seal_of(message)), 1)
    auction.handle(Heard(stolen), 1)
    auction.handle(CLOSED, CLOSE_MS)
    with pytest.raises(Rejected, match="doesn't match the seal"):
        auction.handle(Heard(signed(message.body, 2)), CLOSE_MS + 1)


def test_a_bid_over_the_ceiling_is_rejected() -> None:
    auction, message = fresh(), bid(1, CEILING + 1)
    auction.handle(Heard(seal_of(message)), 1)
    auction.handle(CLOSED, CLOSE_MS)
    with pytest.raises(Rejected, match="bid price_micros=501 exceeds the offer's ceiling 500"):
        auction.handle(Heard(message), CLOSE_MS + 1)


def test_a_second_seal_is_rejected_and_a_repeat_is_not() -> None:
    auction = fresh()
    auction.handle(Heard(seal_of(bid(1, 100))), 1)
    auction.handle(Heard(seal_of(bid(1, 100))), 2)
    with pytest.raises(Rejected, match="two different bids"):
        auction.handle(Heard(seal_of(bid(1, 90))), 3)


def test_a_late_seal_is_no_fault() -> None:
    auction = fresh()
    auction.handle(Heard(seal_of(bid(1, 100))), 1)
    auction.handle(CLOSED, CLOSE_MS)
    assert auction.handle(Heard(seal_of(bid(2, 50))), CLOSE_MS + 1) == []
    assert set(auction.seals) == {keyring(1).public}


def test_without_seals_the_auction_ends_with_its_window() -> None:
    auction = fresh()
    assert auction.handle(CLOSED, CLOSE_MS) == []
    assert (auction.state, auction.candidates, auction.close) == (AuctionState.DECIDED, [], None)


def test_a_flood_of_seals_from_unknown_keys_does_not_push_out_those_who_can_do_it() -> None:
    auction = waiting_for(1, 2)
    for number in range(BIDS_PER_JOB_MAX):
        auction.handle(Heard(Signed(b"", b"", number.to_bytes(32, "big"), BidSeal(OFFER.id, bytes(32)))), 1)
    auction.handle(Heard(seal_of(bid(1, 100))), 2)
    auction.handle(Heard(seal_of(bid(2, 100))), 3)
    assert {keyring(1).public, keyring(2).public} <= auction.seals.keys()
    assert len(auction.seals) == BIDS_PER_JOB_MAX


def test_seals_of_unknown_keys_that_are_never_opened_hold_nobody_up() -> None:
    auction = waiting_for(1, 2)
    auction.handle(Heard(Signed(b"", b"", bytes(32), BidSeal(OFFER.id, bytes(32)))), 1)
    for number in (1, 2):
        auction.handle(Heard(seal_of(bid(number, 100))), 1)
    assert auction.handle(Heard(bid(1, 100)), 10)[1:] == []
    timer = auction.handle(Heard(bid(2, 100)), 20)[-1]
    assert timer == SetTimer(("reveals", OFFER.id), 20 + STRANGERS_REVEAL_MS)
    auction.handle(TimerFired(timer.key), timer.at_ms)
    assert len(auction.candidates) == 2


def test_the_books_are_bounded() -> None:
    auction = fresh()
    for number in range(BIDS_PER_JOB_MAX + 5):
        auction.handle(Heard(Signed(b"", b"", number.to_bytes(32, "big"), BidSeal(OFFER.id, bytes(32)))), 1)
    assert len(auction.seals) == BIDS_PER_JOB_MAX
    reason = Decline(OFFER.id, "ram", 1, 2, "")
    for number in range(DECLINES_PER_JOB_MAX + 5):
        auction.handle(Heard(Signed(b"", b"", number.to_bytes(32, "big"), reason)), 1)
    assert len(auction.declines) == DECLINES_PER_JOB_MAX
