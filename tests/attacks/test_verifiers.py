"""Verifiers that lie, copy, stamp, accuse or say nothing: none is paid, and none hurts an honest executor."""

from __future__ import annotations

import pytest

from p2p_node.core.attempt import Outcome
from p2p_node.hostile import ATTACKS, Role
from p2p_node.sim.attacks import Battle, Setting, fight
from verification.round import Verdict

FOUGHT = {"false-verdict", "rubber-stamp", "copied-verdict", "silent-verifier", "false-accusation"}


def battle(kind: str, *, seed: int = 5, verifiers: int = 6) -> Battle:
    fought = fight(Setting(kind=kind, jobs=2, verifiers=verifiers, real_keys=True), seed=seed)
    assert fought.is_mounted
    # Whatever they did: the client has its answer, from executors that nobody doubts and that were paid.
    assert fought.has_right_answers()
    assert fought.harm() == []
    for job in fought.jobs:
        assert [attempt.outcome for attempt in job.attempts] == [Outcome.VERIFIED]
    fought.invariants.check_end()
    return fought


def test_a_false_verdict_convicts_its_verifier() -> None:
    fought = battle("false-verdict")
    liars = {e.claim.signer for e in fought.hostile_entries() if e.reveal is not None}
    assert fought.notes("disputed") > 0
    for liar in liars:
        assert all(peer.core.standings.of(liar).convicted for peer in fought.honest)
    assert fought.earned_micros() == 0


def test_a_rubber_stamp_does_not_open_its_own_blind_verdict() -> None:
    fought = battle("rubber-stamp")
    stamped = [entry for entry in fought.hostile_entries() if entry.blind is not None]
    assert all(entry.reveal is None for entry in stamped)
    refused = [why for _, why in fought.penalties_of_hostile()]
    assert refused
    assert all("isn't the one that was hidden" in why for why in refused)
    assert fought.earned_micros() == 0


def test_a_copied_verdict_is_another_verifiers() -> None:
    fought = battle("copied-verdict", verifiers=11)
    copies = fought._copies()
    assert copies
    assert all(entry.reveal is None for entry in copies)
    assert any("isn't the one that was hidden" in why for _, why in fought.penalties_of_hostile())
    paid = {payee for job in fought.jobs for attempt in job.attempts for _, payee in attempt.payouts.vouchers}
    assert {entry.claim.signer for entry in copies}.isdisjoint(paid)


def test_a_silent_verifier_costs_a_deadline_and_earns_nothing() -> None:
    fought = battle("silent-verifier")
    assert not any(entry.is_payable for entry in fought.hostile_entries())
    assert fought.earned_micros() == 0


def test_a_false_accusation_falls_to_everybodys_recomputation() -> None:
    fought = battle("false-accusation")
    assert fought.notes("false-accusation") > 0
    accusers = {e.claim.signer for e in fought.hostile_entries() if e.blind is not None}
    # It is the accuser whose standing suffers, with whoever heard it.
    assert any(peer.core.standings.of(key).failed for peer in fought.honest for key in accusers)
    assert fought.notes("convicted") == 0


@pytest.mark.parametrize("kind", sorted(FOUGHT))
def test_verifiers_that_cheat_cannot_fail_a_segment_while_one_is_honest(kind: str) -> None:
    fought = fight(Setting(kind=kind, executors=4, honest=4, verifiers=9), seed=11)
    assert fought.has_right_answers()
    verdicts = {r.verdict for j in fought.jobs for a in j.attempts for r in a.rounds.values()}
    assert verdicts == {Verdict.VERIFIED}


def test_every_verifier_in_the_catalogue_is_fought_here() -> None:
    assert {kind for kind, attack in ATTACKS.items() if attack.role is Role.VERIFIER} == FOUGHT
