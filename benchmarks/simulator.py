"""How fast virtual peers run: events, jobs and virtual seconds for each second of real time.

python -m benchmarks.simulator [--quick]

The baseline is the bare heap with events that do nothing: what is left is the peers' own work.
"""

from __future__ import annotations

import argparse
import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.table import print_table
from p2p_node.core.request import JobState
from p2p_node.sim.invariants import Invariants
from p2p_node.sim.scenario import job_request, sim_capability
from p2p_node.sim.world import START_MS, Conditions, World

__all__ = ["Sample", "bare_heap_events_per_s", "main", "measure"]

WORLDS = ((50, 200), (100, 200), (200, 200))
QUICK_WORLDS = ((20, 40),)
JOB_EVERY_MS = 60


@dataclass(frozen=True, slots=True)
class Sample:
    """What one world took."""

    peers: int
    jobs: int
    verified: int
    events: int
    virtual_s: float
    real_s: float


def measure(peers: int, jobs: int, *, is_watched: bool, seed: int = 1) -> Sample:
    """Run a lossy world of ``peers``, a quarter of which serve, until ``jobs`` jobs have ended.

    Args:
        peers: at least 8.
        jobs: half of them auctioned, half at a posted ask.
        is_watched: whether invariants are checked after every event.
        seed: everything follows from it.
    """
    world = World(
        seed=seed,
        capabilities=[
            sim_capability(price_micros=50 + index, slots=8, serves=index % 4 == 0) for index in range(peers)
        ],
        conditions=Conditions(loss=0.02, duplication=0.02, gossip_loss=0.02),
    )
    if is_watched:
        world.on_step = Invariants(world).check
    submitted = []

    def submit(number: int) -> None:
        peer = world.peers[world.luck.randrange(peers)]
        request = job_request(number, mode="auction" if number % 2 else "posted")
        submitted.append(peer.core.jobs[world.submit(peer, request)])

    has_ended = False

    def look() -> None:
        nonlocal has_ended
        has_ended = len(submitted) == jobs and all(job.is_final for job in submitted)
        world.at(1_000, look)

    for number in range(jobs):
        world.at(2_500 + number * JOB_EVERY_MS, partial(submit, number))
    world.at(1_000, look)
    started = time.perf_counter()
    world.run(until_ms=1_000_000, stop=lambda: has_ended)
    return Sample(
        peers,
        jobs,
        sum(job.state is JobState.VERIFIED for job in submitted),
        world.events_total,
        (world.now_ms - START_MS) / 1_000,
        time.perf_counter() - started,
    )


def bare_heap_events_per_s(events: int) -> float:
    """Events for each second of a heap that holds a thousand events that do nothing."""
    heap = [(number, number, int) for number in range(1_000)]
    started = time.perf_counter()
    for number in range(events):
        at, _, action = heapq.heappop(heap)
        action()
        heapq.heappush(heap, (at + 1_000, number, int))
    return events / (time.perf_counter() - started)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulator", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small world")
    quick = parser.parse_args(argv).quick
    bare = bare_heap_events_per_s(20_000 if quick else 200_000)
    rows = [["bare heap", "", "", f"{bare:,.0f}", "1.000", "", ""]]
    for peers, jobs in QUICK_WORLDS if quick else WORLDS:
        for is_watched in (False, True):
            sample = measure(peers, jobs, is_watched=is_watched)
            rate = sample.events / sample.real_s
            rows.append(
                [
                    f"{peers} peers{', watched' if is_watched else ''}",
                    f"{sample.verified}/{jobs}",
                    f"{sample.events:,}",
                    f"{rate:,.0f}",
                    f"{rate / bare:.3f}",
                    f"{jobs / sample.real_s:.1f}",
                    f"{sample.virtual_s / sample.real_s:.2f}",
                ]
            )
    print_table(
        "Simulator: 2% of messages lost, 2% doubled; watched: invariants after every event",
        ["world", "verified", "events", "events/s", "of bare", "jobs/s", "virtual s/s"],
        rows,
    )


if __name__ == "__main__":
    main()
