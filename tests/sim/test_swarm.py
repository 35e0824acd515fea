"""A hundred and twenty peers, two hundred jobs, and a network that loses, doubles, delays and splits."""

from __future__ import annotations

import pytest

from p2p_node.core.request import FINAL_STATES, JobState
from p2p_node.sim.world import Conditions
from tests.sim.worlds import Play, play

PEERS, JOBS = 120, 200


@pytest.fixture(scope="module")
def swarm() -> Play:
    return play(
        seed=20_240,
        peers=PEERS,
        serving_each=4,
        jobs=JOBS,
        jobs_every_ms=80,
        auction_each=6,
        slots=8,
        neighbours=4,
        conditions=Conditions(
            latency_ms=(5, 80),
            loss=0.02,
            duplication=0.02,
            gossip_loss=0.02,
            partitions=((15_000, 18_000, PEERS // 8),),
        ),
    )


def test_every_job_ends_in_a_named_state_and_nearly_all_verified(swarm: Play) -> None:
    assert sum(swarm.states.values()) == JOBS
    assert set(swarm.states) <= FINAL_STATES
    assert swarm.states[JobState.VERIFIED] >= 0.95 * JOBS, swarm.states


def test_what_is_verified_is_right(swarm: Play) -> None:
    assert swarm.has_right_units()


def test_invariants_were_checked_after_every_event_that_reached_a_peer(swarm: Play) -> None:
    assert swarm.invariants.checks_total > 0.9 * swarm.world.events_total


def test_an_honest_swarm_neither_convicts_nor_penalises(swarm: Play) -> None:
    assert swarm.notes("convicted") == swarm.notes("disputed") == swarm.notes("false-accusation") == 0
    assert [penalty for peer in swarm.world.peers for penalty in peer.penalties] == []


def test_who_worked_was_paid_and_said_so(swarm: Play) -> None:
    verified = [job for _, job in swarm.jobs if job.state is JobState.VERIFIED]
    owed = sum(
        voucher.body.settled_micros
        for job in verified
        for attempt in job.attempts
        for (_, payee), voucher in attempt.payouts.vouchers.items()
        if payee == attempt.candidate.peer
    )
    # One segment a job, so each executor's voucher is the whole price of its attempt.
    assert owed == sum(64 * job.attempts[-1].award.body.price_micros for job in verified)
    acknowledged = sum(job.attempts[-1].payouts.is_acknowledged for job in verified)
    assert acknowledged > 0.9 * len(verified)
