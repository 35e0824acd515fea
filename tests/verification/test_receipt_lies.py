"""Lies that a requester could tell in a receipt, and where the checker must stop at each.

The requester signs the receipt and can sign anything anew that is its own; what others signed it
can only drop, move or repeat.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from protocols.envelope import seal
from protocols.messages import ReceiptBody, Widening
from tests.support.forgery import at, edit, opened, resigned
from tests.support.jobs import finished
from tests.support.keys import CRYPTO, keyring
from tests.support.swarm import NETWORK
from verification.receipt import ReceiptError, check_receipt

A, S, V = ("attempts", 0), ("attempts", 0, "segments", 0), ("attempts", 0, "segments", 0, "verifiers", 0)

Change = Callable[[ReceiptBody], Any]


def put(path: tuple[str | int, ...], value: Any) -> Change:
    return lambda body: edit(body, path, lambda old: value)


def drop(path: tuple[str | int, ...], index: int) -> Change:
    return lambda body: edit(body, path, lambda old: old[:index] + old[index + 1 :])


def repeat(path: tuple[str | int, ...], index: int) -> Change:
    return lambda body: edit(body, path, lambda old: (*old, old[index]))


def move(source: tuple[str | int, ...], path: tuple[str | int, ...]) -> Change:
    """Put a copy of one part in the place of another."""
    return lambda body: edit(body, path, lambda old: at(body, source))


def sign_anew(path: tuple[str | int, ...], *, signer: int = 0, **changes: Any) -> Change:
    return lambda body: edit(body, path, lambda raw: resigned(raw, signer=signer, **changes))


def _with_widening(level: int, signer: int = 0) -> Change:
    def change(body: ReceiptBody) -> Any:
        commitment = opened(at(body, (*S, "commitment")))
        raw = seal(Widening(commitment.id, level), network=NETWORK, key=keyring(signer)).raw
        return edit(body, (*S, "widenings"), lambda old: (raw,))

    return change


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


def _pay_the_liar(body: ReceiptBody) -> Any:
    liar = keyring(3).public
    verifiers = at(body, (*S, "verifiers"))
    index = next(i for i, v in enumerate(verifiers) if opened(v.claim).signer == liar)
    honest = next(v for v in verifiers if v.voucher)
    return edit(body, (*S, "verifiers", index, "voucher"), lambda old: resigned(honest.voucher, payee=liar))


LIES: dict[str, tuple[str, Change, str]] = {
    # name: (kind of job, what is changed, where the checker must stop)
    "offer by another": ("auction", sign_anew(("offers", 0), signer=4), "offer 0"),
    "offer twice": ("auction", repeat(("offers",), 0), "offer 1"),
    "offer changed": ("auction", sign_anew(("offers", 0), price_micros_max=400), "auction record 0"),
    "other input": ("auction", put(("input",), b"Let there be"), "input"),
    "no record": ("auction", put(("closes",), ()), "bid 0"),
    "record twice": ("auction", repeat(("closes",), 0), "auction record 1"),
    "record by another": ("auction", sign_anew(("closes", 0), signer=2), "auction record 0"),
    "record disordered": ("auction", _in_reverse, "auction record 0"),
    "seal left out": ("auction", _without_own_seal, "bid "),
    "winner's seal left out": ("auction", _without_seal_of_winner, "bid "),
    "bid forged": ("auction", sign_anew(("bids", 0), signer=2, price_micros=1), "bid 0"),
    "bid twice": ("auction", repeat(("bids",), 0), "bid 4"),
    "winning bid unlisted": ("auction", put(("bids",), ()), "attempt 0: winning bid"),
    "basis is another bid": (
        "auction",
        lambda b: edit(b, (*A, "basis"), lambda old: _loser(b)),
        "winning bid",
    ),
    "advert missing": ("posted", put((*A, "basis"), b""), "attempt 0: advert"),
    "advert forged": ("posted", sign_anew((*A, "basis"), signer=0), "attempt 0: advert"),
    "award by another": ("auction", sign_anew((*A, "award"), signer=3), "attempt 0: award"),
    "price under the ask": ("auction", sign_anew((*A, "award"), price_micros=100), "attempt 0: award"),
    "price over the ceiling": ("auction", sign_anew((*A, "award"), price_micros=501), "attempt 0: award"),
    "price changed": ("auction", sign_anew((*A, "award"), price_micros=101), "attempt 0: acceptance"),
    "other model": ("auction", sign_anew((*A, "award"), model=bytes(32)), "attempt 0: award"),
    "late deadline": ("auction", sign_anew((*A, "award"), finish_by_ms=2**50), "attempt 0: award"),
    "attempt miscounted": ("auction", sign_anew((*A, "award"), attempt=1), "attempt 0: award"),
    "prefix invented": ("auction", sign_anew((*A, "award"), prefix_units=4), "attempt 0: award"),
    "attempt left out": ("lying executor", drop(("attempts",), 0), "attempt 0: award"),
    "attempts swapped": (
        "lying executor",
        lambda b: edit(b, ("attempts",), lambda a: a[::-1]),
        "attempt 0: award",
    ),
    "attempt repeated": ("auction", repeat(("attempts",), 0), "attempt 1: award"),
    "acceptance missing": ("auction", put((*A, "acceptance"), b""), "attempt 0: acceptance"),
    "acceptance forged": ("auction", sign_anew((*A, "acceptance"), signer=2), "attempt 0: acceptance"),
    "no such outcome": ("auction", put((*A, "outcome"), "fine"), "attempt 0: outcome"),
    "outcome better": ("lying executor", put((*A, "outcome"), "verified"), "attempt 0: outcome"),
    "outcome milder": ("lying executor", put((*A, "outcome"), "cancelled"), "attempt 0: outcome"),
    "outcome worse": ("auction", put((*A, "outcome"), "fraud"), "attempt 0: outcome"),
    "refused after all": ("auction", put((*A, "outcome"), "refused"), "attempt 0: outcome"),
    "commitment forged": ("auction", sign_anew((*S, "commitment"), units_total=7), "segment 0: commitment"),
    "commitment of another segment": (
        "auction",
        move((*A, "segments", 1, "commitment"), (*S, "commitment")),
        "segment 0: commitment",
    ),
    "segment left out": ("auction", drop((*A, "segments"), 1), "segment 1: commitment"),
    "last segment left out": ("auction", drop((*A, "segments"), 3), "attempt 0: outcome"),
    "widening forged": ("auction", _with_widening(1, signer=2), "segment 0: widening 0"),
    "widening skipped": ("auction", _with_widening(2), "segment 0: widening 0"),
    "opening missing": ("auction", put((*S, "opening"), b""), "verifier 0: reveal"),
    "opening of another segment": (
        "auction",
        move((*A, "segments", 1, "opening"), (*S, "opening")),
        "segment 0: opening",
    ),
    "opening forged": ("auction", sign_anew((*S, "opening"), chunks=()), "segment 0: opening"),
    "draw missing": ("auction", put((*V, "claim"), b""), "verifier 0: draw"),
    "draw of another": ("auction", sign_anew((*V, "claim"), signer=1), "verifier 0: draw"),
    "draw of oneself": ("auction", sign_anew((*V, "claim"), signer=0), "verifier 0: draw"),
    "draw of a stranger": ("auction", sign_anew((*V, "claim"), signer=9), "verifier 0: draw"),
    "weight overstated": ("auction", put((*V, "membership", "weight"), 2), "verifier 0: draw"),
    "membership of another": (
        "auction",
        move((*S, "verifiers", 1, "membership"), (*V, "membership")),
        "verifier 0: draw",
    ),
    "blind verdict of another": (
        "auction",
        move((*S, "verifiers", 1, "blind"), (*V, "blind")),
        "verifier 0: blind verdict",
    ),
    "blind verdict missing": ("auction", put((*V, "blind"), b""), "verifier 0: reveal"),
    "reveal of another": (
        "auction",
        move((*S, "verifiers", 1, "reveal"), (*V, "reveal")),
        "verifier 0: reveal",
    ),
    "reveal left out": ("auction", put((*V, "reveal"), b""), "voucher of verifier"),
    "verifier twice": ("auction", repeat((*S, "verifiers"), 0), "segment 0, verifier 3"),
    "verifier left out": ("auction", drop((*S, "verifiers"), 0), "voucher of verifier"),
    "no verifiers": ("auction", put((*S, "verifiers"), ()), "segment 0: opening"),
    "no such verdict": ("auction", put((*S, "verdict"), "guilty"), "segment 0: verdict"),
    "verdict without evidence": ("no draw claims", put((*S, "verdict"), "verified"), "segment 0: verdict"),
    "fraud without proof": ("auction", put((*S, "verdict"), "fraud"), "segment 0: verdict"),
    "withheld, but opened": ("auction", put((*S, "verdict"), "opening withheld"), "segment 0: verdict"),
    "withheld, but not asked": (
        "no draw claims",
        put((*S, "verdict"), "opening withheld"),
        "segment 0: verdict",
    ),
    "unverified, but agreed": ("auction", put((*S, "verdict"), "no verifier answered"), "segment 0: verdict"),
    "unverified too soon": ("no draw claims", put((*S, "widenings"), ()), "segment 0: verdict"),
    "unsettled without dispute": (
        "auction",
        put((*S, "verdict"), "a dispute couldn't be recomputed"),
        "segment 0: verdict",
    ),
    "fraud forgiven": (
        "lying executor",
        put((*A, "segments", 2, "verdict"), "verified"),
        "segment 2: verdict",
    ),
    "fraud proof dropped": ("lying executor", put((*A, "segments", 2, "fraud"), b""), "segment 2: verdict"),
    "fraud proof misplaced": (
        "lying executor",
        lambda b: edit(b, (*S, "fraud"), lambda old: at(b, (*A, "segments", 2, "fraud"))),
        "segment 0: fraud proof",
    ),
    "fraud proof by another": (
        "lying executor",
        sign_anew((*A, "segments", 2, "fraud"), signer=2),
        "fraud proof",
    ),
    "fraud proof about another chunk": (
        "lying executor",
        sign_anew((*A, "segments", 2, "fraud"), chunk=4),
        "segment 2: verdict",
    ),
    "voucher withheld": ("auction", put((*S, "voucher"), b""), "executor's voucher"),
    "voucher too small": ("auction", sign_anew((*S, "voucher"), settled_micros=1), "executor's voucher"),
    "voucher too large": ("auction", sign_anew((*S, "voucher"), settled_micros=10**9), "executor's voucher"),
    "voucher for another": (
        "auction",
        sign_anew((*S, "voucher"), payee=keyring(2).public),
        "executor's voucher",
    ),
    "voucher on another lane": ("auction", sign_anew((*S, "voucher"), lane=bytes(32)), "executor's voucher"),
    "voucher for nothing": ("auction", sign_anew((*S, "voucher"), evidence=bytes(32)), "executor's voucher"),
    "voucher misnumbered": ("auction", sign_anew((*S, "voucher"), sequence=7), "executor's voucher"),
    "voucher by another": ("auction", sign_anew((*S, "voucher"), signer=2), "executor's voucher"),
    "cheater paid": (
        "lying executor",
        move((*A, "segments", 1, "voucher"), (*A, "segments", 2, "voucher")),
        "segment 2: executor's voucher",
    ),
    "liar paid": (
        "lying verifier",
        _pay_the_liar,
        "voucher of verifier",
    ),
    "fee withheld": ("auction", put((*V, "voucher"), b""), "voucher of verifier"),
    "fee changed": ("auction", sign_anew((*V, "voucher"), settled_micros=11), "voucher of verifier"),
    "confirmation forged": ("auction", sign_anew((*S, "voucher_receipt")), "executor's voucher receipt"),
    "confirmation of another": (
        "auction",
        move((*A, "segments", 1, "voucher_receipt"), (*S, "voucher_receipt")),
        "executor's voucher receipt",
    ),
    "unit left out": ("auction", lambda b: edit(b, ("units",), lambda u: u[:-1]), "segment 3: units"),
    "unit added": ("auction", lambda b: edit(b, ("units",), lambda u: (*u, 1)), "units"),
    "unit changed": ("auction", lambda b: edit(b, ("units", 20), lambda u: u ^ 1), "segment 2: units"),
    "no such state": ("auction", put(("state",), "done"), "state"),
    "state better": ("no draw claims", put(("state",), "verified"), "state"),
    "state worse": ("auction", put(("state",), "timed_out"), "state"),
    "no bids after all": ("no draw claims", put(("state",), "no_bids"), "state"),
    "task failed untried": ("no bids", put(("state",), "task_failed"), "state"),
}


@pytest.mark.parametrize("name", LIES)
def test_the_first_lie_is_named(name: str) -> None:
    kind, change, step = LIES[name]
    receipt = finished(kind).receipt
    assert receipt is not None
    forged = seal(change(receipt.body), network=NETWORK, key=keyring(0)).raw
    with pytest.raises(ReceiptError) as caught:
        check_receipt(forged, network=NETWORK, crypto=CRYPTO)
    assert step in caught.value.step
    assert caught.value.detail


def test_reading_stops_at_the_first_wrong_thing() -> None:
    receipt = finished("auction").receipt
    assert receipt is not None
    body = receipt.body
    for name in ("state worse", "verdict without evidence", "acceptance missing"):
        body = LIES[name][1](body)
    with pytest.raises(ReceiptError, match="attempt 0: acceptance"):
        check_receipt(seal(body, network=NETWORK, key=keyring(0)).raw, network=NETWORK, crypto=CRYPTO)
