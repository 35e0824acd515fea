"""Floods against one real peer of a swarm: what they cost it, and what is left for honest jobs.

The victim gives its own jobs to two others while strangers attack it, in one way after another (see
`benchmarks.attackers`). Attackers, victim and workers share this machine's cores, so each attack is also made
on a bystander: a peer of another network, which has no part in the jobs. What is lost then is lost to the
attackers' use of the cores, and what is lost beyond it is lost to the attack. Quiet, control and attack take
turns, so that their ratios stand although the machine is busy with other things.

python -m benchmarks.floods [--quick] [--only KIND] [--seconds S] [--write docs/hardening.md]
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
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
BYSTANDERS = 2
"""A swarm has at least two; the first is attacked."""

SECONDS = 8.0
QUICK_SECONDS = 6.0
ROUNDS = 2
QUICK_ROUNDS = 1
SETTLE_S = 1.0
START_S = 90
PRELOADED = ["benchmarks.attackers", "p2p_node.client", "p2p_node.swarm"]
"""Imported once by the process from which attackers are forked."""

WARM_S = 3.0
RATE_SHARE_MIN = 0.5
GROWTH_MIB_MAX = 64
"""Most of it pieces of blobs, of which 16 are in memory, and frames of them."""

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
timeouts:
  queue: 20s
  execution: 20s
  total: 30s
"""

BEGIN, END = "<!-- floods -->", "<!-- end of floods -->"
"""Around the table in a document."""


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
    # What attackers import is imported once, before anything is measured.
    context = multiprocessing.get_context("forkserver")
    struck = context.Value("q", 0)
    process = context.Process(target=mount, args=(kind, scene, struck), daemon=True)
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


@dataclass(slots=True)
class Row:
    """One attack: jobs without it, while it is made on a bystander, and while it is made on the victim."""

    kind: str
    quiet: Phase
    control: Phase
    flooded: Phase

    @property
    def share(self) -> float:
        """Of the jobs done while a bystander is attacked, those done while the victim is."""
        return self.flooded.rate / self.control.rate if self.control.rate else 0.0

    @property
    def core(self) -> float:
        """Of a core, what the victim uses under attack."""
        return self.flooded.cpu_s / self.flooded.seconds

    @property
    def holds(self) -> bool:
        """Whether every bound did."""
        return (
            self.share >= RATE_SHARE_MIN
            and self.flooded.grown_mib <= GROWTH_MIB_MAX
            and self.core <= CORE_SHARE_MAX
            and not self.flooded.failed
        )

    def cells(self) -> list[str]:
        """As the table shows it."""
        quiet, control, flooded = self.quiet, self.control, self.flooded
        return [
            self.kind,
            f"{flooded.struck / flooded.seconds:.0f}",
            f"{quiet.rate:.0f}",
            f"{control.rate:.0f}",
            f"{flooded.rate:.0f}",
            f"{flooded.rate / quiet.rate if quiet.rate else 0:.2f}",
            f"{self.share:.2f}",
            str(flooded.failed),
            f"{100 * quiet.cpu_s / quiet.seconds:.0f} %",
            f"{100 * self.core:.0f} %",
            f"{flooded.grown_mib:+.0f}",
            "holds" if self.holds else "too much",
        ]


HEAD = [
    "attack",
    "a second",
    "jobs/min quiet",
    "bystander attacked",
    "victim attacked",
    "of quiet",
    "of bystander",
    "failed",
    "core quiet",
    "attacked",
    "MiB",
    "",
]


def _measure(kind: str, swarm: Swarm, scenes: Sequence[Scene], *, rounds: int, seconds: float) -> Row:
    """Quiet, attacks on the bystander and attacks on the victim, in turns."""
    victim = psutil.Process(swarm.requester.process.pid)
    row = Row(kind, Phase(), Phase(), Phase())
    with swarm.requester.connect() as client:
        for number in range(rounds):
            row.quiet.add(_phase(client, victim, seconds))
            for scene, total in zip(scenes, (row.control, row.flooded), strict=True):
                with _attack(kind, replace(scene, seed=number)) as struck:
                    before = struck.value
                    phase = _phase(client, victim, seconds)
                    phase.struck = struck.value - before
                total.add(phase)
                time.sleep(SETTLE_S)
    return row


def _markdown(rows: Sequence[Row]) -> str:
    lines = ["| " + " | ".join(HEAD[:-1]) + " |", "|---" * (len(HEAD) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row.cells()[:-1]) + " |" for row in rows)])


def _write(document: Path, rows: Sequence[Row]) -> None:
    before, _, rest = document.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    document.write_text(f"{before}{BEGIN}\n\n{_markdown(rows)}\n\n{machine_line()}.\n\n{END}{after}")


def main(argv: Sequence[str] | None = None) -> int:
    """Every flood; the exit status is 1 if jobs slowed to below half or the victim paid too much."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floods", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round instead of two, and shorter")
    parser.add_argument("--only", action="append", choices=list(KINDS), metavar="KIND", help="only this one")
    parser.add_argument("--seconds", type=float, metavar="S", help="of each phase")
    parser.add_argument("--write", type=Path, metavar="FILE", help=f"put the table there, after {BEGIN}")
    arguments = parser.parse_args(argv)
    seconds = arguments.seconds or (QUICK_SECONDS if arguments.quick else SECONDS)
    rounds = QUICK_ROUNDS if arguments.quick else ROUNDS
    rows: list[Row] = []
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    with running_swarm(PEERS, seed=1) as swarm, running_swarm(BYSTANDERS, seed=2) as others:
        with swarm.requester.connect() as client, others.requester.connect() as bystander:
            scenes = [_scene(others, bystander), _scene(swarm, client)]
            _phase(client, psutil.Process(swarm.requester.process.pid), seconds / 2)
        for kind in arguments.only or KINDS:
            row = _measure(kind, swarm, scenes, rounds=rounds, seconds=seconds)
            rows.append(row)
            print("  ".join(row.cells()), file=sys.stderr, flush=True)
    print_table("One victim", HEAD, [row.cells() for row in rows])
    print(machine_line())
    if arguments.write:
        _write(arguments.write, rows)
    return int(not all(row.holds for row in rows))


if __name__ == "__main__":
    sys.exit(main())
