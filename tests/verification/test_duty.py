"""A verifier claims its draw, recomputes from inputs alone, hides its verdict, then reveals it."""

from __future__ import annotations

from typing import Any

import pytest

from protocols.effects import Notify, Recompute, Run, Send, SetTimer
from protocols.errors import Rejected
from protocols.events import Heard, RunFailed, RunRecomputed, TimerFired
from protocols.messages import Assignment, BlindVerdict, DrawClaim, Reveal
from tests.support.builders import (
    CRYPTO,
    ELECTORATE,
    INPUT,
    NETWORK,
    NOW_MS,
    REQUESTER,
    UNITS,
    blind,
    changed,
    committed,
    contract,
    digests,
    key,
    keys,
    opening,
    reveal,
    signed,
    widening,
)
from verification.duty import Duty, DutyState, draw_level, draw_proof
from verification.evidence import check_blind, check_draw, check_reveal
from verification.sortition import alpha

AGREED = contract()
PROVER, COMMITMENT = committed(AGREED)
RESULTS = digests(AGREED.terms)
OPENING = opening(PROVER, COMMITMENT, RESULTS)
SELF = 2


def duty(*, level: int = 0, agreed: Any = AGREED, commitment: Any = COMMITMENT) -> Duty:
    return Duty(
        agreed,
        commitment,
        level=level,
        proof=draw_proof(keys(SELF), NETWORK, commitment.id),
        keys=keys(SELF),
        secret=bytes(32),
        network=NETWORK,
        crypto=CRYPTO,
        sign=lambda body: signed(SELF, body),
    )


def sent(effects: list[Any]) -> Any:
    [message] = [effect.message for effect in effects if isinstance(effect, Send)]
    return message


def claimed() -> tuple[Duty, Any]:
    machine = duty()
    return machine, sent(machine.start(NOW_MS))


def assignment(claim: Any, *, signer: int = REQUESTER, **fields: Any) -> Heard:
    body = Assignment(COMMITMENT.id, claim.id, ELECTORATE.prove(key(SELF)), INPUT, UNITS)
    return Heard(signed(signer, changed(body, **fields)))


def hidden(results: list[bytes] = RESULTS) -> tuple[Duty, Any, Any]:
    machine, claim = claimed()
    machine.handle(assignment(claim), NOW_MS)
    recomputed = RunRecomputed(("verify", COMMITMENT.id), tuple(enumerate(results)), 1)
    return machine, claim, sent(machine.handle(recomputed, NOW_MS))


def test_a_drawn_verifier_claims_at_once() -> None:
    machine = duty()
    effects = machine.start(NOW_MS)
    claim = sent(effects)
    assert SetTimer(("duty", COMMITMENT.id), NOW_MS + 64_000) in effects
    assert isinstance(claim.body, DrawClaim) and machine.state is DutyState.CLAIMED
    membership = ELECTORATE.prove(key(SELF))
    assert check_draw(AGREED, COMMITMENT, claim, membership, network=NETWORK, crypto=CRYPTO, level=0) == (
        0,
        1,
    )


def test_one_drawn_only_wider_waits_for_the_widening() -> None:
    machine = duty(level=2)
    assert not any(isinstance(effect, Send) for effect in machine.start(NOW_MS))
    assert machine.handle(Heard(widening(COMMITMENT, 1)), NOW_MS) == []
    claim = sent(machine.handle(Heard(widening(COMMITMENT, 2)), NOW_MS))
    assert claim.body.widening == 2
    assert machine.handle(Heard(widening(COMMITMENT, 2)), NOW_MS) == []


def test_a_strangers_widening_is_refused() -> None:
    with pytest.raises(Rejected, match="isn't the requester's"):
        duty(level=1).handle(Heard(widening(COMMITMENT, 1, number=4)), NOW_MS)


def test_an_assignment_starts_the_recomputation_of_the_drawn_chunks() -> None:
    machine, claim = claimed()
    [effect] = machine.handle(assignment(claim), NOW_MS)
    terms = AGREED.terms
    task = Recompute(terms.workload, terms.model, terms.profile, INPUT, UNITS, (0, 1))
    assert effect == Run(("verify", COMMITMENT.id), task)
    assert machine.handle(assignment(claim), NOW_MS) == []


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"signer": 3}, "isn't the requester's answer"),
        ({"claim_id": bytes(32)}, "isn't the requester's answer"),
        ({"input": b"other"}, "input isn't the contract's"),
        ({"units": UNITS[:32]}, "don't match the commitment's digest"),
        ({"units": ()}, "don't match the commitment's digest"),
        ({"membership": ELECTORATE.prove(key(3))}, "isn't proved to be in the electorate"),
    ],
)
def test_assignments_of_other_work_are_refused(fields: dict[str, Any], rule: str) -> None:
    machine, claim = claimed()
    with pytest.raises(Rejected, match=rule):
        machine.handle(assignment(claim, **fields), NOW_MS)
    assert machine.state is DutyState.CLAIMED


def test_results_are_hidden_first() -> None:
    machine, claim, verdict = hidden()
    assert isinstance(verdict.body, BlindVerdict) and machine.state is DutyState.HIDDEN
    check_blind(COMMITMENT, claim, verdict, (0, 1))
    assert not any(digest in verdict.raw for digest in RESULTS)


@pytest.mark.parametrize(("results", "agrees"), [(RESULTS, True), (RESULTS[::-1], False)])
def test_the_opening_brings_the_reveal_whatever_it_says(results: list[bytes], agrees: bool) -> None:
    machine, _, verdict = hidden(results)
    effects = machine.handle(Heard(OPENING), NOW_MS)
    shown = sent(effects)
    assert isinstance(shown.body, Reveal) and machine.state is DutyState.DONE
    assert check_reveal(COMMITMENT, verdict, shown) == dict(enumerate(results))
    assert Notify(b"", "verified", {"commitment": COMMITMENT.id, "agrees": agrees}) in effects
    assert machine.fee_micros == 20
    assert machine.handle(Heard(OPENING), NOW_MS) == []


def test_nothing_is_revealed_before_it_was_hidden() -> None:
    machine, claim = claimed()
    assert machine.handle(Heard(OPENING), NOW_MS) == []
    machine.handle(assignment(claim), NOW_MS)
    assert machine.handle(Heard(OPENING), NOW_MS) == []


def test_an_opening_that_leaves_our_chunk_out_gets_no_reveal() -> None:
    machine, _, _ = hidden()
    partial = signed(1, changed(OPENING.body, chunks=OPENING.body.chunks[:1]))
    with pytest.raises(Rejected, match="leaves out a chunk"):
        machine.handle(Heard(partial), NOW_MS)
    with pytest.raises(Rejected, match="isn't the executor's"):
        machine.handle(Heard(signed(4, OPENING.body)), NOW_MS)
    assert machine.state is DutyState.HIDDEN


@pytest.mark.parametrize(
    "event",
    [RunFailed(("verify", COMMITMENT.id), "refused", ""), TimerFired(("duty", COMMITMENT.id))],
)
def test_a_failed_or_expired_duty_is_over(event: Any) -> None:
    machine, claim = claimed()
    machine.handle(assignment(claim), NOW_MS)
    assert machine.handle(event, NOW_MS) == []
    assert machine.state is DutyState.DONE
    late = RunRecomputed(("verify", COMMITMENT.id), tuple(enumerate(RESULTS)), 1)
    assert machine.handle(late, NOW_MS) == []


def test_a_restarted_verifier_opens_the_same_verdict() -> None:
    assert hidden()[2] == hidden()[2]


def test_reveals_of_two_verifiers_differ_though_results_agree() -> None:
    _, _, verdict = hidden()
    other = blind(3, COMMITMENT, RESULTS)
    assert {digest for _, digest in verdict.body.hidden}.isdisjoint(d for _, d in other.body.hidden)
    assert reveal(3, COMMITMENT, other, RESULTS).body.results == tuple(enumerate(RESULTS))


def beta() -> bytes:
    shown = CRYPTO.vrf_output(
        key(SELF), alpha(NETWORK, COMMITMENT.id), draw_proof(keys(SELF), NETWORK, COMMITMENT.id)
    )
    assert shown is not None
    return shown


@pytest.mark.parametrize(
    ("fields", "level"),
    [
        ({}, 0),
        ({"expected_verifiers_milli": 1}, None),
        # Weights that contradict each other draw nobody; they must not raise.
        ({"electorate_weight": 0}, None),
        ({"electorate_weight_max": 0}, None),
        ({"electorate_weight": 1, "electorate_weight_max": 2}, None),
        ({"electorate_weight": 2**48, "electorate_weight_max": 1}, None),
    ],
)
def test_the_level_of_a_draw(fields: dict[str, Any], level: int | None) -> None:
    assert draw_level(beta(), contract(**fields)) == level
