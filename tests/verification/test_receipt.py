"""The offline checker accepts what real jobs leave behind, reports it, and misses no changed byte."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from p2p_node.core.attempt import Outcome
from p2p_node.core.request import FINAL_STATES
from protocols.envelope import seal
from tests.support.forgery import edit
from tests.support.jobs import KINDS, finished
from tests.support.keys import CRYPTO, keyring
from tests.support.swarm import NETWORK, UNITS_MAX
from verification.receipt import ATTEMPT_OUTCOMES, JOB_STATES, ReceiptError, check_receipt
from verification.receipt_report import ReceiptReport


def check(raw: bytes) -> ReceiptReport:
    return check_receipt(raw, network=NETWORK, crypto=CRYPTO)


def evidence(kind: str) -> bytes:
    receipt = finished(kind).receipt
    assert receipt is not None
    return receipt.raw


# --- What real jobs leave behind ---------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_real_receipt_holds(kind: str) -> None:
    job = finished(kind)
    report = check(evidence(kind))
    assert report.state == job.state.value
    assert report.units == job.units
    assert report.job_id == job.id
    assert report.requester == keyring(0).public


def test_outcomes_and_states_are_those_of_the_machines() -> None:
    assert {outcome.value for outcome in Outcome} == ATTEMPT_OUTCOMES
    assert {state.value for state in FINAL_STATES} == JOB_STATES


def test_an_honest_job_is_paid_by_the_terms() -> None:
    report = check(evidence("auction"))
    (attempt,) = report.attempts
    assert attempt.executor == keyring(1).public
    # Second score: the next cheapest asked 102.
    assert attempt.price_micros == 102
    fees = {keyring(n).public: 10 * 4 for n in (2, 3, 4)}
    assert report.earnings == {attempt.executor: 102 * UNITS_MAX, **fees}
    assert report.executors == (attempt.executor,)
    assert report.notes == ()


def test_posted_mode_pays_the_advertised_ask() -> None:
    report = check(evidence("posted"))
    assert report.mode == "posted"
    assert report.attempts[0].price_micros == 101


def test_a_cheater_earns_only_what_was_verified_before_and_another_goes_on() -> None:
    report = check(evidence("lying executor"))
    cheat, heir = report.attempts
    assert [s.verdict for s in cheat.segments] == ["verified", "verified", "fraud", "verified"]
    assert [s.is_paid for s in cheat.segments] == [True, True, False, False]
    assert (cheat.units_after, heir.units_before, heir.units_after) == (16, 16, UNITS_MAX)
    assert report.earnings[cheat.executor] == 16 * cheat.price_micros
    # The heir verified the cheat's four segments of two chunks before it took over.
    assert report.earnings[heir.executor] == 14 * heir.price_micros + 4 * 2 * 10
    accusations = [c for c in report.claims if c.role == "executor" and not c.is_right]
    assert [(c.peer, [chunk for chunk, _ in c.digests]) for c in accusations] == [(cheat.executor, [5])]


def test_a_false_verifier_earns_nothing_and_convicts_nobody() -> None:
    report = check(evidence("lying verifier"))
    liar = keyring(3).public
    assert report.state == "verified"
    assert liar not in report.earnings
    found = {v.finding for s in report.attempts[0].segments for v in s.verifiers if v.peer == liar}
    assert found == {"differs"}
    assert all(claim.is_right == (claim.peer != liar) for claim in report.claims)


def test_a_verifier_that_lies_about_a_forged_chunk_earns_nothing_either() -> None:
    report = check(evidence("lying executor and verifier"))
    fraud = report.attempts[0].segments[2]
    assert fraud.verdict == "fraud"
    assert {v.peer: v.is_paid for v in fraud.verifiers} == {
        keyring(2).public: True,
        keyring(3).public: False,
        keyring(4).public: True,
    }


def test_a_wider_draw_is_granted_in_the_receipt() -> None:
    widenings = {
        v.widening for s in check(evidence("widened draw")).attempts[0].segments for v in s.verifiers
    }
    assert max(widenings) > 0


def test_a_job_that_ran_out_of_time_pays_for_what_was_verified() -> None:
    report = check(evidence("out of time"))
    assert report.state == "timed_out"
    (attempt,) = report.attempts
    assert attempt.outcome == "cancelled"
    assert [segment.verdict for segment in attempt.segments] == ["verified", "verified", "", ""]
    assert attempt.units_after == 16
    assert report.earnings[attempt.executor] == 16 * attempt.price_micros


def test_a_silent_verifier_earns_nothing() -> None:
    report = check(evidence("silent verifier"))
    assert keyring(3).public not in report.earnings
    assert report.state == "verified"


def test_what_only_the_requester_says_is_noted() -> None:
    assert "withheld" in check(evidence("withheld opening")).notes[0]
    report = check(evidence("lying executor, large input"))
    assert "fraud by the requester's word" in report.notes[0]
    assert all(claim.is_right for claim in report.claims)


def test_where_machines_may_differ_fraud_is_proved_by_the_exact_re_run() -> None:
    report = check(evidence("lying executor, native"))
    assert not any("requester's word" in note for note in report.notes)
    assert [claim.task.profile for claim in report.claims] == ["native-reference"] * len(report.claims)
    assert not all(claim.is_right for claim in report.claims)


# --- Integrity ---------------------------------------------------------------------------------


def test_nobody_else_can_sign_the_receipt() -> None:
    receipt = finished("auction").receipt
    assert receipt is not None
    with pytest.raises(ReceiptError, match="offer 0: the 'offer' isn't the requester's"):
        check(seal(receipt.body, network=NETWORK, key=keyring(1)).raw)


def test_a_receipt_is_for_one_network() -> None:
    with pytest.raises(ReceiptError, match="receipt: message is for network 'testnet'"):
        check_receipt(evidence("auction"), network="mainnet", crypto=CRYPTO)
    receipt = finished("auction").receipt
    assert receipt is not None
    moved = seal(receipt.body, network="mainnet", key=keyring(0)).raw
    with pytest.raises(ReceiptError, match="offer 0: message is for network 'testnet'"):
        check_receipt(moved, network="mainnet", crypto=CRYPTO)


def test_another_message_is_no_receipt() -> None:
    receipt = finished("auction").receipt
    assert receipt is not None
    with pytest.raises(ReceiptError, match="expected 'receipt', got 'offer'"):
        check(receipt.body.offers[0])


@pytest.mark.parametrize("kind", ["auction", "lying executor"])
def test_no_byte_of_the_evidence_can_change(kind: str) -> None:
    raw = evidence(kind)
    positions = random.Random(7).sample(range(len(raw)), 400)
    for position in positions:
        flipped = bytearray(raw)
        flipped[position] ^= 1 << position % 8
        with pytest.raises(ReceiptError):
            check(bytes(flipped))
    for end in random.Random(8).sample(range(len(raw)), 20):
        with pytest.raises(ReceiptError):
            check(raw[:end])


def _nested_envelopes(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Paths of all non-empty bytes fields of a receipt's records."""
    if isinstance(value, bytes):
        return [path] if value else []
    if isinstance(value, tuple):
        return [p for i, part in enumerate(value) for p in _nested_envelopes(part, (*path, i))]
    if isinstance(value, msgspec.Struct):
        names = value.__struct_fields__
        return [p for name in names for p in _nested_envelopes(getattr(value, name), (*path, name))]
    return []


def test_no_byte_of_any_nested_statement_can_change_even_if_the_requester_signs_it() -> None:
    receipt = finished("lying executor").receipt
    assert receipt is not None
    chance = random.Random(9)
    paths = _nested_envelopes(receipt.body)
    assert len(paths) > 100
    for path in paths:

        def flip(raw: bytes) -> bytes:
            flipped = bytearray(raw)
            flipped[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
            return bytes(flipped)

        forged = seal(edit(receipt.body, path, flip), network=NETWORK, key=keyring(0)).raw
        with pytest.raises(ReceiptError):
            check(forged)
