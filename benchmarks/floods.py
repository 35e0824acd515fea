"""Floods against one real peer of a swarm: what they cost it, and what is left for honest jobs.

The victim gives its own jobs to two others while strangers attack it, in one way after another (see
`benchmarks.attackers`). Quiet phases and attacks take turns, so that the ratio of both rates stands although
the machine is busy with other things.

python -m benchmarks.floods [--quick] [--only KIND] [--seconds S]
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil

from benchmarks.attackers import KINDS, Scene, mount
from benchmarks.table import machine_line, print_table
from p2p_node.client import NodeClient
from p2p_node.executor import builtin_places
from p2p_node.swarm import Swarm, running_swarm
from protocols.blobs import parse_blob_name

__all__ = ["main"]

PEERS = 3
SECONDS = 10.0
QUICK_SECONDS = 5.0
ROUNDS = 2
SETTLE_S = 1.0
START_S = 90
WARM_S = 5.0
RATE_SHARE_MIN = 0.5
GROWTH_MIB_MAX = 128
"""Most of it pieces of blobs: 32 transfers, up to three pieces each."""

CORE_SHARE_MAX = 0.75
BLOB_BYTES = 16 << 20

DOCUMENT = b"""
apiVersion: p2p/v1
kind: Job
name: floods
task:
  workload: lm.generate
  model: kjv-2m
  prompt: "And it came to pass"
  max_tokens: 32
  seed: 7
auction:
  mode: auction
  window: 300ms
verify:
  profile: exact14
  verifiers: 1
"""


@dataclass(slots=True)
class Phase:
    """Some seconds of jobs, one after another."""

    done: int = 0
    failed: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    grown_mib: float = 0.0
    struck: int = 0

    def add(self, other: Phase) -> None:
        """Both together; memory as it grew most."""
        self.done += other.done
        self.failed += other.failed
        self.seconds += other.seconds
        self.cpu_s += other.cpu_s
        self.struck += other.struck
        self.grown_mib = max(self.grown_mib, other.grown_mib)

    @property
    def rate(self) -> float:
        """Verified jobs in a minute."""
        return 60 * self.done / self.seconds if self.seconds else 0.0


def _phase(client: NodeClient, victim: psutil.Process, seconds: float) -> Phase:
    phase, began, base = Phase(), time.monotonic(), victim.memory_info().rss
    cpu_s, most = sum(victim.cpu_times()[:2]), base
    while time.monotonic() - began < seconds:
        job_id = client.submit(DOCUMENT)["id"]
        for event in client.events(job_id):
            if event["event"] == "finished":
                phase.done += event["state"] == "verified"
                phase.failed += event["state"] != "verified"
        most = max(most, victim.memory_info().rss)
    phase.seconds = time.monotonic() - began
    phase.cpu_s = sum(victim.cpu_times()[:2]) - cpu_s
    phase.grown_mib = (most - base) / 2**20
    return phase


@contextmanager
def _attack(kind: str, scene: Scene) -> Iterator[Any]:
    spawn = multiprocessing.get_context("spawn")
    struck = spawn.Value("q", 0)
    process = spawn.Process(target=mount, args=(kind, scene, struck), daemon=True)
    process.start()
    try:
        deadline = time.monotonic() + START_S
        while not struck.value and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        if not struck.value:
            raise RuntimeError(f"{kind!r} didn't strike within {START_S} s")
        # Its other peers are still starting, which takes our processors and not the victim's.
        time.sleep(WARM_S)
        yield struck
    finally:
        process.kill()
        process.join()


def _scene(swarm: Swarm, client: NodeClient) -> Scene:
    blob = parse_blob_name(client.add_blob(random.Random(1).randbytes(BLOB_BYTES)))
    url = str(client._http.base_url)
    host, _, port = url.partition("//")[2].strip("/").partition(":")
    model = builtin_places()["kjv-2m"]
    return Scene(
        swarm.requester.address,
        (host, int(port)),
        swarm.network,
        (blob.digest, blob.size_bytes),
        (model.workload, model.digest),
    )


def _measure(kind: str, swarm: Swarm, scene: Scene, seconds: float) -> list[Phase]:
    """The quiet phases together, and the others."""
    victim = psutil.Process(swarm.requester.process.pid)
    quiet, flooded = Phase(), Phase()
    with swarm.requester.connect() as client:
        for number in range(ROUNDS):
            quiet.add(_phase(client, victim, seconds))
            spot = Scene(scene.address, scene.api, scene.network, scene.blob, scene.offering, number)
            with _attack(kind, spot) as struck:
                before = struck.value
                phase = _phase(client, victim, seconds)
                phase.struck = struck.value - before
            flooded.add(phase)
            time.sleep(SETTLE_S)
    return [quiet, flooded]


def _row(kind: str, swarm: Swarm, scene: Scene, seconds: float) -> tuple[list[str], bool]:
    """What one flood did, and whether every bound held."""
    quiet, flooded = _measure(kind, swarm, scene, seconds)
    share = flooded.rate / quiet.rate if quiet.rate else 0.0
    core = flooded.cpu_s / flooded.seconds
    holds = (
        share >= RATE_SHARE_MIN
        and flooded.grown_mib <= GROWTH_MIB_MAX
        and core <= CORE_SHARE_MAX
        and not flooded.failed
    )
    row = [
        kind,
        f"{flooded.struck / flooded.seconds:.0f}",
        f"{quiet.rate:.0f}",
        f"{flooded.rate:.0f}",
        f"{share:.2f}",
        str(flooded.failed),
        f"{100 * quiet.cpu_s / quiet.seconds:.0f} %",
        f"{100 * core:.0f} %",
        f"{flooded.grown_mib:+.0f}",
        "holds" if holds else "too much",
    ]
    return row, holds


def main(argv: Sequence[str] | None = None) -> int:
    """Every flood; the exit status is 1 if jobs slowed to below half or the victim paid too much."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floods", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less than half of the time")
    parser.add_argument("--only", action="append", choices=list(KINDS), metavar="KIND", help="only this one")
    parser.add_argument("--seconds", type=float, metavar="S", help="of each phase")
    arguments = parser.parse_args(argv)
    seconds = arguments.seconds or (QUICK_SECONDS if arguments.quick else SECONDS)
    rows: list[list[str]] = []
    bad = False
    with running_swarm(PEERS, seed=1) as swarm:
        with swarm.requester.connect() as client:
            scene = _scene(swarm, client)
            _phase(client, psutil.Process(swarm.requester.process.pid), seconds / 2)
        for kind in arguments.only or KINDS:
            row, holds = _row(kind, swarm, scene, seconds)
            rows.append(row)
            bad = bad or not holds
            print("  ".join(row), file=sys.stderr, flush=True)
    head = ["flood", "a second", "jobs/min quiet", "meanwhile", "ratio", "failed"]
    print_table("One victim", [*head, "of a core quiet", "meanwhile", "MiB", ""], rows)
    print(machine_line())
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
