"""A fraud proof convicts by arithmetic alone: all else in it is checked before anybody recomputes."""

from __future__ import annotations

from typing import Any

import pytest

from p2p_node.sim.workload import recompute
from protocols.errors import Malformed, PeerFault, Rejected
from protocols.limits import FRAUD_INPUT_BYTES_MAX
from protocols.messages import FraudProof
from tests.support.builders import (
    CRYPTO,
    EXECUTOR,
    INPUT,
    NETWORK,
    UNITS,
    blind,
    changed,
    claim,
    committed,
    contract,
    digests,
    key,
    opening,
    reveal,
    signed,
)
from verification.fraud import build_proof, open_proof

AGREED = contract()
TRUTH = digests(AGREED.terms)
PROVER, COMMITMENT = committed(AGREED, variant=b"cheap")
OPENING = opening(PROVER, COMMITMENT, TRUTH)


def proof(about: Any = OPENING, **fields: Any) -> FraudProof:
    built = build_proof(AGREED, COMMITMENT, about, chunk=1, input=INPUT, units=UNITS)
    assert built is not None
    return changed(built, **fields)


def recomputed(accusation: Any) -> bytes:
    return dict(recompute(accusation.task, chunk_units=32))[accusation.chunk]


def test_a_false_digest_convicts_the_executor() -> None:
    accusation = open_proof(proof(), network=NETWORK, crypto=CRYPTO)
    assert (accusation.accused, accusation.role, accusation.chunk) == (key(EXECUTOR), "executor", 1)
    assert accusation.is_guilty(recomputed(accusation))


def test_an_honest_executor_is_acquitted() -> None:
    executor, commitment = committed(AGREED)
    statement = opening(executor, commitment, TRUTH)
    built = build_proof(AGREED, commitment, statement, chunk=1, input=INPUT, units=UNITS)
    assert built is not None
    accusation = open_proof(built, network=NETWORK, crypto=CRYPTO)
    assert not accusation.is_guilty(recomputed(accusation))


def test_a_false_verdict_convicts_the_verifier() -> None:
    lie = [b"\1" * 32, b"\2" * 32]
    statement = reveal(2, COMMITMENT, blind(2, COMMITMENT, lie), lie)
    accusation = open_proof(proof(statement), network=NETWORK, crypto=CRYPTO)
    assert (accusation.accused, accusation.role) == (key(2), "verifier")
    assert accusation.is_guilty(recomputed(accusation))


OTHER = contract(attempt=1)
OTHER_COMMITMENT = committed(OTHER)[1]
HONEST_REVEAL = reveal(2, COMMITMENT, blind(2, COMMITMENT, TRUTH), TRUTH)


@pytest.mark.parametrize(
    ("fields", "fault", "rule"),
    [
        ({"award": OTHER.award.raw}, Rejected, "acceptance is of another award"),
        ({"award": AGREED.acceptance.raw}, Malformed, "expected 'award'"),
        ({"commitment": OTHER_COMMITMENT.raw}, Rejected, "for another award"),
        ({"chunk": 2}, Rejected, "outside the committed segment"),
        ({"input": INPUT + b"!"}, Rejected, "input isn't the contract's"),
        ({"units": UNITS[:-1]}, Rejected, "don't match the commitment's digest"),
        ({"units": ()}, Rejected, "don't match the commitment's digest"),
        ({"statement": claim(2, COMMITMENT).raw}, Rejected, "doesn't state a digest"),
        ({"statement": signed(2, OPENING.body).raw}, Rejected, "isn't the executor's"),
        (
            {"statement": signed(2, changed(HONEST_REVEAL.body, commitment_id=bytes(32))).raw},
            Rejected,
            "about another commitment",
        ),
        (
            {"statement": signed(2, changed(HONEST_REVEAL.body, results=((0, TRUTH[0]),))).raw},
            Rejected,
            "doesn't mention chunk 1",
        ),
        ({"statement": b""}, PeerFault, "Envelope"),
    ],
)
def test_what_is_not_bound_together_accuses_nobody(
    fields: dict[str, Any], fault: type[PeerFault], rule: str
) -> None:
    with pytest.raises(fault, match=rule):
        open_proof(proof(**fields), network=NETWORK, crypto=CRYPTO)


def test_an_unknown_profile_convicts_nobody() -> None:
    native = contract(profile="bf16")
    executor, commitment = committed(native)
    statement = opening(executor, commitment, digests(native.terms))
    assert build_proof(native, commitment, statement, chunk=0, input=INPUT, units=UNITS) is None
    forged = FraudProof(
        native.award.raw, native.acceptance.raw, commitment.raw, statement.raw, 0, INPUT, UNITS
    )
    with pytest.raises(Rejected, match="profile 'bf16' is unknown"):
        open_proof(forged, network=NETWORK, crypto=CRYPTO)


def test_a_proof_too_large_to_gossip_is_not_built() -> None:
    large = bytes(FRAUD_INPUT_BYTES_MAX + 1)
    assert build_proof(AGREED, COMMITMENT, OPENING, chunk=0, input=large, units=UNITS) is None
