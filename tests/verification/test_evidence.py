"""Every rule by which a signed statement becomes evidence, broken once."""

from __future__ import annotations

from typing import Any

import pytest

from protocols.errors import Malformed, Rejected
from protocols.messages import Acceptance, BlindVerdict, Commitment, CommitmentNotice, MembershipProof
from protocols.units import FALSE_UNITS, units_digest
from tests.support.builders import (
    CRYPTO,
    ELECTORATE,
    EXECUTOR,
    NETWORK,
    REQUESTER,
    UNITS,
    award,
    blind,
    changed,
    claim,
    committed,
    contract,
    digests,
    key,
    notice,
    opening,
    prover,
    reveal,
    signed,
    widening,
)
from verification.evidence import (
    check_blind,
    check_chain,
    check_commitment,
    check_contract,
    check_draw,
    check_opening,
    check_reveal,
    check_units,
    check_widening,
    open_notice,
)

AGREED = contract()
PROVER, COMMITMENT = committed(AGREED)
RESULTS = digests(AGREED.terms)
OPENING = opening(PROVER, COMMITMENT, RESULTS)


def test_an_award_and_its_acceptance_make_a_contract() -> None:
    agreed = check_contract(AGREED.award, AGREED.acceptance)
    assert (agreed.requester, agreed.executor) == (key(REQUESTER), key(EXECUTOR))


@pytest.mark.parametrize(
    ("terms", "acceptance", "rule"),
    [
        (award(), signed(EXECUTOR, Acceptance(award(attempt=1).id, "cpu", 0)), "of another award"),
        (award(), signed(2, Acceptance(award().id, "cpu", 0)), "isn't signed by the award's executor"),
        (
            award(executor=key(REQUESTER)),
            signed(REQUESTER, Acceptance(award(executor=key(REQUESTER)).id, "cpu", 0)),
            "the same peer",
        ),
    ],
)
def test_no_contract(terms: Any, acceptance: Any, rule: str) -> None:
    with pytest.raises(Rejected, match=rule):
        check_contract(terms, acceptance)


def test_an_honest_commitment_fits_its_contract() -> None:
    assert check_commitment(AGREED, COMMITMENT) == COMMITMENT.body


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"award_id": bytes(32)}, "for another award"),
        ({"first_chunk": 1}, "first_chunk=1 doesn't follow from segment=0"),
        ({"segment": 1}, "first_chunk=0 doesn't follow from segment=1"),
        ({"units_total": 65}, "units_total=65 exceeds units_max=64"),
        ({"chunks": 1}, "chunks=1 doesn't cover units_total=64"),
        ({"final": False}, "only the final segment"),
        ({"final": False, "chunks": 1, "units_total": 32}, "only the final segment"),
        ({"previous": bytes(32)}, "the first commitment, and only it"),
    ],
)
def test_impossible_commitments(fields: dict[str, Any], rule: str) -> None:
    with pytest.raises(Rejected, match=rule):
        check_commitment(AGREED, signed(EXECUTOR, changed(COMMITMENT.body, **fields)))


def test_a_segment_has_at_most_the_agreed_chunks() -> None:
    small = contract(segment_chunks=1)
    with pytest.raises(Rejected, match="chunks=2 exceeds segment_chunks=1"):
        check_commitment(small, signed(EXECUTOR, changed(COMMITMENT.body, award_id=small.award.id)))


def test_a_commitment_is_the_executors() -> None:
    with pytest.raises(Rejected, match="isn't signed by the contract's executor"):
        check_commitment(AGREED, signed(2, COMMITMENT.body))


def test_commitments_form_one_chain() -> None:
    agreed = contract(segment_chunks=1)
    executor = prover(agreed)
    first = executor.commit(RESULTS[:1], UNITS[:32], final=False)
    second = executor.commit(RESULTS[1:], UNITS, final=True)
    check_chain(None, first)
    check_chain(first, second)
    with pytest.raises(Rejected, match="segment=1 comes first"):
        check_chain(None, second)
    with pytest.raises(Rejected, match="follows the final one"):
        check_chain(second, first)
    with pytest.raises(Rejected, match="isn't chained"):
        check_chain(first, signed(EXECUTOR, changed(second.body, previous=bytes(32))))
    with pytest.raises(Rejected, match="isn't chained"):
        check_chain(first, signed(EXECUTOR, changed(second.body, segment=2)))


def test_units_must_be_the_committed_ones() -> None:
    check_units(AGREED, COMMITMENT.body, UNITS)
    for units in (UNITS[:-1], (UNITS[0] ^ 1, *UNITS[1:]), ()):
        with pytest.raises(Rejected, match="don't match the commitment's digest"):
            check_units(AGREED, COMMITMENT.body, units)


def test_units_must_begin_with_the_verified_prefix() -> None:
    agreed = contract(prefix_units=32, prefix_digest=units_digest(UNITS[1:33]))
    with pytest.raises(Rejected, match="verified prefix"):
        check_units(agreed, COMMITMENT.body, UNITS)


def ending(count: int, *, final: bool) -> Commitment:
    return changed(COMMITMENT.body, units_total=count, units_digest=units_digest(UNITS[:count]), final=final)


@pytest.mark.parametrize(
    ("stop_unit", "count", "is_final", "rule"),
    [
        (-1, 40, True, "ends before units_max without the stop unit"),
        (UNITS[10], 40, True, "ends before units_max without the stop unit"),
        (UNITS[10], 64, True, "goes on after the stop unit"),
        (UNITS[31], 32, False, "goes on after the stop unit"),
    ],
)
def test_output_ends_where_it_may(stop_unit: int, count: int, is_final: bool, rule: str) -> None:
    with pytest.raises(Rejected, match=rule):
        check_units(contract(stop_unit=stop_unit), ending(count, final=is_final), UNITS[:count])


def test_output_may_end_with_the_stop_unit() -> None:
    check_units(contract(stop_unit=UNITS[39]), ending(40, final=True), UNITS[:40])


def test_a_notice_holds_a_contract_and_its_commitment() -> None:
    agreed, commitment = open_notice(notice(AGREED, COMMITMENT).body, network=NETWORK, crypto=CRYPTO)
    assert (agreed, commitment) == (AGREED, COMMITMENT)
    swapped = CommitmentNotice(AGREED.acceptance.raw, AGREED.award.raw, COMMITMENT.raw)
    with pytest.raises(Malformed, match="expected 'award'"):
        open_notice(swapped, network=NETWORK, crypto=CRYPTO)


def test_only_the_requester_widens() -> None:
    assert check_widening(AGREED, COMMITMENT, widening(COMMITMENT, 2)) == 2
    with pytest.raises(Rejected, match="isn't the requester's"):
        check_widening(AGREED, COMMITMENT, widening(COMMITMENT, 2, number=3))


def draw(number: int = 2, *, level: int = 0, agreed: Any = AGREED, **fields: Any) -> tuple[int, ...]:
    arguments: dict[str, Any] = {
        "claim": claim(number, COMMITMENT, fields.pop("widening", 0)),
        "membership": ELECTORATE.prove(key(number)) if key(number) in ELECTORATE else NOBODY,
        **fields,
    }
    return check_draw(agreed, COMMITMENT, **arguments, network=NETWORK, crypto=CRYPTO, level=level)


NOBODY = MembershipProof(0, 1, ())


def test_a_drawn_member_gets_its_chunks() -> None:
    assert draw() == (0, 1)
    assert len(draw(agreed=contract(samples=1))) == 1
    assert draw(widening=1, level=1) == (0, 1)


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"claim": claim(2, signed(EXECUTOR, changed(COMMITMENT.body, segment=1)))}, "another commitment"),
        ({"number": REQUESTER}, "a party to the contract"),
        ({"number": EXECUTOR}, "a party to the contract"),
        ({"widening": 1}, "exceeds the granted level 0"),
        ({"number": 9}, "isn't proved to be in the electorate"),
        ({"membership": ELECTORATE.prove(key(3))}, "isn't proved to be in the electorate"),
        ({"claim": signed(2, changed(claim(2, COMMITMENT).body, proof=bytes(80)))}, "VRF proof"),
        ({"claim": signed(2, claim(3, COMMITMENT).body)}, "VRF proof"),
        ({"agreed": contract(expected_verifiers_milli=1)}, "didn't draw"),
        # Weights that contradict each other must be refused, not raise from the arithmetic.
        ({"agreed": contract(electorate_weight=0)}, "isn't proved to be in the electorate"),
        ({"agreed": contract(electorate_count=0)}, "isn't proved to be in the electorate"),
    ],
)
def test_draws_that_do_not_hold(arguments: dict[str, Any], rule: str) -> None:
    with pytest.raises(Rejected, match=rule):
        draw(**arguments)


CLAIM = claim(2, COMMITMENT)
BLIND = blind(2, COMMITMENT, RESULTS)


def test_a_blind_verdict_covers_the_drawn_chunks() -> None:
    check_blind(COMMITMENT, CLAIM, BLIND, (0, 1))


@pytest.mark.parametrize(
    ("message", "rule"),
    [
        (blind(3, COMMITMENT, RESULTS), "another claim"),
        (signed(2, changed(BLIND.body, claim_id=bytes(32))), "another claim"),
        (signed(2, changed(BLIND.body, commitment_id=bytes(32))), "another commitment"),
        (blind(2, COMMITMENT, RESULTS[:1]), "exactly the drawn chunks"),
        (signed(2, changed(BLIND.body, hidden=BLIND.body.hidden[::-1])), "exactly the drawn chunks"),
    ],
)
def test_blind_verdicts_that_do_not_count(message: Any, rule: str) -> None:
    with pytest.raises(Rejected, match=rule):
        check_blind(COMMITMENT, CLAIM, message, (0, 1))


def test_an_opening_leads_to_the_root() -> None:
    assert check_opening(AGREED, COMMITMENT, OPENING) == dict(enumerate(RESULTS))


@pytest.mark.parametrize(
    ("first", "rule"),
    [
        ({"digest": RESULTS[1]}, "doesn't lead to the committed root"),
        ({"salt": bytes(32)}, "doesn't lead to the committed root"),
        ({"path": ()}, "doesn't lead to the committed root"),
        ({"chunk": 1}, "repeated or outside|doesn't lead"),
        ({"chunk": 7}, "repeated or outside"),
        ({"digest": FALSE_UNITS}, "doesn't lead to the committed root|false units"),
    ],
)
def test_openings_that_lie(first: dict[str, Any], rule: str) -> None:
    chunks = (changed(OPENING.body.chunks[0], **first), *OPENING.body.chunks[1:])
    with pytest.raises(Rejected, match=rule):
        check_opening(AGREED, COMMITMENT, signed(EXECUTOR, changed(OPENING.body, chunks=chunks)))


def test_a_chunk_is_opened_once() -> None:
    twice = signed(EXECUTOR, changed(OPENING.body, chunks=OPENING.body.chunks[:1] * 2))
    with pytest.raises(Rejected, match="opening of chunk 0 is repeated"):
        check_opening(AGREED, COMMITMENT, twice)


def test_an_opening_is_the_executors() -> None:
    with pytest.raises(Rejected, match="isn't the executor's"):
        check_opening(AGREED, COMMITMENT, signed(2, OPENING.body))


def test_nobody_can_commit_to_the_digest_of_false_units() -> None:
    executor = prover(AGREED)
    commitment = executor.commit([FALSE_UNITS, RESULTS[1]], UNITS, final=True)
    stated = opening(executor, commitment, RESULTS)
    with pytest.raises(Rejected, match="states the digest of false units"):
        check_opening(AGREED, commitment, stated)


REVEAL = reveal(2, COMMITMENT, BLIND, RESULTS)


def test_a_reveal_shows_what_was_hidden() -> None:
    assert check_reveal(COMMITMENT, BLIND, REVEAL) == dict(enumerate(RESULTS))


@pytest.mark.parametrize(
    ("message", "rule"),
    [
        (signed(3, REVEAL.body), "another blind verdict"),
        (signed(2, changed(REVEAL.body, blind_id=bytes(32))), "another blind verdict"),
        (signed(2, changed(REVEAL.body, commitment_id=bytes(32))), "another blind verdict"),
        (signed(2, changed(REVEAL.body, results=REVEAL.body.results[:1])), "exactly the chunks"),
        (signed(2, changed(REVEAL.body, nonce=bytes(32))), "isn't the one that was hidden"),
        (reveal(2, COMMITMENT, BLIND, RESULTS[::-1]), "isn't the one that was hidden"),
    ],
)
def test_reveals_that_differ(message: Any, rule: str) -> None:
    with pytest.raises(Rejected, match=rule):
        check_reveal(COMMITMENT, BLIND, message)


def test_a_copied_blind_verdict_cannot_be_revealed() -> None:
    """Peer 3 repeats peer 2's hidden digests and, after the opening, knows the results and the nonce."""
    copy = signed(3, BlindVerdict(COMMITMENT.id, claim(3, COMMITMENT).id, BLIND.body.hidden, "exact14"))
    with pytest.raises(Rejected, match="isn't the one that was hidden"):
        check_reveal(COMMITMENT, copy, reveal(3, COMMITMENT, copy, RESULTS))
