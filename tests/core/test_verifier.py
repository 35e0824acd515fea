"""What one peer verifies for others: its draws, its fees, and accusations that it recomputes itself."""

from __future__ import annotations

from typing import Any

import pytest

from p2p_node.core.node import NodeCore
from p2p_node.core.verifier import ACCUSATIONS_MAX
from p2p_node.sim.workload import recompute
from protocols.effects import Notify, Persist, Run, Send
from protocols.errors import Rejected
from protocols.events import RunFailed, RunRecomputed
from protocols.limits import DUTIES_MAX
from protocols.messages import Assignment, BlindVerdict, DrawClaim, Reveal, Voucher, VoucherReceipt
from tests.support.builders import (
    CRYPTO,
    ELECTORATE,
    EXECUTOR,
    INPUT,
    NETWORK,
    NOW_MS,
    REQUESTER,
    UNITS,
    changed,
    committed,
    contract,
    digests,
    key,
    opening,
    signed,
    widening,
)
from tests.support.machines import core, sent, the
from verification.duty import DutyState
from verification.fraud import build_proof, open_proof

SELF = 2
AGREED = contract()
PROVER, COMMITMENT = committed(AGREED)
RESULTS = digests(AGREED.terms)
OPENING = opening(PROVER, COMMITMENT, RESULTS)


def hear(node: NodeCore, agreed: Any = AGREED, commitment: Any = COMMITMENT) -> list[Any]:
    return node.verifier.hear_commitment(agreed, commitment, NOW_MS)


def test_a_drawn_verifier_claims_once() -> None:
    node = core(SELF)
    assert the(sent(hear(node), DrawClaim)).body.commitment_id == COMMITMENT.id
    assert hear(node) == []


@pytest.mark.parametrize(
    ("number", "arguments", "fields"),
    [
        (REQUESTER, {}, {}),
        (EXECUTOR, {}, {}),
        (SELF, {"serves": False}, {}),
        (SELF, {}, {"workload": "other"}),
        (SELF, {}, {"profile": "exact21"}),
        # Chunks that our worker cuts otherwise can't be compared.
        (SELF, {}, {"chunk_units": 64}),
        (SELF, {}, {"expected_verifiers_milli": 1}),
        (SELF, {}, {"electorate_weight": 0}),
        (SELF, {}, {"sent_ms": NOW_MS + 8_001}),
    ],
)
def test_commitments_that_are_no_duty_of_ours(number: int, arguments: Any, fields: Any) -> None:
    agreed = contract(**fields)
    node = core(number, **arguments)
    assert hear(node, agreed, committed(agreed)[1] if not fields.get("chunk_units") else COMMITMENT) == []
    assert node.verifier.duties == {}


def test_no_duty_for_a_requester_that_failed_us() -> None:
    node = core(SELF)
    node.standings.record_failure(key(REQUESTER), NOW_MS)
    assert hear(node) == []


def test_whoever_executes_for_a_requester_verifies_for_it_before_it_is_paid() -> None:
    node = core(SELF)
    node.credit.deliver(key(REQUESTER), 10**9)
    assert the(sent(hear(node), DrawClaim)).body.commitment_id == COMMITMENT.id


def announced(node: NodeCore, attempt: int) -> bytes:
    """A commitment of a contract that strangers made with each other."""
    agreed = contract(attempt=attempt, answer_within_ms=3_600_000)
    commitment = committed(agreed)[1]
    hear(node, agreed, commitment)
    return commitment.id


def test_hollow_commitments_cannot_use_up_our_duties(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2p_node.core.verifier.DUTIES_MAX", 3)
    node = core(SELF)
    ids = [announced(node, attempt) for attempt in range(1, 6)]
    assert list(node.verifier.duties) == ids[2:]
    assert hear(node) != []
    assert COMMITMENT.id in node.verifier.duties and len(node.verifier.duties) == 3
    assert DUTIES_MAX > 3


def test_a_duty_that_costs_work_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2p_node.core.verifier.DUTIES_MAX", 1)
    node = core(SELF)
    assigned(node)
    announced(node, 1)
    assert list(node.verifier.duties) == [COMMITMENT.id]


# --- A duty's life -------------------------------------------------------------------------------


def assigned(node: NodeCore) -> list[Any]:
    claim = the(sent(hear(node), DrawClaim))
    body = Assignment(COMMITMENT.id, claim.id, ELECTORATE.prove(key(SELF)), INPUT, UNITS)
    return node.verifier.hear(signed(REQUESTER, body), NOW_MS)


def revealed() -> NodeCore:
    node = core(SELF)
    assert isinstance(assigned(node)[0], Run)
    event = RunRecomputed(("verify", COMMITMENT.id), tuple(enumerate(RESULTS)), 1)
    assert sent(node.verifier.run_event(event, NOW_MS), BlindVerdict)
    assert sent(node.verifier.hear(OPENING, NOW_MS), Reveal)
    return node


def voucher(micros: int = 20, *, sequence: int = 1, signer: int = REQUESTER, **fields: Any) -> Any:
    body = Voucher(AGREED.award.id, key(SELF), sequence, micros, 0, NOW_MS, COMMITMENT.id)
    return signed(signer, changed(body, **fields))


def test_a_reveal_earns_its_fee() -> None:
    node = revealed()
    effects = node.verifier.lanes.hear_voucher(voucher(), NOW_MS)
    assert effects[0] == Persist("vouchers", AGREED.award.id + key(SELF), voucher().raw)
    assert the(sent(effects, VoucherReceipt)).body.settled_micros == 20


def test_more_than_the_fee_is_refused_however_often_the_opening_comes() -> None:
    node = revealed()
    for _ in range(3):
        node.verifier.hear(OPENING, NOW_MS)
    with pytest.raises(Rejected, match="exceeds 20 delivered"):
        node.verifier.lanes.hear_voucher(voucher(21), NOW_MS)


def test_no_work_no_fee() -> None:
    node = core(SELF)
    hear(node)
    node.verifier.timer_fired(("duty", COMMITMENT.id), NOW_MS)
    assert node.verifier.duties[COMMITMENT.id].state is DutyState.DONE
    node.verifier.hear(OPENING, NOW_MS)
    assert node.verifier.lanes.hear_voucher(voucher(), NOW_MS) == []


def test_a_voucher_of_a_lane_we_forgot_is_nobodys_fault() -> None:
    assert core(SELF).verifier.lanes.hear_voucher(voucher(), NOW_MS) == []


def test_a_voucher_is_the_requesters() -> None:
    with pytest.raises(Rejected, match="for another lane"):
        revealed().verifier.lanes.hear_voucher(voucher(signer=4), NOW_MS)


def test_duties_that_are_over_are_forgotten() -> None:
    node = revealed()
    node.verifier.forget(NOW_MS)
    assert node.verifier.duties == {}
    assert node.verifier.hear(widening(COMMITMENT, 1), NOW_MS) == []


# --- Accusations ---------------------------------------------------------------------------------


def accusation(*, variant: bytes, accuser: int = 3, attempt: int = 0) -> tuple[Any, Any]:
    agreed = contract(attempt=attempt)
    executor, commitment = committed(agreed, variant=variant)
    statement = opening(executor, commitment, digests(agreed.terms))
    proof = build_proof(agreed, commitment, statement, chunk=1, input=INPUT, units=UNITS)
    assert proof is not None
    return signed(accuser, proof), open_proof(proof, network=NETWORK, crypto=CRYPTO)


def judge(node: NodeCore, *, variant: bytes) -> list[Any]:
    message, claim = accusation(variant=variant)
    [run] = node.verifier.hear_accusation(message, claim, NOW_MS)
    assert run.key == ("fraud", message.id)
    event = RunRecomputed(run.key, recompute(run.task, chunk_units=32), 1)
    return node.verifier.run_event(event, NOW_MS)


def test_our_own_recomputation_convicts() -> None:
    node = core(4)
    effects = judge(node, variant=b"cheap")
    assert node.standings.of(key(EXECUTOR)).convicted
    assert {type(effect) for effect in effects} == {Persist, Notify}


def test_our_own_recomputation_acquits_and_the_accuser_pays() -> None:
    node = core(4)
    effects = judge(node, variant=b"")
    assert not node.standings.of(key(EXECUTOR)).convicted
    assert not node.standings.is_welcome(key(3), NOW_MS)
    assert effects[0].event == "false-accusation"
    # And is not listened to for a while.
    message, claim = accusation(variant=b"cheap", attempt=1)
    assert node.verifier.hear_accusation(message, claim, NOW_MS) == []


def test_what_we_cannot_recompute_convicts_nobody() -> None:
    node = core(4)
    message, claim = accusation(variant=b"cheap")
    node.verifier.hear_accusation(message, claim, NOW_MS)
    assert node.verifier.run_event(RunFailed(("fraud", message.id), "memory", ""), NOW_MS) == []
    assert node.standings.peers == {}
    assert core(4, serves=False).verifier.hear_accusation(message, claim, NOW_MS) == []


def test_the_accused_does_not_judge_itself() -> None:
    message, claim = accusation(variant=b"cheap")
    assert core(EXECUTOR).verifier.hear_accusation(message, claim, NOW_MS) == []


def test_recomputations_in_hand_are_bounded() -> None:
    node = core(4)
    runs = 0
    for attempt in range(ACCUSATIONS_MAX):
        message, claim = accusation(variant=b"cheap", attempt=attempt % 16, accuser=5 + attempt)
        runs += len(node.verifier.hear_accusation(message, claim, NOW_MS))
    assert runs == ACCUSATIONS_MAX
    message, claim = accusation(variant=b"cheap", accuser=40)
    assert node.verifier.hear_accusation(message, claim, NOW_MS) == []
    assert not any(
        isinstance(effect, Send) for effect in node.verifier.hear_accusation(message, claim, NOW_MS)
    )
