"""Each way to cheat meets the check that is named for it, and the client gets the right answer."""

from __future__ import annotations

import pytest

from p2p_node.core.attempt import Outcome
from p2p_node.core.request import JobState
from p2p_node.sim.invariants import Invariants
from p2p_node.sim.scenario import job_request, sim_capability
from p2p_node.sim.world import CHEATS, Conditions, World
from tests.sim.worlds import Play, play

PEERS, JOBS = 14, 10
CHEAPEST = (0, 1)
"""Peers are served in the order of their asks, so these win until they are found out."""


DEAREST = (11, 12, 13)
"""These never win, so they only verify."""


def hostile(cheat: str, *, cheats: tuple[int, ...] = CHEAPEST, seed: int = 7) -> Play:
    return play(
        seed=seed,
        peers=PEERS,
        serving_each=1,
        jobs=JOBS,
        jobs_every_ms=700,
        cheats=dict.fromkeys(cheats, cheat),
        verifiers=4,
    )


def outcomes_of_cheats(run: Play) -> set[Outcome]:
    cheats = {run.world.peers[index].core.key for index in CHEAPEST}
    return {
        attempt.outcome
        for _, job in run.jobs
        for attempt in job.attempts
        if attempt.candidate.peer in cheats and attempt.outcome is not None
    } - {Outcome.REFUSED}


def convicted(run: Play) -> set[int]:
    return {
        run.world.by_key[key].index
        for peer in run.world.peers
        if not peer.cheat
        for key, standing in peer.core.standings.peers.items()
        if standing.convicted
    }


def assert_served(run: Play) -> None:
    assert run.states == {JobState.VERIFIED: JOBS}
    assert run.has_right_units()


@pytest.mark.parametrize("cheat", ["wrong-result", "false-unit"])
def test_recomputation_convicts_a_false_result(cheat: str) -> None:
    run = hostile(cheat)
    assert outcomes_of_cheats(run) == {Outcome.FRAUD}
    assert convicted(run) == set(CHEAPEST)
    assert_served(run)
    # The word spreads as a proof: peers that never dealt with the cheats convict them too.
    believers = [
        peer
        for peer in run.world.peers
        if peer.core.standings.of(run.world.peers[0].core.key).convicted and not peer.cheat
    ]
    assert len(believers) == PEERS - len(CHEAPEST)


def test_a_cheat_earns_nothing() -> None:
    run = hostile("wrong-result")
    cheats = {run.world.peers[index].core.key for index in CHEAPEST}
    attempts = [a for _, job in run.jobs for a in job.attempts if a.candidate.peer in cheats]
    assert attempts
    for attempt in attempts:
        assert attempt.candidate.peer not in {payee for _, payee in attempt.payouts.vouchers}


def test_a_withheld_opening_loses_by_its_deadline() -> None:
    run = hostile("withheld-opening")
    assert outcomes_of_cheats(run) == {Outcome.WITHHELD}
    assert convicted(run) == set()
    assert_served(run)


def test_a_dead_executor_is_replaced() -> None:
    run = hostile("dead-executor")
    assert outcomes_of_cheats(run) == {Outcome.UNRESPONSIVE}
    assert_served(run)


def test_a_false_verdict_convicts_the_verifier_and_not_the_executor() -> None:
    run = hostile("false-verdict", cheats=DEAREST)
    assert run.notes("disputed") > 0
    assert convicted(run) == set(DEAREST)
    assert_served(run)


def test_a_silent_verifier_costs_time_and_is_not_paid() -> None:
    run = hostile("silent-verifier", cheats=DEAREST)
    assert convicted(run) == set()
    assert_served(run)
    silent = {run.world.peers[index].core.key for index in DEAREST}
    entries = [
        entry
        for _, job in run.jobs
        for attempt in job.attempts
        for round_ in attempt.rounds.values()
        for key, entry in round_.entries.items()
        if key in silent
    ]
    assert entries
    assert not any(entry.is_payable for entry in entries)


def test_a_peer_that_vanishes_in_mid_job_is_replaced() -> None:
    world = World(seed=3, capabilities=[sim_capability(price_micros=50 + i) for i in range(8)])
    invariants = Invariants(world)
    world.on_step = invariants.check
    client = world.peers[7]
    world.run(until_ms=2_500)
    job_id = world.submit(client, job_request(0, units=512))
    job = client.core.jobs[job_id]
    world.run(until_ms=60_000, stop=lambda: bool(job.units))
    first = world.by_key[job.attempts[0].candidate.peer]
    verified = len(job.units)
    world.crash(first)
    world.run(until_ms=300_000, stop=lambda: job.is_final)
    assert job.state is JobState.VERIFIED
    assert job.attempts[0].outcome in (Outcome.UNRESPONSIVE, Outcome.WITHHELD)
    # The next one goes on where the last verified segment ended.
    assert job.attempts[1].award.body.prefix_units >= verified > 0
    invariants.check_end()


@pytest.mark.parametrize("seed", range(36))
def test_many_small_hostile_worlds(seed: int) -> None:
    """Invariants hold whatever comes; enough honest peers are left to serve everybody."""
    run = play(
        seed=seed,
        peers=10,
        serving_each=1,
        jobs=5,
        jobs_every_ms=900,
        cheats={index: CHEATS[(seed + index) % len(CHEATS)] for index in (0, 2, 5)},
        conditions=Conditions(loss=0.03, duplication=0.05, gossip_loss=0.05, partitions=((5_000, 8_000, 3),)),
        requesters=range(3, 10),
    )
    assert run.has_right_units()
    assert run.states[JobState.VERIFIED] >= 3, run.states


def test_the_same_seed_plays_the_same_world() -> None:
    one, same, other = (hostile("wrong-result", seed=seed) for seed in (11, 11, 12))
    assert one.world.trace == same.world.trace
    assert one.world.notes == same.world.notes
    assert one.world.trace != other.world.trace
