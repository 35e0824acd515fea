"""An owner takes the machine back: what runs is handed back, and goes on at another peer."""

from __future__ import annotations

from p2p_node.core.attempt import Outcome
from p2p_node.core.engagement import EngagementState
from p2p_node.core.request import JobState
from p2p_node.core.requester import Job
from p2p_node.sim.scenario import job_request, sim_capability
from p2p_node.sim.workload import derive_unit
from p2p_node.sim.world import START_MS, Peer, World
from protocols.bidding import Capacity, DeclineReason, consider
from protocols.messages import Decline
from tests.support.builders import key, offer

UNITS = 1_024
ALL = frozenset({"all"})


def swarm() -> World:
    """Eight peers that serve, the cheapest first, on a perfect network."""
    return World(seed=5, capabilities=[sim_capability(price_micros=50 + index) for index in range(8)])


def started(world: World) -> tuple[Peer, Job]:
    """A requester and its job of several segments, which some executor has begun to commit to."""
    requester = world.peers[7]
    world.run(until_ms=world.now_ms - START_MS + 2_500)
    job_id = world.submit(requester, job_request(1, mode="auction", units=UNITS, verifiers=2))
    job = requester.core.jobs[job_id]
    world.run(
        until_ms=world.now_ms - START_MS + 60_000, stop=lambda: bool(job.attempts and job.attempts[-1].rounds)
    )
    return requester, job


def executor_of(world: World, job: Job) -> Peer:
    return next(peer for peer in world.peers if peer.core.key == job.attempts[-1].candidate.peer)


def pause(world: World, peer: Peer, devices: frozenset[str]) -> None:
    world._perform(peer, peer.core.pause(devices, "the owner paused this peer", world.now_ms))


def finish(world: World, job: Job) -> None:
    world.run(until_ms=world.now_ms - START_MS + 300_000, stop=lambda: job.is_final)


def test_the_runner_up_goes_on_from_the_last_committed_segment() -> None:
    world = swarm()
    requester, job = started(world)
    first = executor_of(world, job)
    committed = len(job.attempts[0]._commitments)
    pause(world, first, ALL)
    finish(world, job)
    assert job.state is JobState.VERIFIED
    assert job.units == tuple(derive_unit(job.request.input, unit) for unit in range(UNITS))
    handed_back, second = job.attempts
    assert (handed_back.outcome, handed_back.detail) == (Outcome.PAUSED, "the owner paused this peer")
    # What was committed to is verified and paid, not done again.
    assert second.award.body.prefix_units == len(handed_back.verified) > 0
    assert len(handed_back._commitments) >= committed
    paid = [v.body for (_, payee), v in handed_back.payouts.vouchers.items() if payee == first.core.key]
    assert paid[-1].settled_micros == len(handed_back.verified) * handed_back.award.body.price_micros
    standing = requester.core.standings.of(first.core.key)
    assert (standing.failed, standing.convicted) == (0, False)
    assert requester.core.standings.is_welcome(first.core.key, world.now_ms)


def test_a_paused_peer_takes_on_nothing_and_claims_no_draw_until_it_is_resumed() -> None:
    world = swarm()
    for peer in world.peers[:7]:
        pause(world, peer, ALL)
    requester, job = world.peers[7], None
    world.run(until_ms=2_500)
    job_id = world.submit(requester, job_request(1, mode="auction", units=64, verifiers=2))
    job = requester.core.jobs[job_id]
    world.run(until_ms=world.now_ms - START_MS + 3_000)
    reasons = {message.body.reason for message in job.declines() if isinstance(message.body, Decline)}
    assert reasons == {"paused"}
    assert not any(peer.core.verifier.duties for peer in world.peers)
    for peer in world.peers[:7]:
        pause(world, peer, frozenset())
    finish(world, job)
    assert job.state is JobState.VERIFIED


def test_what_runs_on_another_device_goes_on() -> None:
    world = swarm()
    _, job = started(world)
    peer = executor_of(world, job)
    pause(world, peer, frozenset({"cuda:0"}))
    [engagement] = peer.core.provider.running()
    assert engagement.state is EngagementState.RUNNING
    finish(world, job)
    assert len(job.attempts) == 1


def test_a_bid_on_a_paused_device_is_declined_by_its_name() -> None:
    capacity = Capacity(1, 1, 0, devices_paused=frozenset({"cpu"}))
    abilities = sim_capability().abilities
    plan = consider(offer().body, own_key=key(9), abilities=abilities, capacity=capacity)
    assert plan == DeclineReason("paused", detail="the owner paused cpu")


def test_a_paused_peer_is_no_elector_and_a_job_whose_electors_paused_goes_on_with_others() -> None:
    world = World(seed=5, capabilities=[sim_capability(price_micros=50 + index) for index in range(4)])
    world.run(until_ms=2_500)
    requester = world.peers[3]
    pause(world, world.peers[2], ALL)
    world.run(until_ms=4_500)
    job_id = world.submit(requester, job_request(1, mode="auction", units=64, verifiers=2))
    job = requester.core.jobs[job_id]
    world.run(until_ms=world.now_ms - START_MS + 60_000, stop=lambda: bool(job.attempts))
    executor = executor_of(world, job)
    assert job.attempts[0].award.body.electorate_count == 1
    # The only elector goes too, and comes back while the job is still wanted.
    [elector] = [peer for peer in world.peers[:2] if peer is not executor]
    pause(world, elector, ALL)
    world.run(until_ms=world.now_ms - START_MS + 60_000, stop=lambda: job.attempts[0].outcome is not None)
    assert job.attempts[0].outcome is Outcome.UNVERIFIED
    # It was none of the executor's doing, so it may take the job again.
    pause(world, elector, frozenset())
    finish(world, job)
    assert job.state is JobState.VERIFIED
    assert executor.core.key not in job._failed_peers
