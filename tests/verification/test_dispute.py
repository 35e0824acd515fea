"""From two statements that differ to the operator that convicts one of them, whatever the liar does."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from p2p_node.sim import program
from p2p_node.sim.program import ROUNDS, VALUES
from protocols import merkle
from protocols.effects import PROGRAM_INDEX
from protocols.envelope import Signed
from protocols.errors import Rejected
from protocols.events import Finding
from protocols.messages import OperatorFraud, TraceChildren, TraceRoot
from tests.support.builders import (
    CRYPTO,
    EXECUTOR,
    INPUT,
    NETWORK,
    REQUESTER,
    UNITS,
    changed,
    key,
    signed,
)
from tests.support.disputes import CHUNK, VERIFIER, Table, Worker, quarrel_of
from verification.dispute import open_dispute
from verification.dispute_evidence import OperatorAccusation, open_operator_fraud
from verification.dispute_party import PartyState
from verification.dispute_umpire import UmpireState

CHEAP = Worker(variant=b"cheap")
LIE = Worker(variant=b"lie")
FALSE_UNITS_CLAIMED = (*UNITS[:-1], UNITS[-1] ^ 1)


def judged(proof: OperatorFraud | None) -> tuple[OperatorAccusation, Finding | None]:
    assert proof is not None
    accusation = open_operator_fraud(proof, network=NETWORK, crypto=CRYPTO)
    return accusation, program.judge(accusation.case, chunk_units=32)[0] if accusation.case else None


def assert_convicts(table: Table, guilty: int, innocent: int, index: int) -> None:
    accusation, finding = judged(table.accusation(innocent))
    assert accusation.accused == key(guilty)
    assert accusation.is_guilty(finding)
    assert accusation.case is not None and accusation.case.index == index
    # Its own case fell before its own referee.
    assert table.accusation(guilty) is None
    assert all(party.state is PartyState.DONE for party in table.parties.values())


@pytest.mark.parametrize("operator", range(ROUNDS))
def test_it_descends_to_the_operator_that_the_executor_changed(operator: int) -> None:
    table = Table(executor=Worker(variant=bytes([ROUNDS + operator]))).play()
    assert_convicts(table, EXECUTOR, VERIFIER, 6 + operator)
    assert table.umpire.state is UmpireState.AWAITING_PROOF
    assert table.umpire.rounds <= (VALUES - 1).bit_length()
    assert table.faults == []


def test_a_false_verdict_is_convicted_by_the_verifiers_own_signatures() -> None:
    table = Table(verifier=LIE).play()
    assert_convicts(table, VERIFIER, EXECUTOR, 6 + b"lie"[0] % ROUNDS)
    assert judged(table.accusation(EXECUTOR))[0].role == "verifier"


def test_false_units_are_found_where_they_are_compared() -> None:
    table = Table(executor=Worker(denies=True), units=FALSE_UNITS_CLAIMED).play()
    assert_convicts(table, EXECUTOR, VERIFIER, 4)


@pytest.mark.parametrize(
    ("worker", "index"), [(Worker(model=b"\1" * 32), 2), (Worker(input=b"another input", denies=True), 0)]
)
def test_other_weights_or_another_input_show_as_inputs_of_the_program(worker: Worker, index: int) -> None:
    table = Table(executor=worker).play()
    assert_convicts(table, EXECUTOR, VERIFIER, index)
    proof = table.accusation(VERIFIER)
    assert proof is not None and proof.values == ()


def test_whoever_traces_another_program_is_convicted_of_that() -> None:
    table = Table(executor=Worker(variant=b"cheap", program=b"\1" * 32)).play()
    assert_convicts(table, EXECUTOR, VERIFIER, PROGRAM_INDEX)


def contradict(number: int, message: Signed[Any]) -> Signed[Any]:
    """The executor signs the root of the honest trace after it stated a cheap digest."""
    if number == EXECUTOR and isinstance(message.body, TraceRoot):
        honest = program.trace(HONEST_TASK, chunk_units=32)[1]
        fields = {"root": merkle.root(honest), "path": merkle.prove(honest, len(honest) - 1)}
        return signed(number, changed(message.body, **fields))
    return message


AGREED, COMMITMENT, MESSAGE = quarrel_of(CHEAP, Worker())
HONEST_TASK = program.Trace(
    AGREED.terms.workload, AGREED.terms.model, AGREED.terms.profile, INPUT, UNITS, CHUNK
)


def test_a_root_that_contradicts_the_statement_needs_no_referee() -> None:
    table = Table(executor=CHEAP, tamper=contradict).play()
    accusation, finding = judged(table.accusation(VERIFIER))
    assert accusation.accused == key(EXECUTOR)
    assert accusation.case is None and accusation.is_guilty(finding)
    assert (table.umpire.loser, table.umpire.is_proved) == (key(EXECUTOR), True)
    assert table.umpire.contradiction is not None
    with pytest.raises(Rejected, match="contradicts itself, so nothing is to be opened"):
        judged(changed(table.umpire.contradiction, index=3))


@pytest.mark.parametrize("seed", range(12))
def test_messages_may_overtake_each_other_and_come_twice(seed: int) -> None:
    guilty = Table(executor=CHEAP, luck=random.Random(seed)).play()
    assert_convicts(guilty, EXECUTOR, VERIFIER, 6 + b"cheap"[0] % ROUNDS)
    assert guilty.faults == []


# --- Nobody honest is convicted ------------------------------------------------------------------


def test_no_exhibit_of_an_honest_trace_convicts_it() -> None:
    """A liar picks any value of the honest party's trace, and opens it as well as can be."""
    table = Table(executor=CHEAP).play()
    root = next(m for m in table.said if m.signer == key(VERIFIER) and isinstance(m.body, TraceRoot))
    honest = program.trace(HONEST_TASK, chunk_units=32)[1]
    proof = table.accusation(VERIFIER)
    assert proof is not None
    for index in range(PROGRAM_INDEX, VALUES):
        named = {name: getattr(HONEST_TASK, name) for name in HONEST_TASK.__slots__}
        task = program.OpenValues(**named, index=max(index, 0))
        opened, context = program.open_values(task, chunk_units=32)
        values = opened if index >= 0 else ()
        against = changed(
            proof,
            statement=table.quarrel.statements[key(VERIFIER)].raw,
            trace=root.raw,
            index=index,
            digest=honest[index] if index >= 0 else bytes(32),
            path=merkle.prove(honest, index) if index >= 0 else (),
            values=values,
            paths=tuple(merkle.prove(honest, value.index) for value in values),
            context=context,
        )
        accusation, finding = judged(against)
        assert accusation.accused == key(VERIFIER)
        assert finding is Finding.ACQUITTED


def test_parties_that_agree_have_nothing_to_dispute() -> None:
    with pytest.raises(Rejected, match="agree about chunk 1"):
        Table()


# --- What is not bound together ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"index": 7}, "isn't proved against the signed trace"),
        ({"digest": bytes(32)}, "isn't proved against the signed trace"),
        ({"path": ()}, "isn't proved against the signed trace"),
        ({"paths": ()}, "are opened with 0 paths"),
        ({"index": PROGRAM_INDEX}, "opens no value"),
        ({"input": b"another"}, "isn't the contract's"),
        ({"units": UNITS[:-1]}, "don't match the commitment's digest"),
    ],
)
def test_a_proof_whose_parts_do_not_fit_is_refused(fields: dict[str, Any], rule: str) -> None:
    proof = Table(executor=CHEAP).play().accusation(VERIFIER)
    with pytest.raises(Rejected, match=rule):
        judged(changed(proof, **fields))


def test_values_are_opened_in_order_below_the_output_and_well_formed() -> None:
    table = Table(executor=Worker(denies=True), units=FALSE_UNITS_CLAIMED).play()
    proof = table.accusation(VERIFIER)
    assert proof is not None and len(proof.values) == 2
    first, second = proof.values
    for values, rule in [
        ((first, first), "must be above"),
        ((first, changed(second, data=second.data + b"\0")), "isn't well formed"),
        ((first, changed(second, dtype="complex64")), "isn't well formed"),
        ((first, changed(second, data=bytes(len(second.data)))), "isn't proved against"),
    ]:
        with pytest.raises(Rejected, match=rule):
            judged(changed(proof, values=values))
    with pytest.raises(Rejected, match="value 1 must be above 3"):
        judged(changed(proof, values=(second, first), paths=proof.paths[::-1]))
    # The referee misses a value that isn't shown.
    one = changed(proof, values=(first,), paths=proof.paths[:1])
    assert judged(one)[1] is Finding.INCONCLUSIVE


def test_a_trace_by_somebody_else_or_about_something_else_is_refused() -> None:
    table = Table(executor=CHEAP).play()
    proof = table.accusation(VERIFIER)
    assert proof is not None
    roots = {m.signer: m for m in table.said if isinstance(m.body, TraceRoot)}
    with pytest.raises(Rejected, match="isn't signed by who made the accused statement"):
        judged(changed(proof, trace=roots[key(VERIFIER)].raw))
    elsewhere = signed(EXECUTOR, changed(roots[key(EXECUTOR)].body, commitment_id=bytes(32)))
    with pytest.raises(Rejected, match="about another commitment"):
        judged(changed(proof, trace=elsewhere.raw))


@pytest.mark.parametrize(
    ("number", "fields", "rule"),
    [
        (EXECUTOR, {}, "isn't the requester's"),
        (REQUESTER, {"commitment_id": bytes(32)}, "isn't the requester's for this commitment"),
        (REQUESTER, {"chunk": 5}, "outside the committed segment"),
        (REQUESTER, {"chunk": 0, "opening": MESSAGE.body.reveal}, "expected 'opening'"),
        (REQUESTER, {"reveal": signed(EXECUTOR, changed(open_dispute(
            MESSAGE, contract=AGREED, commitment=COMMITMENT, network=NETWORK, crypto=CRYPTO
        ).statements[key(VERIFIER)].body)).raw}, "can't have verified it"),
    ],
)  # fmt: skip
def test_a_dispute_that_does_not_hold_is_refused(number: int, fields: dict[str, Any], rule: str) -> None:
    message = signed(number, changed(MESSAGE.body, **fields))
    with pytest.raises(Exception, match=rule):
        open_dispute(message, contract=AGREED, commitment=COMMITMENT, network=NETWORK, crypto=CRYPTO)


# --- Silence, and moves that break a rule --------------------------------------------------------


@pytest.mark.parametrize(
    ("silent", "loser"),
    [({EXECUTOR}, EXECUTOR), ({VERIFIER}, VERIFIER), ({EXECUTOR, VERIFIER}, None)],
)
def test_who_alone_is_silent_loses_and_is_not_convicted(silent: set[int], loser: int | None) -> None:
    table = Table(executor=CHEAP, silent=frozenset(silent)).play()
    assert table.umpire.state is UmpireState.AWAITING_ROOTS
    table.expire()
    assert table.umpire.state is UmpireState.DONE
    assert table.umpire.loser == (key(loser) if loser is not None else b"")
    assert not table.umpire.is_proved


def muted(kind: type, number: int) -> Any:
    def tamper(sender: int, message: Signed[Any]) -> Signed[Any]:
        if sender == number and isinstance(message.body, kind):
            return signed(number, changed(message.body, left=bytes(32)))
        return message

    return tamper


@pytest.mark.parametrize("number", [EXECUTOR, VERIFIER])
def test_children_that_do_not_hold_are_refused_and_count_as_silence(number: int) -> None:
    table = Table(executor=CHEAP, tamper=muted(TraceChildren, number)).play()
    assert any("don't make that node" in fault for fault in table.faults)
    assert table.umpire.state is UmpireState.DESCENDING
    table.expire()
    assert (table.umpire.loser, table.umpire.is_proved) == (key(number), False)


@pytest.mark.parametrize("failing", ["trace"])
def test_a_party_that_cannot_trace_declines_and_nobody_loses(failing: str) -> None:
    table = Table(executor=CHEAP, verifier=Worker(fails=frozenset({failing}))).play()
    assert table.umpire.state is UmpireState.DONE
    assert table.umpire.loser == b"" and "declined" in table.umpire.outcome
    assert all(party.accusation is None for party in table.parties.values())


@pytest.mark.parametrize("failing", ["open", "referee"])
def test_an_operator_that_cannot_be_shown_or_judged_ends_inconclusive(failing: str) -> None:
    table = Table(executor=CHEAP, verifier=Worker(fails=frozenset({failing}))).play()
    table.expire()
    assert table.umpire.state is UmpireState.DONE and table.umpire.loser == b""


def test_a_party_whose_trace_does_not_give_what_it_stated_signs_nothing() -> None:
    """A machine that erred once doesn't convict itself: it loses by silence."""
    table = Table(executor=CHEAP)
    table.executor = Worker()
    table.play()
    assert not any(m.signer == key(EXECUTOR) for m in table.said)
    table.expire()
    assert (table.umpire.loser, table.umpire.is_proved) == (key(EXECUTOR), False)


def test_second_thoughts_are_refused() -> None:
    table = Table(executor=CHEAP).play()
    root = next(m for m in table.said if isinstance(m.body, TraceRoot) and m.signer == key(EXECUTOR))
    fresh = Table(executor=CHEAP, silent=frozenset({VERIFIER})).play()
    fresh.deliver(REQUESTER, root)
    fresh.deliver(REQUESTER, signed(EXECUTOR, changed(root.body, root=bytes(32))))
    assert fresh.faults == ["a party signed two different roots in one dispute"]
    fresh.deliver(REQUESTER, signed(4, root.body))
    assert "by neither party" in fresh.faults[-1]
    fresh.deliver(REQUESTER, signed(VERIFIER, changed(root.body, chunk=0)))
    assert "about another chunk" in fresh.faults[-1]
    early = TraceChildren(table.quarrel.id, 3, 0, bytes(32), bytes(32))
    fresh.deliver(REQUESTER, signed(VERIFIER, early))
    fresh.deliver(REQUESTER, signed(VERIFIER, changed(early, left=b"\1" * 32)))
    assert fresh.faults[-1] == "two different moves at level 3"


def test_what_a_party_holds_before_its_turn_is_bounded() -> None:
    table = Table(executor=CHEAP)
    party = table.parties[VERIFIER]
    table.perform(VERIFIER, [])
    for level in range(1, 33):
        move = TraceChildren(table.quarrel.id, level, 0, bytes(32), bytes(32))
        table.deliver(VERIFIER, signed(EXECUTOR, move))
        table.deliver(VERIFIER, signed(EXECUTOR, changed(move, right=b"\1" * 32)))
    assert len(party._moves) == 32
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert([bytes(32), 33, 0, bytes(32), bytes(32)], TraceChildren)
