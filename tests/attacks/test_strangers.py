"""Peers that boast, repeat what they heard or send rubbish, with no contract to be held to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2p_node.hostile import ATTACKS, Role, hostile_core
from p2p_node.sim.attacks import Battle, Setting, fight
from p2p_node.sim.scenario import job_request
from protocols.auction import Ranking

FOUGHT = {"replayed-message", "malformed-bytes", "forged-capability"}


def battle(kind: str, *, jobs: int = 3) -> Battle:
    fought = fight(Setting(kind=kind, jobs=jobs, executors=2, real_keys=True), seed=5)
    assert fought.has_right_answers()
    assert fought.harm() == []
    fought.invariants.check_end()
    return fought


def test_what_is_said_again_changes_nothing() -> None:
    fought = battle("replayed-message")
    for job in fought.jobs:
        (attempt,) = job.attempts
        executor = fought.world.by_key[attempt.candidate.peer]
        earned = [
            note.details["settled_micros"]
            for _, index, note in fought.world.notes
            if note.event == "earned" and index == executor.index
        ]
        # Each voucher counted once, however often it came.
        assert len(earned) == len(set(earned))
        assert attempt.payouts.is_acknowledged


def test_rubbish_costs_its_sender_and_nobody_else() -> None:
    fought = battle("malformed-bytes")
    charged = sum(points for points, _ in fought.penalties_of_hostile())
    assert charged > 1_000
    for peer in fought.honest:
        assert len(peer.core.outbox) < 64
        assert len(peer.core.registry) <= len(fought.world.peers)


def test_a_boast_does_not_win_against_a_pace_that_was_seen() -> None:
    ranking = Ranking(latency_micros_per_s=10_000)
    requests = [replace(job_request(n, units=128), ranking=ranking) for n in range(6)]
    fought = fight(Setting(kind="forged-capability", real_keys=True), seed=5, requests=requests)
    boaster = fought.hostile[0].core
    honest = fought.honest[1].core
    assert boaster.capability.abilities[0].offering.rate_milli == 1_000 * (
        honest.capability.abilities[0].offering.rate_milli
    )
    winners = [job.attempts[-1].candidate.peer for job in fought.jobs]
    # Before anybody has delivered anything a promise is all there is; after that it takes more.
    assert boaster.key not in winners[1:]
    assert fought.has_right_answers()
    assert fought.harm() == []


def test_every_stranger_in_the_catalogue_is_fought_here() -> None:
    assert {kind for kind, attack in ATTACKS.items() if attack.role is Role.STRANGER} == FOUGHT


def test_a_kind_that_nobody_wrote_is_refused() -> None:
    with pytest.raises(ValueError, match="cheat 'optimism' must be one of smaller-model, "):
        hostile_core("optimism")
