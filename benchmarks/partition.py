"""One picture in parts over real peers on loopback, against rendering it here and against one peer.

    python -m benchmarks.partition [--quick]

Every peer is a `p2p-node start` with its worker processes. All of them may verify in every run; who may
execute is limited by `placement.exclude`, so that one executor has verifiers too. Runs take turns, so that
all see the same machine. A part is checked by one verifier that renders one tile of eight again.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.table import machine_line, print_table
from p2p_node.client import NodeClient
from p2p_node.swarm import running_swarm

EXECUTORS = 2
PARTS = 6
RATIO_TARGET = 0.6

DOCUMENT = """
apiVersion: p2p/v1
kind: Job
name: balls
task:
  workload: render.trace
  width: {width}
  height: {height}
  samples: {samples}
  depth: 4
  seed: {seed}
  background: [0.5, 0.6, 1]
  camera: {{position: [0, 1, 4], target: [0, 0, 0]}}
  materials: [{{name: clay, albedo: [0.8, 0.4, 0.3]}}, {{name: floor, albedo: [0.7, 0.7, 0.7]}}]
  spheres:
    - {{centre: [-1, 0, 0], radius: 1, material: clay}}
    - {{centre: [1, 0, 0], radius: 1, material: clay}}
  planes: [{{point: [0, -1, 0], normal: [0, 1, 0], material: floor}}]
auction: {{mode: posted}}
verify: {{verifiers: 1, chunks: 1}}
placement: {{exclude: [{exclude}]}}
timeouts: {{queue: 60s, execution: 20m, total: 30m}}
{parts}
"""


@dataclass(frozen=True)
class Effort:
    """How large a picture, and how often."""

    width: int
    height: int
    samples: int
    rounds: int

    @property
    def pixels(self) -> int:
        """Output units."""
        return self.width * self.height


FULL = Effort(width=256, height=192, samples=16, rounds=4)
QUICK = Effort(width=128, height=96, samples=16, rounds=1)


def job_file(effort: Effort, *, seed: int, parts: int, exclude: Sequence[str]) -> bytes:
    """The job; ``parts`` 0 leaves it whole."""
    return DOCUMENT.format(
        width=effort.width,
        height=effort.height,
        samples=effort.samples,
        seed=seed,
        exclude=", ".join(exclude),
        parts=f"parts: {parts}" if parts else "",
    ).encode()


def direct_s(document: bytes) -> float:
    """Seconds to render a job's picture in this process, on one thread."""
    # Imported late: the tables can be had without torch.
    import torch

    from p2p_node.jobspec import parse_job_spec
    from p2p_node.tasks import prepare
    from workloads.render.workload import Renderer

    torch.set_num_threads(1)
    job = prepare(parse_job_spec(document).task, {}, {}).input
    renderer = Renderer("exact14")
    started = time.perf_counter()
    renderer.generate(job, (), lambda *_: None, lambda *_: None, lambda: False)
    return time.perf_counter() - started


def job_s(client: NodeClient, document: bytes) -> float:
    """Seconds from asking for a job until all of it is verified and settled.

    Raises:
        RuntimeError: it isn't.
    """
    started = time.perf_counter()
    job_id = client.submit(document)["id"]
    for _ in client.events(job_id):
        pass
    took = time.perf_counter() - started
    job = client.job(job_id)
    if job["state"] != "verified":
        raise RuntimeError(f"the job ended as {job['state']}: {job['reason']}")
    return took


def measured(effort: Effort) -> dict[str, list[float]]:
    """Seconds of each way to have the picture, in rounds that take turns."""
    found: dict[str, list[float]] = {}
    with running_swarm(EXECUTORS + 1, seed=1) as swarm, swarm.requester.connect() as client:
        others = [peer.peer_id for peer in swarm.peers if peer is not swarm.requester]
        # A first small job loads what is loaded once.
        job_s(client, job_file(Effort(64, 32, 1, 1), seed=0, parts=EXECUTORS, exclude=()))
        for number in range(effort.rounds):
            seed = number + 1
            plain = job_file(effort, seed=seed, parts=0, exclude=others[1:])
            one = job_file(effort, seed=seed, parts=PARTS, exclude=others[1:])
            two = job_file(effort, seed=seed, parts=PARTS, exclude=())
            found.setdefault("direct", []).append(direct_s(plain))
            found.setdefault("1 peer, one job", []).append(job_s(client, plain))
            found.setdefault(f"1 peer, {PARTS} parts", []).append(job_s(client, one))
            found.setdefault(f"{EXECUTORS} peers, {PARTS} parts", []).append(job_s(client, two))
    return found


def rows(found: dict[str, list[float]], pixels: int) -> list[list[str]]:
    """Each way: seconds, pixels a second, and its time over direct and over one peer."""
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    direct, alone = medians["direct"], medians[f"1 peer, {PARTS} parts"]
    return [
        [name, f"{took:.2f}", f"{pixels / took:,.0f}", f"{took / direct:.2f}", f"{took / alone:.2f}"]
        for name, took in medians.items()
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; the exit status says nothing of the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.partition", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller picture, once")
    effort = QUICK if parser.parse_args(argv).quick else FULL
    print(machine_line())
    found = measured(effort)
    print_table(
        f"A picture of {effort.width} x {effort.height} pixels, {effort.samples} samples each "
        f"({effort.rounds} rounds; target: {EXECUTORS} peers at most {RATIO_TARGET} of 1 on 2 cores)",
        ("", "s", "pixels/s", "of direct", "of 1 peer"),
        rows(found, effort.pixels),
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
