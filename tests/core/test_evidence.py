"""Proofs as one peer serves, fetches and judges them; and what a dispute withholds."""

from __future__ import annotations

from typing import Any

import pytest

from p2p_node.core.evidence import PART_MS
from p2p_node.core.node import NodeCore
from p2p_node.core.payouts import Payouts
from p2p_node.sim import program
from protocols.effects import Judge, Notify, Persist, Publish, Run, Send
from protocols.envelope import Signed
from protocols.events import Finding, RunFailed, RunJudged
from protocols.limits import (
    EVIDENCE_FETCHES_MAX,
    EVIDENCE_PART_BYTES_MAX,
    EVIDENCE_SERVED_BYTES_MAX,
    EVIDENCE_SERVED_MS,
)
from protocols.messages import EvidencePart, EvidenceWant, FraudNotice, OperatorFraud, Voucher
from protocols.rulings import Ruling
from tests.support.builders import EXECUTOR, NOW_MS, REQUESTER, advert, changed, key, signed
from tests.support.disputes import VERIFIER, Table, Worker
from tests.support.machines import core, sent, the
from verification.dispute_evidence import evidence_digest

ACCUSER, STRANGER = VERIFIER, 9


def proof() -> OperatorFraud:
    accusation = Table(executor=Worker(variant=b"cheap")).play().accusation(VERIFIER)
    assert accusation is not None
    return accusation


PROOF = signed(ACCUSER, proof())


def notice(raw: bytes = PROOF.raw, number: int = ACCUSER, **fields: Any) -> Signed[FraudNotice]:
    table = Table(executor=Worker(variant=b"cheap"))
    body = FraudNotice(evidence_digest(raw), len(raw), key(EXECUTOR), table.commitment.id, 1, NOW_MS)
    return signed(number, changed(body, **fields))


def parts(raw: bytes = PROOF.raw, number: int = ACCUSER) -> list[Signed[EvidencePart]]:
    size = EVIDENCE_PART_BYTES_MAX
    return [
        signed(number, EvidencePart(evidence_digest(raw), n, raw[n * size : (n + 1) * size]))
        for n in range(-(-len(raw) // size))
    ]


def fetched(node: NodeCore, raw: bytes = PROOF.raw, **fields: Any) -> list[Any]:
    effects = node.disputes.hear_notice(notice(raw, **fields), NOW_MS)
    for part in parts(raw):
        effects = node.disputes.archive.hear_part(part, NOW_MS)
    return effects


def judged(node: NodeCore, run: Run, finding: Finding) -> list[Any]:
    return node.disputes.run_event(RunJudged(run.key, finding, "", 1), NOW_MS)


def test_a_notice_is_followed_by_a_fetch_a_judgement_and_a_conviction() -> None:
    node = core(STRANGER)
    want = the(sent(node.disputes.hear_notice(notice(), NOW_MS), EvidenceWant))
    assert (want.body.evidence, want.body.part) == (evidence_digest(PROOF.raw), 0)
    [run] = node.disputes.archive.hear_part(parts()[0], NOW_MS)
    assert isinstance(run, Run) and isinstance(run.task, Judge)
    finding, _ = program.judge(run.task.case, chunk_units=32)
    effects = judged(node, run, finding)
    assert node.standings.of(key(EXECUTOR)).convicted
    kept = the([e for e in effects if isinstance(e, Persist)])
    assert (kept.table, kept.key, kept.value) == ("convictions", key(EXECUTOR), notice().raw)
    assert "convicted" in [e.event for e in effects if isinstance(e, Notify)]
    # It can serve what it believes, and doesn't ask again.
    served = node.disputes.archive.hear_want(signed(REQUESTER, EvidenceWant(want.body.evidence, 0)), NOW_MS)
    assert the(sent(served, EvidencePart)).body.data == PROOF.raw
    assert node.disputes.hear_notice(notice(), NOW_MS) == []


def test_a_conviction_is_remembered_over_a_restart() -> None:
    node = core(STRANGER)
    [run] = fetched(node)
    stored = [e.key for e in judged(node, run, Finding.GUILTY) if isinstance(e, Persist)]
    again = core(STRANGER)
    again.restore(registry=[], convictions=stored, outbox={}, now_ms=NOW_MS)
    assert again.standings.of(key(EXECUTOR)).convicted
    assert not again.standings.is_welcome(key(EXECUTOR), NOW_MS)


def test_a_proof_of_which_the_accused_is_acquitted_costs_its_signer() -> None:
    node = core(STRANGER)
    [run] = fetched(node)
    [note] = judged(node, run, Finding.ACQUITTED)
    assert note == Notify(b"", "false-accusation", {"accuser": key(ACCUSER), "accused": key(EXECUTOR)})
    assert not node.standings.of(key(EXECUTOR)).convicted
    assert not node.standings.is_welcome(key(ACCUSER), NOW_MS)
    other = notice(evidence=bytes(32))
    assert node.disputes.hear_notice(other, NOW_MS) == []


@pytest.mark.parametrize("fails", [True, False])
def test_what_cannot_be_judged_harms_nobody(fails: bool) -> None:
    node = core(STRANGER)
    [run] = fetched(node)
    if fails:
        node.disputes.run_event(RunFailed(run.key, "worker-died", ""), NOW_MS)
    else:
        judged(node, run, Finding.INCONCLUSIVE)
    assert node.disputes.archive.fetching == 0
    for peer in (ACCUSER, EXECUTOR):
        assert node.standings.is_welcome(key(peer), NOW_MS)


@pytest.mark.parametrize(
    ("raw", "fields", "rule"),
    [
        (PROOF.raw, {"bytes_total": len(PROOF.raw) + 1}, "has .* bytes"),
        (PROOF.raw, {"accused": key(REQUESTER)}, "accuses somebody else"),
        (PROOF.raw, {"chunk": 0}, "accuses somebody else"),
        (PROOF.raw[:-1] + b"\0", {}, "signature"),
        (signed(ACCUSER, changed(PROOF.body, index=7)).raw, {}, "isn't proved"),
        (signed(ACCUSER, EvidenceWant(bytes(32), 0)).raw, {}, "expected 'operator-fraud'"),
    ],
)
def test_a_proof_that_does_not_hold_is_dropped_and_its_bringer_avoided(
    raw: bytes, fields: dict[str, Any], rule: str
) -> None:
    node = core(STRANGER)
    with pytest.raises(Exception, match=rule):
        fetched(node, raw, **fields)
    assert node.disputes.archive.fetching == 0
    assert not node.standings.is_welcome(key(ACCUSER), NOW_MS)
    assert not node.standings.of(key(EXECUTOR)).convicted


def test_parts_come_from_the_bringer_in_order_and_in_time() -> None:
    node = core(STRANGER)
    archive = node.disputes.archive
    node.disputes.hear_notice(notice(), NOW_MS)
    assert archive.hear_part(parts(number=REQUESTER)[0], NOW_MS) == []
    assert archive.hear_part(signed(ACCUSER, changed(parts()[0].body, part=1)), NOW_MS) == []
    assert archive.fetching == 1
    assert node.disputes.timer_fired(("evidence", evidence_digest(PROOF.raw)), NOW_MS + PART_MS) == []
    assert archive.fetching == 0
    assert archive.hear_part(parts()[0], NOW_MS) == []


def test_no_more_is_fetched_at_once_than_memory_allows() -> None:
    node = core(STRANGER)
    for number in range(2 * EVIDENCE_FETCHES_MAX):
        node.disputes.hear_notice(notice(evidence=bytes([number]) * 32), NOW_MS)
    assert node.disputes.archive.fetching == EVIDENCE_FETCHES_MAX
    assert core(EXECUTOR).disputes.hear_notice(notice(), NOW_MS) == []


def test_no_peer_is_served_without_end() -> None:
    node = core(ACCUSER)
    archive = node.disputes.archive
    effects = archive.publish(PROOF.body, key(REQUESTER), NOW_MS)
    told = [e for e in effects if isinstance(e, Publish)]
    assert [e.topic for e in told] == ["convictions"]
    assert the(sent(effects, FraudNotice)).body.accused == key(EXECUTOR)
    digest = told[0].message.body.evidence
    served = [
        archive.hear_want(signed(STRANGER, EvidenceWant(digest, 0)), NOW_MS)
        for _ in range(EVIDENCE_SERVED_BYTES_MAX // len(PROOF.raw) + 3)
    ]
    assert served[0] and not served[-1]
    later = NOW_MS + EVIDENCE_SERVED_MS
    assert archive.hear_want(signed(STRANGER, EvidenceWant(digest, 0)), later)
    assert archive.hear_want(signed(STRANGER, EvidenceWant(digest, 1)), later) == []


@pytest.mark.parametrize(
    ("fields", "ruling"),
    [
        ({}, Ruling.ACCEPT),
        ({"accused": key(ACCUSER)}, Ruling.REJECT),
        ({"sent_ms": NOW_MS + 60_000}, Ruling.REJECT),
        ({"sent_ms": NOW_MS - 86_400_001}, Ruling.IGNORE),
        ({"accused": key(8)}, Ruling.IGNORE),
    ],
)
def test_the_gossip_rule_of_notices(fields: dict[str, Any], ruling: Ruling) -> None:
    node = core(STRANGER)
    node.registry.hear(advert(EXECUTOR), NOW_MS)
    assert node.judge("convictions", notice(**fields).raw, NOW_MS)[0] is ruling


def test_one_notice_of_each_against_each_is_passed_on() -> None:
    node = core(STRANGER)
    node.registry.hear(advert(EXECUTOR), NOW_MS)
    first, second = notice(), notice(sent_ms=NOW_MS + 1)
    assert node.judge("convictions", first.raw, NOW_MS)[0] is Ruling.ACCEPT
    node.gossip_received("convictions", first.raw, key(3), NOW_MS)
    assert node.judge("convictions", second.raw, NOW_MS)[0] is Ruling.IGNORE
    assert node.judge("convictions", notice(number=4).raw, NOW_MS)[0] is Ruling.ACCEPT
    node.standings.convict(key(EXECUTOR))
    assert node.judge("convictions", notice(number=5).raw, NOW_MS)[0] is Ruling.IGNORE


# --- What is withheld ----------------------------------------------------------------------------


def test_the_parties_of_a_dispute_are_paid_once_it_is_settled() -> None:
    node = core(REQUESTER)
    payouts = Payouts(node, bytes(32), job_id=b"", route=lambda identifier: None)
    payouts.hold(b"one", frozenset({key(3), key(EXECUTOR)}))
    payouts.hold(b"two", frozenset({key(EXECUTOR)}))
    assert payouts.pay(key(3), 10, b"a" * 32, NOW_MS) == []
    assert payouts.pay(key(EXECUTOR), 20, b"b" * 32, NOW_MS) == []
    assert sent(payouts.pay(key(4), 30, b"a" * 32, NOW_MS), Voucher)
    released = sent(payouts.release(b"one", NOW_MS), Voucher)
    assert [(v.body.payee, v.body.settled_micros) for v in released] == [(key(3), 10)]
    released = sent(payouts.release_all(NOW_MS), Voucher)
    assert [(v.body.payee, v.body.settled_micros) for v in released] == [(key(EXECUTOR), 20)]
    assert payouts.release_all(NOW_MS) == []


def test_disputes_about_what_we_do_not_know_or_were_not_drawn_for_are_not_joined() -> None:
    table = Table(executor=Worker(variant=b"cheap"))
    node = core(STRANGER)
    assert node.disputes.hear(table.message, NOW_MS) == []
    assert node.disputes.parties == {}
    assert not [e for e in node.disputes.hear(table.message, NOW_MS) if isinstance(e, Send)]
