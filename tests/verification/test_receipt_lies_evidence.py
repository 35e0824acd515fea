"""Lies about how segments were verified, what was paid, and how it all ended."""

from __future__ import annotations

from typing import Any

import pytest

from protocols.envelope import seal
from protocols.messages import Opening, ReceiptBody, Widening
from tests.support.forgery import (
    ATTEMPT,
    SEGMENT,
    VERIFIER,
    Change,
    assert_refused,
    at,
    drop,
    edit,
    move,
    opened,
    put,
    repeat,
    resigned,
    sign_anew,
)
from tests.support.keys import keyring
from tests.support.swarm import NETWORK


def _with_widening(level: int, signer: int = 0) -> Change:
    def change(body: ReceiptBody) -> Any:
        commitment = opened(at(body, (*SEGMENT, "commitment")))
        raw = seal(Widening(commitment.id, level), network=NETWORK, key=keyring(signer)).raw
        return edit(body, (*SEGMENT, "widenings"), lambda old: (raw,))

    return change


def _pay_the_liar(body: ReceiptBody) -> Any:
    liar = keyring(3).public
    verifiers = at(body, (*SEGMENT, "verifiers"))
    index = next(i for i, v in enumerate(verifiers) if opened(v.claim).signer == liar)
    honest = next(v for v in verifiers if v.voucher)
    return edit(
        body, (*SEGMENT, "verifiers", index, "voucher"), lambda old: resigned(honest.voucher, payee=liar)
    )


def _half_opened(body: ReceiptBody) -> Any:
    """The executor as an accomplice: an opening of fewer chunks than were drawn."""
    raw = at(body, (*SEGMENT, "opening"))
    less = resigned(raw, signer=1, chunks=opened(raw).body.chunks[:1])
    return edit(body, (*SEGMENT, "opening"), lambda old: less)


def _opening_of_nobody(body: ReceiptBody) -> bytes:
    """The executor as an accomplice: an opening of nothing."""
    commitment = opened(at(body, (*SEGMENT, "commitment")))
    return seal(Opening(commitment.id, ()), network=NETWORK, key=keyring(1)).raw


def _accuse_the_verifier(body: ReceiptBody) -> Any:
    """A proof that holds, but against somebody else."""
    liar = keyring(3).public
    verifiers = at(body, (*ATTEMPT, "segments", 2, "verifiers"))
    reveal = next(v.reveal for v in verifiers if opened(v.claim).signer == liar)
    return edit(body, (*ATTEMPT, "segments", 2, "fraud"), lambda raw: resigned(raw, statement=reveal))


def _fraud(body: ReceiptBody) -> bytes:
    raw: bytes = at(body, (*ATTEMPT, "segments", 2, "fraud"))
    return raw


# name: (kind of job, what is changed, what the checker must say)
LIES: dict[str, tuple[str, Change, str]] = {
    "commitment forged": (
        "auction",
        sign_anew((*SEGMENT, "commitment"), units_total=7),
        "attempt 0, segment 0: commitment: commitment isn't signed by the contract's executor",
    ),
    "commitment of another segment": (
        "auction",
        move((*ATTEMPT, "segments", 1, "commitment"), (*SEGMENT, "commitment")),
        "attempt 0, segment 0: commitment: commitment segment=1 comes first",
    ),
    "segment left out": (
        "auction",
        drop((*ATTEMPT, "segments"), 1),
        "attempt 0, segment 1: commitment: commitment isn't chained to the one before",
    ),
    "last segment left out": (
        "auction",
        drop((*ATTEMPT, "segments"), 3),
        "attempt 0: outcome: 'verified', but the output is not verified up to a final segment",
    ),
    "widening forged": (
        "auction",
        _with_widening(1, signer=2),
        "attempt 0, segment 0: widening 0: the 'widening' isn't the requester's",
    ),
    "widening skipped": ("auction", _with_widening(2), "attempt 0, segment 0: widening 0: level=2 must be 1"),
    "opening missing": (
        "auction",
        put((*SEGMENT, "opening"), b""),
        "attempt 0, segment 0, verifier 0: reveal: it is revealed although the executor opened nothing",
    ),
    "opening of another segment": (
        "auction",
        move((*ATTEMPT, "segments", 1, "opening"), (*SEGMENT, "opening")),
        "attempt 0, segment 0: opening: opening isn't the executor's for this commitment",
    ),
    "opening forged": (
        "auction",
        sign_anew((*SEGMENT, "opening"), chunks=()),
        "attempt 0, segment 0: opening: opening isn't the executor's for this commitment",
    ),
    "draw missing": (
        "auction",
        put((*VERIFIER, "claim"), b""),
        "attempt 0, segment 0, verifier 0: draw: the 'draw-claim' is missing",
    ),
    "draw of another": (
        "auction",
        sign_anew((*VERIFIER, "claim"), signer=1),
        "attempt 0, segment 0, verifier 0: draw: a party to the contract can't verify it",
    ),
    "draw of oneself": (
        "auction",
        sign_anew((*VERIFIER, "claim"), signer=0),
        "attempt 0, segment 0, verifier 0: draw: a party to the contract can't verify it",
    ),
    "draw of a stranger": (
        "auction",
        sign_anew((*VERIFIER, "claim"), signer=9),
        "attempt 0, segment 0, verifier 0: draw: verifier isn't proved to be in the electorate",
    ),
    "weight overstated": (
        "auction",
        put((*VERIFIER, "membership", "weight"), 2),
        "attempt 0, segment 0, verifier 0: draw: verifier isn't proved to be in the electorate",
    ),
    "membership of another": (
        "auction",
        move((*SEGMENT, "verifiers", 1, "membership"), (*VERIFIER, "membership")),
        "attempt 0, segment 0, verifier 0: draw: verifier isn't proved to be in the electorate",
    ),
    "blind verdict of another": (
        "auction",
        move((*SEGMENT, "verifiers", 1, "blind"), (*VERIFIER, "blind")),
        "attempt 0, segment 0, verifier 0: blind verdict: blind verdict belongs to another claim",
    ),
    "blind verdict missing": (
        "auction",
        put((*VERIFIER, "blind"), b""),
        "attempt 0, segment 0, verifier 0: reveal: it reveals what it never hid",
    ),
    "reveal of another": (
        "auction",
        move((*SEGMENT, "verifiers", 1, "reveal"), (*VERIFIER, "reveal")),
        "attempt 0, segment 0, verifier 0: reveal: reveal belongs to another blind verdict",
    ),
    "reveal left out": (
        "auction",
        put((*VERIFIER, "reveal"), b""),
        "attempt 0, segment 0: voucher of verifier: nothing was due, but here is a voucher",
    ),
    "verifier twice": (
        "auction",
        repeat((*SEGMENT, "verifiers"), 0),
        "attempt 0, segment 0, verifier 3: the same peer verifies twice",
    ),
    "verifier left out": (
        "auction",
        drop((*SEGMENT, "verifiers"), 0),
        "attempt 0, segment 1: voucher of verifier: sequence=2 must be 1: "
        "the lane's other vouchers aren't here",
    ),
    "no verifiers": (
        "auction",
        put((*SEGMENT, "verifiers"), ()),
        "attempt 0, segment 0: opening: it was opened before any verifier had committed to its results",
    ),
    "no such verdict": (
        "auction",
        put((*SEGMENT, "verdict"), "guilty"),
        "attempt 0, segment 0: verdict: 'guilty' is no verdict",
    ),
    "verdict without evidence": (
        "no draw claims",
        put((*SEGMENT, "verdict"), "verified"),
        "attempt 0, segment 0: verdict: verified, but no verifier revealed that it agrees",
    ),
    "fraud without proof": (
        "auction",
        put((*SEGMENT, "verdict"), "fraud"),
        "attempt 0, segment 0: verdict: fraud, but no verifier differs from the executor",
    ),
    "withheld, but opened": (
        "auction",
        put((*SEGMENT, "verdict"), "opening withheld"),
        "attempt 0, segment 0: verdict: withheld, but here is the opening",
    ),
    "withheld, but not asked": (
        "no draw claims",
        put((*SEGMENT, "verdict"), "opening withheld"),
        "attempt 0, segment 0: verdict: withheld, but no verifier had committed, so nothing was to be opened",
    ),
    "unverified, but agreed": (
        "auction",
        put((*SEGMENT, "verdict"), "no verifier answered"),
        "attempt 0, segment 0: verdict: unverified, but a verifier revealed that it agrees",
    ),
    "unverified too soon": (
        "no draw claims",
        put((*SEGMENT, "widenings"), ()),
        "attempt 0, segment 0: verdict: unverified at widening 0, before the draw was widened to 2",
    ),
    "unsettled without dispute": (
        "auction",
        put((*SEGMENT, "verdict"), "a dispute couldn't be recomputed"),
        "attempt 0, segment 0: verdict: unsettled, but nothing is disputed",
    ),
    "fraud forgiven": (
        "lying executor",
        put((*ATTEMPT, "segments", 2, "verdict"), "verified"),
        "attempt 0, segment 2: verdict: 'verified' although it carries a fraud proof",
    ),
    "fraud proof dropped": (
        "lying executor",
        put((*ATTEMPT, "segments", 2, "fraud"), b""),
        "attempt 0, segment 2: verdict: fraud, but there is no fraud proof",
    ),
    "fraud proof misplaced": (
        "lying executor",
        lambda b: edit(b, (*SEGMENT, "fraud"), lambda old: at(b, (*ATTEMPT, "segments", 2, "fraud"))),
        "attempt 0, segment 0: fraud proof: it is about another commitment",
    ),
    "fraud proof by another": (
        "lying executor",
        sign_anew((*ATTEMPT, "segments", 2, "fraud"), signer=2),
        "attempt 0, segment 2: fraud proof: the 'fraud-proof' isn't the requester's",
    ),
    "fraud proof about another chunk": (
        "lying executor",
        sign_anew((*ATTEMPT, "segments", 2, "fraud"), chunk=4),
        "attempt 0, segment 2: verdict: the fraud proof's chunk 4 isn't disputed",
    ),
    "voucher withheld": (
        "auction",
        put((*SEGMENT, "voucher"), b""),
        "attempt 0, segment 0: executor's voucher: the voucher is missing",
    ),
    "voucher too small": (
        "unconfirmed vouchers",
        sign_anew((*SEGMENT, "voucher"), settled_micros=1),
        "attempt 0, segment 0: executor's voucher: settled_micros=1 must be 816",
    ),
    "voucher too large": (
        "unconfirmed vouchers",
        sign_anew((*SEGMENT, "voucher"), settled_micros=10**9),
        "attempt 0, segment 0: executor's voucher: settled_micros=1000000000 must be 816",
    ),
    "voucher for another": (
        "auction",
        sign_anew((*SEGMENT, "voucher"), payee=keyring(2).public),
        "attempt 0, segment 0: executor's voucher: it pays another peer than",
    ),
    "voucher on another lane": (
        "auction",
        sign_anew((*SEGMENT, "voucher"), lane=bytes(32)),
        "attempt 0, segment 0: executor's voucher: its lane isn't this contract's",
    ),
    "voucher for nothing": (
        "auction",
        sign_anew((*SEGMENT, "voucher"), evidence=bytes(32)),
        "attempt 0, segment 0: executor's voucher: its evidence is another commitment",
    ),
    "voucher misnumbered": (
        "unconfirmed vouchers",
        sign_anew((*SEGMENT, "voucher"), sequence=7),
        "attempt 0, segment 1: executor's voucher: sequence=2 must be 1: "
        "the lane's other vouchers aren't here",
    ),
    "voucher by another": (
        "auction",
        sign_anew((*SEGMENT, "voucher"), signer=2),
        "attempt 0, segment 0: executor's voucher: the 'voucher' isn't the requester's",
    ),
    "cheater paid": (
        "lying executor",
        move((*ATTEMPT, "segments", 1, "voucher"), (*ATTEMPT, "segments", 2, "voucher")),
        "attempt 0, segment 2: executor's voucher: nothing was due, but here is a voucher",
    ),
    "liar paid": (
        "lying verifier",
        _pay_the_liar,
        "attempt 0, segment 0: voucher of verifier: nothing was due, but here is a voucher",
    ),
    "fee withheld": (
        "auction",
        put((*VERIFIER, "voucher"), b""),
        "attempt 0, segment 0: voucher of verifier: the voucher is missing",
    ),
    "fee changed": (
        "unconfirmed vouchers",
        sign_anew((*VERIFIER, "voucher"), settled_micros=11),
        "attempt 0, segment 0: voucher of verifier: settled_micros=11 must be 10",
    ),
    "confirmation forged": (
        "auction",
        sign_anew((*SEGMENT, "voucher_receipt")),
        "attempt 0, segment 0: executor's voucher receipt: it isn't signed by the payee",
    ),
    "confirmation of another": (
        "auction",
        move((*ATTEMPT, "segments", 1, "voucher_receipt"), (*SEGMENT, "voucher_receipt")),
        "attempt 0, segment 0: executor's voucher receipt: it confirms another voucher",
    ),
    "unit left out": (
        "auction",
        lambda b: edit(b, ("units",), lambda u: u[:-1]),
        "attempt 0, segment 3: units: output units don't match the commitment's digest",
    ),
    "unit added": (
        "auction",
        lambda b: edit(b, ("units",), lambda u: (*u, 1)),
        "units: here are 31, but 30 were verified",
    ),
    "unit changed": (
        "auction",
        lambda b: edit(b, ("units", 20), lambda u: u ^ 1),
        "attempt 0, segment 2: units: output units don't match the commitment's digest",
    ),
    "no such state": ("auction", put(("state",), "done"), "state: 'done' is no final state"),
    "state better": (
        "no draw claims",
        put(("state",), "verified"),
        "state: 'verified', but the last outcome: no verifier answered",
    ),
    "state worse": (
        "auction",
        put(("state",), "timed_out"),
        "state: 'timed_out', but the last outcome: verified",
    ),
    "no bids after all": (
        "no draw claims",
        put(("state",), "no_bids"),
        "state: 'no_bids', but an award wasn't refused",
    ),
    "task failed untried": (
        "no bids",
        put(("state",), "task_failed"),
        "state: 'task_failed', but no task failed",
    ),
    "two bad ends": (
        "withheld opening",
        put((*ATTEMPT, "segments", 1, "verdict"), "opening withheld"),
        "attempt 0: outcome: the attempt goes on after the verdict ['opening withheld']",
    ),
    "confirmation without a voucher": (
        "silent verifier",
        put((*SEGMENT, "verifiers", 0, "voucher"), b""),
        "attempt 0, segment 0: voucher of verifier: the voucher is missing",
    ),
    "confirmation of another amount": (
        "auction",
        sign_anew((*SEGMENT, "voucher_receipt"), signer=1, settled_micros=1),
        "attempt 0, segment 0: executor's voucher receipt: settled_micros=1 isn't the voucher's 816",
    ),
    "opening too small": (
        "all chunks",
        _half_opened,
        "attempt 0, segment 0: opening: it leaves out the drawn chunks [1]",
    ),
    "opened too early": (
        "no blind verdicts",
        lambda body: edit(body, (*SEGMENT, "opening"), lambda old: _opening_of_nobody(body)),
        "attempt 0, segment 0: opening: it was opened before any verifier had committed to its results",
    ),
    "fraud proof in another attempt": (
        "lying executor",
        lambda body: edit(body, ("attempts", 1, "segments", 0, "fraud"), lambda old: _fraud(body)),
        "attempt 1, segment 0: fraud proof: it is about another contract",
    ),
    "fraud proof about another opening": (
        "lying executor",
        sign_anew((*ATTEMPT, "segments", 2, "fraud"), statement=b""),
        "attempt 0, segment 2: fraud proof: not a _Envelope: Input data was truncated",
    ),
    "withheld, but given and not checked": (
        "silent verifier",
        put((*SEGMENT, "verdict"), "opening withheld"),
        "attempt 0, segment 0: verdict: withheld, but here is the opening",
    ),
    "unverified, but half-done": (
        "withheld opening",
        put((*SEGMENT, "verdict"), "no verifier answered"),
        "attempt 0, segment 0: verdict: unverified, but verifiers had committed and nothing was opened",
    ),
    "confirmation of nothing": (
        "lying executor",
        move((*ATTEMPT, "segments", 1, "voucher_receipt"), (*ATTEMPT, "segments", 2, "voucher_receipt")),
        "attempt 0, segment 2: executor's voucher: a voucher is confirmed that isn't here",
    ),
    "fraud proof against a verifier": (
        "lying executor and verifier",
        _accuse_the_verifier,
        "attempt 0, segment 2: fraud proof: it doesn't accuse the executor's opening",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_the_lie_is_named(name: str) -> None:
    assert_refused(*LIES[name])
