"""The first part of a receipt: what was offered, who bid, and what each award rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from protocols.auction import bid_seal
from protocols.envelope import Signed
from protocols.messages import Advert, AuctionClose, Award, Bid, Offer
from verification.receipt_report import Reader, ReceiptError, require

__all__ = ["Books", "read_award", "read_books", "read_offers"]

Books = Mapping[bytes, Signed[Bid]]
"""The counted bids by their id."""

_SAME_IN_EVERY_OFFER = (
    "mode",
    "workload",
    "model",
    "profile",
    "input_digest",
    "input_units",
    "units_max",
    "price_micros_max",
    "ram_bytes_min",
    "rate_milli_min",
)
_TERMS_FROM_OFFER = ("workload", "model", "profile", "input_digest", "units_max")


def read_offers(raws: Sequence[bytes], reader: Reader) -> list[Signed[Offer]]:
    """The offers of one job, first to last; the first one's id is the job's.

    Raises:
        ReceiptError: one isn't the requester's, is repeated, or asks for something else.
    """
    offers: list[Signed[Offer]] = []
    for index, raw in enumerate(raws):
        step = f"offer {index}"
        offer = reader.open_own(raw, Offer, step)
        require(all(known.id != offer.id for known in offers), step, "it repeats an earlier offer")
        offers.append(offer)
        for name in _SAME_IN_EVERY_OFFER:
            _require_same(name, offer.body, offers[0].body, step, "the job's first offer")
    return offers


def read_books(
    closes: Sequence[bytes], bids: Sequence[bytes], offers: Sequence[Signed[Offer]], reader: Reader
) -> Books:
    """The signed auction records, and the bids that were counted in them.

    Raises:
        ReceiptError: a record or bid is of no offer, repeated or disordered, or a bid isn't the one
            that was sealed, or exceeds the ceiling.
    """
    records = _read_records(closes, offers, reader)
    ceilings = {offer.id: offer.body.price_micros_max for offer in offers}
    books: dict[bytes, Signed[Bid]] = {}
    bidders: set[tuple[bytes, bytes]] = set()
    for index, raw in enumerate(bids):
        step = f"bid {index}"
        bid = reader.open(raw, Bid, step)
        record = records.get(bid.body.job_id)
        if record is None:
            raise ReceiptError(step, "there is no auction record for its offer")
        require(bid.signer in record, step, "its bidder isn't in the auction record")
        require(
            record[bid.signer] == bid_seal(bid.signer, bid.body),
            step,
            "it isn't the bid whose seal the auction recorded",
        )
        require((bid.body.job_id, bid.signer) not in bidders, step, "its bidder has another bid")
        ceiling = ceilings[bid.body.job_id]
        require(
            bid.body.price_micros <= ceiling,
            step,
            f"price_micros={bid.body.price_micros} exceeds the offer's ceiling {ceiling}",
        )
        bidders.add((bid.body.job_id, bid.signer))
        books[bid.id] = bid
    return books


def _read_records(
    closes: Sequence[bytes], offers: Sequence[Signed[Offer]], reader: Reader
) -> dict[bytes, dict[bytes, bytes]]:
    """Seal by bidder, by offer."""
    auctioned = {offer.id for offer in offers if offer.body.mode == "auction"}
    records: dict[bytes, dict[bytes, bytes]] = {}
    for index, raw in enumerate(closes):
        step = f"auction record {index}"
        close = reader.open_own(raw, AuctionClose, step)
        require(close.body.job_id in auctioned, step, "it is of no offer that was auctioned")
        require(close.body.job_id not in records, step, "its offer has another record")
        bidders = [sealed.bidder for sealed in close.body.seals]
        require(bidders == sorted(set(bidders)), step, "its bidders aren't distinct and in order")
        records[close.body.job_id] = {sealed.bidder: sealed.seal for sealed in close.body.seals}
    return records


def read_award(
    award_raw: bytes,
    basis_raw: bytes,
    *,
    offers: Sequence[Signed[Offer]],
    books: Books,
    reader: Reader,
    step: str,
) -> tuple[Signed[Award], int]:
    """An award with what entitles its executor to it.

    Returns:
        The award, and the index of the offer that it answers.

    Raises:
        ReceiptError: the terms aren't the offer's, the executor is excluded or had no standing to
            win, or the price isn't between its ask and the ceiling.
    """
    award = reader.open_own(award_raw, Award, f"{step}: award")
    terms = award.body
    index = next((i for i, offer in enumerate(offers) if offer.id == terms.job_id), None)
    if index is None:
        raise ReceiptError(f"{step}: award", "it answers none of the job's offers")
    offer = offers[index].body
    for name in _TERMS_FROM_OFFER:
        _require_same(name, terms, offer, f"{step}: award", "the offer")
    require(terms.executor not in offer.exclude, f"{step}: award", "the offer excludes its executor")
    require(
        terms.finish_by_ms <= offer.expires_ms,
        f"{step}: award",
        f"finish_by_ms={terms.finish_by_ms} is after the offer's expires_ms={offer.expires_ms}",
    )
    if offer.mode == "auction":
        ask = _ask_of_bid(award, basis_raw, books, reader, f"{step}: winning bid")
    else:
        ask = _ask_of_advert(award, basis_raw, reader, f"{step}: advert")
    require(
        ask <= terms.price_micros <= offer.price_micros_max,
        f"{step}: award",
        f"price_micros={terms.price_micros} isn't between the ask {ask} and the offer's ceiling "
        f"{offer.price_micros_max}",
    )
    return award, index


def _ask_of_bid(award: Signed[Award], raw: bytes, books: Books, reader: Reader, step: str) -> int:
    bid = reader.open(raw, Bid, step)
    require(bid.id == award.body.basis, step, "it isn't the bid that the award names")
    require(bid.id in books, step, "it isn't among the bids that the auction counted")
    require(bid.body.job_id == award.body.job_id, step, "it is for another offer than the award")
    require(bid.signer == award.body.executor, step, "its bidder isn't the award's executor")
    return bid.body.price_micros


def _ask_of_advert(award: Signed[Award], raw: bytes, reader: Reader, step: str) -> int:
    terms = award.body
    advert = reader.open(raw, Advert, step)
    require(advert.id == terms.basis, step, "it isn't the advert that the award names")
    require(advert.signer == terms.executor, step, "its peer isn't the award's executor")
    asks = [
        offering.price_micros
        for offering in advert.body.offerings
        if (offering.workload, offering.model) == (terms.workload, terms.model)
        and terms.profile in offering.profiles
    ]
    require(bool(asks), step, "it doesn't offer the award's workload, model and profile")
    return min(asks)


def _require_same(name: str, body: Any, other: Any, step: str, whose: str) -> None:
    require(getattr(body, name) == getattr(other, name), step, f"its {name} isn't that of {whose}")
