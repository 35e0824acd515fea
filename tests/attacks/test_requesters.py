"""Clients that don't pay: what they can get is bounded, and they can't spoil an honest payee's books."""

from __future__ import annotations

from dataclasses import replace

from p2p_node.core.credit import CREDIT_CHUNKS
from p2p_node.core.request import JobState
from p2p_node.hostile import ATTACKS, Role
from p2p_node.sim.attacks import WARM_UP_MS, Battle, Setting, mount, run_for, run_job
from p2p_node.sim.scenario import job_request
from protocols.limits import LM_CHUNK_UNITS


def besieged(kind: str, *, jobs: int, chunks: int) -> Battle:
    """The hostile client asks for job after job; then an honest one asks for one."""
    battle = mount(Setting(kind=kind, honest=4, real_keys=True), seed=5)
    battle.world.run(until_ms=WARM_UP_MS)
    (rider,) = battle.hostile
    for number in range(jobs):
        request = replace(job_request(number, units=chunks * LM_CHUNK_UNITS), queue_ms=5_000, rebids=1)
        run_job(battle, rider, request)
    run_job(battle, battle.client, job_request(900))
    run_for(battle, 15_000)
    assert battle.has_right_answers()
    assert battle.harm() == []
    return battle


def test_a_free_rider_gets_its_credit_and_no_more() -> None:
    battle = besieged("free-rider", jobs=10, chunks=16)
    (rider,) = battle.hostile
    states = [job.state for job in rider.core.jobs.values()]
    assert states[0] is JobState.VERIFIED
    assert states[-1] is JobState.NO_BIDS
    for peer in battle.honest[1:]:
        owed = peer.core.credit.owed_micros(rider.core.key)
        price = peer.core.capability.abilities[0].offering.price_micros
        # Its credit, and the segments in hand when that was used up, at no more than the price ceiling.
        assert 0 < owed < (CREDIT_CHUNKS + 2 * 4) * LM_CHUNK_UNITS * 500
        assert owed >= CREDIT_CHUNKS * LM_CHUNK_UNITS * price
    refused = {job.reason for job in rider.core.jobs.values() if job.state is JobState.NO_BIDS}
    assert refused == {"no peer took the job at these terms"}
    declines = [d.body for job in rider.core.jobs.values() for d in job.declines()]
    assert any("the requester owes us" in decline.detail for decline in declines)


def test_a_voucher_over_more_than_was_delivered_is_refused_and_pays_nothing() -> None:
    battle = besieged("over-issued-vouchers", jobs=1, chunks=4)
    (payer,) = battle.hostile
    reasons = [why for _, why in battle.penalties_of_hostile()]
    assert reasons
    assert all("exceeds" in why and "delivered" in why for why in reasons)
    (job,) = payer.core.jobs.values()
    executor = battle.world.by_key[job.attempts[-1].candidate.peer]
    assert executor.core.credit.owed_micros(payer.core.key) > 0
    vouchers = {key for table, key in executor.store if table == "vouchers"}
    # What the payee keeps are the honest client's.
    assert not any(key.startswith(job.attempts[-1].award.id) for key in vouchers)


def test_every_requester_in_the_catalogue_is_fought_here() -> None:
    fought = {"free-rider", "over-issued-vouchers"}
    assert {kind for kind, attack in ATTACKS.items() if attack.role is Role.REQUESTER} == fought
