"""Worlds for the simulator's tests, run to their end under watch."""

from __future__ import annotations

import gc
from collections import Counter
from dataclasses import dataclass, field

from p2p_node.core.request import JobState
from p2p_node.core.requester import Job
from p2p_node.sim.invariants import Invariants
from p2p_node.sim.scenario import job_request, sim_capability
from p2p_node.sim.workload import derive_unit
from p2p_node.sim.world import Conditions, Peer, World

__all__ = ["Play", "play"]

WARM_UP_MS = 2_500
"""Adverts must have spread before the first job, or nobody is known."""


@dataclass(slots=True)
class Play:
    """A world that has run out, its jobs, and what watched it."""

    world: World
    invariants: Invariants
    jobs: list[tuple[Peer, Job]] = field(default_factory=list)

    @property
    def states(self) -> Counter[JobState]:
        """How many jobs ended in which state."""
        return Counter(job.state for _, job in self.jobs)

    def notes(self, event: str) -> int:
        """How often an event was told."""
        return sum(note.event == event for _, _, note in self.world.notes)

    def has_right_units(self) -> bool:
        """Whether every verified job has the only right output."""
        return all(
            job.units == tuple(derive_unit(job.request.input, i) for i in range(job.request.units_max))
            for _, job in self.jobs
            if job.state is JobState.VERIFIED
        )


def play(
    *,
    seed: int,
    peers: int,
    serving_each: int,
    jobs: int,
    jobs_every_ms: int,
    auction_each: int = 2,
    slots: int = 2,
    units: int = 64,
    verifiers: int = 2,
    conditions: Conditions | None = None,
    cheats: dict[int, str] | None = None,
    requesters: range | None = None,
    neighbours: int = 6,
) -> Play:
    """Run a world until all of its jobs have ended.

    Args:
        seed: everything follows from it.
        peers: how many.
        serving_each: each so many-th peer serves, cheapest first.
        jobs: how many, from honest requesters.
        jobs_every_ms: pause between two.
        auction_each: each so many-th job is auctioned, the others go to a posted ask.
        slots: jobs that a peer runs at once.
        units: output units of a job.
        verifiers: expected of each segment.
        conditions: how bad the network is.
        cheats: what some peers do wrong.
        requesters: who may ask, all honest peers if not given.
        neighbours: links of each peer, for anti-entropy.
    """
    capabilities = [
        sim_capability(price_micros=50 + index, slots=slots, serves=index % serving_each == 0)
        for index in range(peers)
    ]
    world = World(
        seed=seed, capabilities=capabilities, conditions=conditions, cheats=cheats, neighbours=neighbours
    )
    invariants = Invariants(world)
    world.on_step = invariants.check
    run = Play(world, invariants)
    honest = [world.peers[i] for i in requesters or range(peers) if not world.peers[i].cheat]

    def submit(number: int) -> None:
        peer = honest[world.luck.randrange(len(honest))]
        mode = "auction" if number % auction_each == 0 else "posted"
        job_id = world.submit(peer, job_request(number, mode=mode, units=units, verifiers=verifiers))
        run.jobs.append((peer, peer.core.jobs[job_id]))

    for number in range(jobs):
        world.at(WARM_UP_MS + number * jobs_every_ms, lambda number=number: submit(number))
    has_ended = False

    def look() -> None:
        nonlocal has_ended
        has_ended = len(run.jobs) == jobs and all(job.is_final for _, job in run.jobs)
        world.at(500, look)

    world.at(500, look)
    # Nearly all objects of a world stay: looking through them for garbage takes a fifth of its time.
    gc.disable()
    try:
        world.run(until_ms=1_000_000, stop=lambda: has_ended)
    finally:
        gc.enable()
    invariants.check_end()
    return run
