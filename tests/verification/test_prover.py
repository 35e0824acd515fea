"""The executor opens what was drawn, to nobody who can't prove a draw and a hidden verdict."""

from __future__ import annotations

from typing import Any

import pytest

from protocols.errors import BadSignature, PeerFault, Rejected
from protocols.messages import DrawEvidence, OpeningRequest
from tests.support.builders import (
    ELECTORATE,
    REQUESTER,
    UNITS,
    blind,
    changed,
    claim,
    committed,
    contract,
    digests,
    key,
    opening_request,
    prover,
    signed,
    widening,
)
from verification.evidence import check_commitment, check_opening

AGREED = contract()
PROVER, COMMITMENT = committed(AGREED)
RESULTS = digests(AGREED.terms)


def evidence(number: int = 2, **fields: Any) -> DrawEvidence:
    whole = DrawEvidence(
        claim(number, COMMITMENT).raw,
        ELECTORATE.prove(key(number)),
        blind(number, COMMITMENT, RESULTS).raw,
    )
    return changed(whole, **fields)


def request(*draws: DrawEvidence, signer: int = REQUESTER, **fields: Any) -> Any:
    return signed(signer, changed(OpeningRequest(COMMITMENT.id, (), draws), **fields))


def test_segments_are_numbered_chained_and_fit_the_terms() -> None:
    agreed = contract(segment_chunks=1)
    executor = prover(agreed)
    first = executor.commit(RESULTS[:1], UNITS[:32], final=False)
    second = executor.commit(RESULTS[1:], UNITS, final=True)
    assert (second.body.segment, second.body.first_chunk, second.body.previous) == (1, 1, first.id)
    assert check_commitment(agreed, first) and check_commitment(agreed, second)


def test_two_provers_of_one_contract_commit_alike() -> None:
    """A restart must not contradict what was said before it."""
    assert committed(AGREED)[1] == COMMITMENT


def test_drawn_chunks_are_opened() -> None:
    opened = PROVER.open(request(evidence(2), evidence(3)))
    assert check_opening(AGREED, COMMITMENT, opened) == dict(enumerate(RESULTS))


def test_only_drawn_chunks_are_opened() -> None:
    agreed = contract(samples=1)
    executor, commitment = committed(agreed)
    claimed = claim(2, commitment)
    for guess in (0, 1):
        hidden = signed(2, changed(blind(2, commitment, RESULTS).body, claim_id=claimed.id))
        hidden = signed(2, changed(hidden.body, hidden=hidden.body.hidden[guess : guess + 1]))
        draws = (DrawEvidence(claimed.raw, ELECTORATE.prove(key(2)), hidden.raw),)
        try:
            opened = executor.open(signed(REQUESTER, OpeningRequest(commitment.id, (), draws)))
        except Rejected:
            continue
        assert [chunk.chunk for chunk in opened.body.chunks] == [guess]
        return
    raise AssertionError("neither chunk was drawn")


@pytest.mark.parametrize(
    ("message", "fault", "rule"),
    [
        (request(evidence(), signer=2), Rejected, "isn't the requester's"),
        (request(evidence(), commitment_id=bytes(32)), Rejected, "unknown commitment"),
        (request(), Rejected, "names no drawn verifier"),
        (request(evidence(), evidence(3, membership=ELECTORATE.prove(key(2)))), Rejected, "electorate"),
        (request(evidence(claim=claim(3, COMMITMENT).raw)), Rejected, "isn't proved to be in"),
        (request(evidence(claim=claim(2, COMMITMENT, 1).raw)), Rejected, "exceeds the granted level"),
        (request(evidence(blind=blind(3, COMMITMENT, RESULTS).raw)), Rejected, "another claim"),
        (request(evidence(blind=blind(2, COMMITMENT, RESULTS[:1]).raw)), Rejected, "exactly the drawn"),
        (request(evidence(blind=b"")), PeerFault, "BlindVerdict|Envelope"),
        (request(evidence(), widenings=(widening(COMMITMENT, 1, number=3).raw,)), Rejected, "requester's"),
    ],
)
def test_nothing_is_opened_without_a_draw_and_a_hidden_verdict(
    message: Any, fault: type[PeerFault], rule: str
) -> None:
    with pytest.raises(fault, match=rule):
        PROVER.open(message)


def test_a_forged_claim_opens_nothing() -> None:
    raw = bytearray(claim(2, COMMITMENT).raw)
    raw[-1] ^= 1
    with pytest.raises(BadSignature):
        PROVER.open(request(evidence(claim=bytes(raw))))


def test_a_granted_widening_admits_wider_claims() -> None:
    wide = claim(2, COMMITMENT, 1)
    hidden = blind(2, COMMITMENT, RESULTS, claimed=wide)
    draws = (DrawEvidence(wide.raw, ELECTORATE.prove(key(2)), hidden.raw),)
    granted = (widening(COMMITMENT, 1).raw,)
    opened = PROVER.open(signed(REQUESTER, OpeningRequest(COMMITMENT.id, granted, draws)))
    assert len(opened.body.chunks) == 2


def test_the_same_request_gets_the_same_opening() -> None:
    message = opening_request(COMMITMENT, RESULTS, 2)
    assert PROVER.open(message) == PROVER.open(message)
