"""Lies about what was offered, who bid, and what was awarded and accepted."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from protocols.auction import bid_seal
from protocols.messages import AttemptRecord, ReceiptBody
from protocols.units import units_digest
from tests.support.forgery import (
    ATTEMPT,
    Change,
    assert_refused,
    drop,
    edit,
    opened,
    put,
    repeat,
    resigned,
    sign_anew,
)
from tests.support.jobs import finished
from tests.support.keys import keyring


def _without_own_seal(body: ReceiptBody) -> Any:
    close = opened(body.closes[0]).body
    return edit(body, ("closes", 0), lambda raw: resigned(raw, seals=close.seals[1:]))


def _without_seal_of_winner(body: ReceiptBody) -> Any:
    close = opened(body.closes[0]).body
    kept = tuple(s for s in close.seals if s.bidder != keyring(1).public)
    return edit(body, ("closes", 0), lambda raw: resigned(raw, seals=kept))


def _in_reverse(body: ReceiptBody) -> Any:
    close = opened(body.closes[0]).body
    return edit(body, ("closes", 0), lambda raw: resigned(raw, seals=close.seals[::-1]))


def _loser(body: ReceiptBody) -> bytes:
    return next(raw for raw in body.bids if opened(raw).signer == keyring(4).public)


def _bid_over_the_ceiling(body: ReceiptBody) -> Any:
    """A bidder and the requester as accomplices."""
    index = body.bids.index(_loser(body))
    bid = opened(resigned(body.bids[index], signer=4, price_micros=501))
    seals = tuple(
        msgspec.structs.replace(s, seal=bid_seal(bid.signer, bid.body)) if s.bidder == bid.signer else s
        for s in opened(body.closes[0]).body.seals
    )
    moved = edit(body, ("closes", 0), lambda raw: resigned(raw, seals=seals))
    return edit(moved, ("bids", index), lambda old: bid.raw)


def _shortened_prefix(body: ReceiptBody) -> Any:
    changes: dict[str, Any] = {"prefix_units": 8, "prefix_digest": units_digest(body.units[:8])}
    return edit(body, ("attempts", 1, "award"), lambda raw: resigned(raw, **changes))


def _attempts_in_reverse(body: ReceiptBody) -> Any:
    """The attempts the other way round, renumbered; the second one's acceptance must then go."""
    first, second = body.attempts
    return edit(body, ("attempts",), lambda old: (_failed(second, attempt=0), _failed(first, attempt=1)))


def _same_executor_again(body: ReceiptBody) -> Any:
    return edit(body, ("attempts",), lambda old: (old[0], _failed(old[0], attempt=1)))


def _go_on_after_the_end(body: ReceiptBody) -> Any:
    bid = opened(_loser(body))
    more = _failed(
        msgspec.structs.replace(body.attempts[0], basis=bid.raw),
        attempt=1,
        executor=bid.signer,
        basis=bid.id,
        price_micros=bid.body.price_micros,
        prefix_units=len(body.units),
        prefix_digest=units_digest(body.units),
    )
    return edit(body, ("attempts",), lambda old: (*old, more))


def _failed(record: AttemptRecord, **changes: Any) -> AttemptRecord:
    """An attempt with other terms, which therefore nobody accepted."""
    award = resigned(record.award, **changes)
    return AttemptRecord(award, b"", record.basis, "unresponsive", ())


def _award_on(basis: bytes, **changes: Any) -> Change:
    """An award that rests on another bid or advert."""
    change = {"basis": opened(basis).id} | changes

    def made(body: ReceiptBody) -> Any:
        moved = edit(body, (*ATTEMPT, "basis"), lambda old: basis)
        return edit(moved, (*ATTEMPT, "award"), lambda raw: resigned(raw, **change))

    return made


def _body(kind: str) -> ReceiptBody:
    receipt = finished(kind).receipt
    assert receipt is not None
    return receipt.body


def _advert_of_a_loser() -> bytes:
    """In posted mode, an advert by which peer 4 could have won."""
    return resigned(_body("posted").attempts[0].basis, signer=4)


def _bid_in_the_second_auction() -> bytes:
    body = _body("offered again")
    return next(r for r in body.bids if opened(r).body.job_id == opened(body.offers[1]).id)


def _silently_dropped_advert_offerings(body: ReceiptBody) -> Any:
    """The executor as an accomplice: an advert that offers nothing."""
    advert = resigned(body.attempts[0].basis, signer=1, offerings=())
    return _award_on(advert)(body)


# name: (kind of job, what is changed, what the checker must say)
LIES: dict[str, tuple[str, Change, str]] = {
    "offer by another": (
        "auction",
        sign_anew(("offers", 0), signer=4),
        "offer 0: the 'offer' isn't the requester's",
    ),
    "offer twice": ("auction", repeat(("offers",), 0), "offer 1: it repeats an earlier offer"),
    "offer changed": (
        "auction",
        sign_anew(("offers", 0), price_micros_max=400),
        "auction record 0: it is of no offer that was auctioned",
    ),
    "other input": ("auction", put(("input",), b"Let there be"), "input: it isn't what the offer names"),
    "no record": ("auction", put(("closes",), ()), "bid 0: there is no auction record for its offer"),
    "record twice": ("auction", repeat(("closes",), 0), "auction record 1: its offer has another record"),
    "record by another": (
        "auction",
        sign_anew(("closes", 0), signer=2),
        "auction record 0: the 'auction-close' isn't the requester's",
    ),
    "record disordered": (
        "auction",
        _in_reverse,
        "auction record 0: its bidders aren't distinct and in order",
    ),
    "seal left out": ("auction", _without_own_seal, "bid 0: its bidder isn't in the auction record"),
    "winner's seal left out": (
        "auction",
        _without_seal_of_winner,
        "bid 3: its bidder isn't in the auction record",
    ),
    "bid forged": (
        "auction",
        sign_anew(("bids", 0), signer=2, price_micros=1),
        "bid 0: it isn't the bid whose seal the auction recorded",
    ),
    "bid over the ceiling": (
        "auction",
        _bid_over_the_ceiling,
        "bid 1: price_micros=501 exceeds the offer's ceiling 500",
    ),
    "bid twice": ("auction", repeat(("bids",), 0), "bid 4: its bidder has another bid"),
    "winning bid unlisted": (
        "auction",
        put(("bids",), ()),
        "attempt 0: winning bid: it isn't among the bids that the auction counted",
    ),
    "basis is another bid": (
        "auction",
        lambda b: edit(b, (*ATTEMPT, "basis"), lambda old: _loser(b)),
        "attempt 0: winning bid: it isn't the bid that the award names",
    ),
    "advert missing": ("posted", put((*ATTEMPT, "basis"), b""), "attempt 0: advert: the 'advert' is missing"),
    "advert forged": (
        "posted",
        sign_anew((*ATTEMPT, "basis"), signer=0),
        "attempt 0: advert: it isn't the advert that the award names",
    ),
    "award by another": (
        "auction",
        sign_anew((*ATTEMPT, "award"), signer=3),
        "attempt 0: award: the 'award' isn't the requester's",
    ),
    "price under the ask": (
        "auction",
        sign_anew((*ATTEMPT, "award"), price_micros=100),
        "attempt 0: award: price_micros=100 isn't between the ask 101 and the offer's ceiling 500",
    ),
    "price over the ceiling": (
        "auction",
        sign_anew((*ATTEMPT, "award"), price_micros=501),
        "attempt 0: award: price_micros=501 isn't between the ask 101 and the offer's ceiling 500",
    ),
    "price changed": (
        "auction",
        sign_anew((*ATTEMPT, "award"), price_micros=101),
        "attempt 0: acceptance: acceptance is of another award",
    ),
    "other model": (
        "auction",
        sign_anew((*ATTEMPT, "award"), model=bytes(32)),
        "attempt 0: award: its model isn't that of the offer",
    ),
    "late deadline": (
        "auction",
        sign_anew((*ATTEMPT, "award"), finish_by_ms=2**50),
        "attempt 0: award: finish_by_ms=1125899906842624 is after the offer's expires_ms=1700000632433",
    ),
    "attempt miscounted": (
        "auction",
        sign_anew((*ATTEMPT, "award"), attempt=1),
        "attempt 0: award: attempt=1 must be 0",
    ),
    "prefix invented": (
        "auction",
        sign_anew((*ATTEMPT, "award"), prefix_units=4),
        "attempt 0: award: prefix_units=4, but 0 units were verified before",
    ),
    "attempt left out": ("lying executor", drop(("attempts",), 0), "attempt 0: award: attempt=1 must be 0"),
    "attempts swapped": (
        "lying executor",
        lambda b: edit(b, ("attempts",), lambda a: a[::-1]),
        "attempt 0: award: attempt=1 must be 0",
    ),
    "attempt repeated": ("auction", repeat(("attempts",), 0), "attempt 1: award: attempt=0 must be 1"),
    "acceptance missing": (
        "auction",
        put((*ATTEMPT, "acceptance"), b""),
        "attempt 0: acceptance: it is missing, but the outcome is 'verified' after 4 segments",
    ),
    "acceptance forged": (
        "auction",
        sign_anew((*ATTEMPT, "acceptance"), signer=2),
        "attempt 0: acceptance: acceptance isn't signed by the award's executor",
    ),
    "no such outcome": (
        "auction",
        put((*ATTEMPT, "outcome"), "fine"),
        "attempt 0: outcome: 'fine' is no outcome",
    ),
    "outcome better": (
        "lying executor",
        put((*ATTEMPT, "outcome"), "verified"),
        "attempt 0: outcome: 'verified', but the segments imply 'fraud'",
    ),
    "outcome milder": (
        "lying executor",
        put((*ATTEMPT, "outcome"), "cancelled"),
        "attempt 0: outcome: 'cancelled', but the segments imply 'fraud'",
    ),
    "outcome worse": (
        "auction",
        put((*ATTEMPT, "outcome"), "fraud"),
        "attempt 0: outcome: 'fraud', but the segments imply 'no bad verdict'",
    ),
    "refused after all": (
        "auction",
        put((*ATTEMPT, "outcome"), "refused"),
        "attempt 0: outcome: refused, but here is the acceptance",
    ),
    "other work offered again": (
        "offered again",
        sign_anew(("offers", 1), price_micros_max=499),
        "offer 1: its price_micros_max isn't that of the job's first offer",
    ),
    "answers no offer": (
        "auction",
        sign_anew((*ATTEMPT, "award"), job_id=bytes(32)),
        "attempt 0: award: it answers none of the job's offers",
    ),
    "excluded executor": (
        "offered again",
        sign_anew(("attempts", 1, "award"), executor=keyring(1).public),
        "attempt 1: award: the offer excludes its executor",
    ),
    "answers an earlier offer": (
        "offered again",
        _attempts_in_reverse,
        "attempt 1: award: it answers an earlier offer than the attempt before",
    ),
    "bid for another offer": (
        "offered again",
        _award_on(_bid_in_the_second_auction()),
        "attempt 0: winning bid: it is for another offer than the award",
    ),
    "bid of another": (
        "auction",
        _award_on(_loser(_body("auction"))),
        "attempt 0: winning bid: its bidder isn't the award's executor",
    ),
    "advert of another": (
        "posted",
        _award_on(_advert_of_a_loser()),
        "attempt 0: advert: its peer isn't the award's executor",
    ),
    "advert of other models": (
        "posted",
        _silently_dropped_advert_offerings,
        "attempt 0: advert: it doesn't offer the award's workload, model and profile",
    ),
    "prefix shortened": (
        "lying executor",
        _shortened_prefix,
        "attempt 1: award: prefix_units=8, but 16 units were verified before",
    ),
    "prefix of other units": (
        "lying executor",
        sign_anew(("attempts", 1, "award"), prefix_digest=bytes(32)),
        "attempt 1: award: its prefix isn't the receipt's output",
    ),
    "chunks of another size": (
        "lying executor",
        sign_anew(("attempts", 1, "award"), chunk_units=8),
        "attempt 1: award: chunk_units=8 isn't the 4 of the attempt before",
    ),
    "the same executor again": (
        "silent executor",
        _same_executor_again,
        "attempt 1: award: its executor already failed in an earlier attempt",
    ),
    "an attempt after the end": (
        "auction",
        _go_on_after_the_end,
        "attempt 1: award: the attempt before was verified already",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_the_lie_is_named(name: str) -> None:
    assert_refused(*LIES[name])
