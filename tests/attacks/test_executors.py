"""Executors that cheat: each is caught by the check that is named for it, and the client gets its answer.

Real keys, real draws and real cores in a simulated world; only the computation is simulated.
"""

from __future__ import annotations

import pytest

from p2p_node.core.attempt import Outcome
from p2p_node.core.request import JobState
from p2p_node.hostile import ATTACKS, Role
from p2p_node.sim.attacks import Battle, Setting, fight
from protocols.standing import DECEIT_FAILURES
from verification.receipt import check_receipt
from verification.round import Verdict

CHEAPER_WORK = [kind for kind, attack in ATTACKS.items() if attack.is_in_worker]


def battle(kind: str, *, seed: int = 5, **fields: object) -> Battle:
    fought = fight(Setting(kind=kind, jobs=2, real_keys=True, **fields), seed=seed)  # type: ignore[arg-type]
    assert fought.is_mounted
    return fought


def assert_harmless(fought: Battle) -> None:
    assert fought.has_right_answers()
    assert fought.harm() == []
    fought.invariants.check_end()


@pytest.mark.parametrize("kind", CHEAPER_WORK)
def test_recomputing_a_chunk_convicts_who_computed_something_else(kind: str) -> None:
    fought = battle(kind)
    assert fought.outcomes() == [Outcome.FRAUD]
    (attempt,) = fought.hostile_attempts()
    (round_,) = attempt.rounds.values()
    assert round_.verdict is Verdict.FRAUD
    assert round_.guilty_chunk is not None
    # Everybody recomputed for itself, and nobody deals with it again: the second job went elsewhere at once.
    assert set(fought.convictions().values()) == {len(fought.honest)}
    assert len(fought.jobs[1].attempts) == 1
    assert fought.earned_micros() == 0
    assert_harmless(fought)


def test_two_commitments_for_one_segment_convict_without_recomputing() -> None:
    fought = battle("equivocation")
    assert fought.outcomes() == [Outcome.INCONSISTENT]
    assert fought.hostile_attempts()[0].detail == "two commitments for one segment"
    assert set(fought.convictions().values()) == {len(fought.honest)}
    # No verifier had to work for it.
    assert fought.notes("disputed") == 0
    assert fought.earned_micros() == 0
    assert_harmless(fought)


def test_a_copied_root_cannot_be_opened() -> None:
    # All electors are drawn, so the copier sees the first contract from inside.
    fought = battle("copied-result", is_repeated=True, verifiers=9)
    assert fought.outcomes() == [Outcome.WITHHELD]
    assert any("doesn't lead to the committed root" in why for _, why in fought.penalties_of_hostile())
    assert fought.convictions() == {fought.hostile[0].index: 0}
    assert fought.earned_micros() < fought.jobs[1].attempts[-1].award.body.price_micros * 128
    assert_harmless(fought)


def test_who_does_not_open_loses_by_the_deadline_and_is_avoided() -> None:
    fought = battle("withheld-opening")
    assert fought.outcomes() == [Outcome.WITHHELD]
    standing = fought.client.core.standings.of(fought.hostile[0].core.key)
    assert standing.failed == DECEIT_FAILURES
    assert not standing.convicted
    assert fought.earned_micros() == 0
    assert_harmless(fought)


def test_output_that_is_named_and_never_served_isnt_paid() -> None:
    fought = battle("withheld-blob")
    assert fought.outcomes() == [Outcome.OUTPUT_WITHHELD]
    assert fought.is_caught
    standing = fought.client.core.standings.of(fought.hostile[0].core.key)
    assert (standing.failed, standing.convicted) == (1, False)
    assert fought.earned_micros() == 0
    assert_harmless(fought)
    receipt = fought.jobs[0].receipt
    assert receipt is not None
    core = fought.client.core
    report = check_receipt(receipt.raw, network=core.network, crypto=core.crypto)
    assert [note.partition(": ")[2] for note in report.notes] == [
        "that its blobs didn't come is the requester's word"
    ]


def test_one_honest_verifier_is_enough_against_a_ring_of_keys() -> None:
    # Which of the ring are drawn, and of which chunks, is chance: here some confirm what is made up.
    fought = battle("sybil-swarm", colluders=4, verifiers=6, seed=7)
    assert fought.outcomes() == [Outcome.FRAUD]
    ring = {peer.core.key for peer in fought.hostile}
    executor = fought.hostile_attempts()[0].candidate.peer
    # Those of the ring that were drawn confirmed what one of them made up, and go down with it.
    accomplices = {e.claim.signer for e in fought.hostile_entries() if e.reveal is not None} & ring
    convicted = {key for key in ring if fought.client.core.standings.of(key).convicted}
    assert executor in convicted
    assert accomplices
    assert convicted & accomplices
    assert_harmless(fought)


def test_a_ring_that_is_the_whole_electorate_is_believed() -> None:
    """The limit: where nobody honest can be drawn, nothing is left that could differ."""
    fought = battle("sybil-swarm", colluders=4, honest=0)
    assert fought.has_false_answer()
    assert fought.convictions() == dict.fromkeys((peer.index for peer in fought.hostile), 0)


def test_one_honest_neighbour_undoes_an_eclipse() -> None:
    fought = battle("eclipse", colluders=3, verifiers=6, honest_links=1)
    assert Outcome.FRAUD in fought.outcomes()
    executor = fought.hostile_attempts()[0].candidate.peer
    assert fought.client.core.standings.of(executor).convicted
    assert_harmless(fought)


def test_a_client_that_knows_nobody_but_its_besiegers_believes_them() -> None:
    """The limit: a first contact that is hostile, and no other."""
    fought = battle("eclipse", colluders=3, honest_links=0)
    assert fought.has_false_answer()


def test_a_client_without_any_verifier_believes_nobody() -> None:
    # One besieger alone can't confirm itself.
    fought = fight(Setting(kind="eclipse", honest_links=0, real_keys=True), seed=5)
    assert [job.state for job in fought.jobs] == [JobState.VERIFICATION_FAILED]
    assert not fought.has_false_answer()


def test_every_executor_in_the_catalogue_is_fought_here() -> None:
    others = {"equivocation", "copied-result", "withheld-opening", "withheld-blob", "sybil-swarm", "eclipse"}
    fought = {*CHEAPER_WORK, *others}
    assert fought == {kind for kind, attack in ATTACKS.items() if attack.role is Role.EXECUTOR}
