"""Real peers under load, churn and faults for an hour: what is lost, what fails and why, and what grows.

One peer is given jobs of several small kinds without end. Each minute some others are killed, or stopped for
some seconds, and started again on their directories. Every job must end, verified or with a reason; in the
end all accounts must be square, and no process may have grown.

python -m benchmarks.soak [--quick] [--peers N] [--minutes M] [--churn PERCENT]
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from benchmarks.accounts import unsettled
from benchmarks.table import machine_line, percentile, print_table
from p2p_node.errors import UserError
from p2p_node.swarm import Swarm, SwarmError, SwarmPeer, running_swarm

__all__ = ["Book", "Growth", "drift_per_hour", "main"]

PEERS = 8
MINUTES = 60.0
CHURN_PERCENT = 5.0
"""Of the peers, killed and started again each minute."""

UPTIME_MIN = 0.997
SAMPLE_S = 5.0
PAUSE_S = 0.5
OPEN_MAX = 2
SETTLE_S = 60.0
STOP_S = (2.0, 15.0)
WARM_UP = 0.2
"""Of all samples, left out of drifts: pools, caches and allocators fill first."""

_JOB = """
apiVersion: p2p/v1
kind: Job
name: soak
task:
  {task}
auction:
  mode: {mode}
  window: 1s
verify:
  profile: exact14
  verifiers: 2
timeouts:
  execution: 2m
  total: 3m
"""
TASKS = {
    "text": 'workload: lm.generate\n  model: kjv-2m\n  prompt: "And it came to pass"\n  max_tokens: 64\n'
    "  seed: 7",
    "product": "workload: linalg.matmul\n  rows: 64\n  inner: 256\n  columns: 64\n  bits: 10\n"
    "  left_seed: 1\n  right_seed: 2",
    "picture": "workload: render.trace\n  width: 32\n  height: 32\n  samples: 2\n  depth: 2\n  seed: 1\n"
    "  background: [0.5, 0.7, 1]\n  camera: {position: [0, 1, 4], target: [0, 0.7, 0], focal: 1.3}\n"
    "  materials:\n    - {name: clay, albedo: [0.8, 0.3, 0.2]}\n"
    "  spheres:\n    - {centre: [0, 0.8, 0], radius: 0.8, material: clay}",
    "digits": "workload: diffusion.sample\n  model: digits-8x8\n  labels: [3]\n  steps: 4\n"
    "  seed: 7\n  guidance: 2",
}


@dataclass(slots=True)
class Book:
    """Jobs as their client sees them."""

    open: dict[str, str] = field(default_factory=dict)
    """Kind of each job that isn't over, by its id."""
    states: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    submitted: Counter[str] = field(default_factory=Counter)
    refused: int = 0


@dataclass(slots=True)
class Growth:
    """One process over time, as (seconds, bytes, descriptors, threads, tasks)."""

    samples: list[tuple[float, int, int, int, int]] = field(default_factory=list)


def drift_per_hour(samples: Sequence[tuple[float, float]]) -> float:
    """The slope of the least-squares line through (seconds, value), for an hour; 0 for fewer than two."""
    if len(samples) < 2:
        return 0.0
    mean_x = sum(x for x, _ in samples) / len(samples)
    mean_y = sum(y for _, y in samples) / len(samples)
    spread = sum((x - mean_x) ** 2 for x, _ in samples)
    return 3_600 * sum((x - mean_x) * (y - mean_y) for x, y in samples) / spread if spread else 0.0


class Soak:
    """One run over one swarm."""

    def __init__(self, swarm: Swarm, *, churn_percent: float, seed: int) -> None:
        self.swarm = swarm
        self.book = Book()
        self.growth: dict[tuple[int, int], Growth] = {}
        self.kills = self.stops = 0
        self._luck = random.Random(seed)
        self._began = time.monotonic()
        peers = len(swarm.peers)
        self._blow_each_s = 60 / max(1e-9, peers * churn_percent / 100)
        self._next_blow = self._began + self._blow_each_s / 2
        self._number = 0

    def run(self, seconds: float) -> None:
        """Load it for so long, then let it come to rest."""
        end = self._began + seconds
        sampled = self._began
        while time.monotonic() < end:
            self._submit()
            self._look()
            if time.monotonic() >= self._next_blow:
                self._next_blow += self._blow_each_s
                self._strike()
            if time.monotonic() >= sampled:
                sampled += SAMPLE_S
                self._sample()
            self._raise_the_dead()
            time.sleep(PAUSE_S)
        deadline = time.monotonic() + 240
        while self.book.open and time.monotonic() < deadline:
            self._look()
            time.sleep(PAUSE_S)

    def _submit(self) -> None:
        if len(self.book.open) >= OPEN_MAX:
            return
        kind = list(TASKS)[self._number % len(TASKS)]
        mode = "posted" if self._number % 3 == 0 else "auction"
        self._number += 1
        document = _JOB.format(task=TASKS[kind], mode=mode).encode()
        try:
            with self.swarm.requester.connect() as client:
                job_id = client.submit(document)["id"]
        except UserError as error:
            self.book.refused += 1
            print(f"refused: {error}", flush=True)
            return
        self.book.submitted[kind] += 1
        self.book.open[job_id] = kind

    def _look(self) -> None:
        with self.swarm.requester.connect() as client:
            rows = {row["id"]: row for row in client.jobs()}
        for job_id, kind in list(self.book.open.items()):
            row = rows.get(job_id)
            if row is None or not row["finished_ms"]:
                continue
            del self.book.open[job_id]
            self.book.states[row["state"]] += 1
            if row["state"] == "verified":
                self.book.seconds.append((row["finished_ms"] - row["created_ms"]) / 1_000)
            else:
                self.book.failures[f"{kind}: {row['state']}: {row['reason']}"] += 1
                print(f"failed: {kind} {job_id[:8]}: {row['state']}: {row['reason']}", flush=True)

    def _strike(self) -> None:
        standing = [peer for peer in self.swarm.peers[1:] if peer.is_running]
        if not standing:
            return
        peer = self._luck.choice(standing)
        if self._luck.random() < 0.7:
            self.kills += 1
            print(f"{time.monotonic() - self._began:.0f} s: peer {peer.index} is killed", flush=True)
            peer.process.kill()
            peer.process.wait()
            return
        self.stops += 1
        for_s = self._luck.uniform(*STOP_S)
        print(f"{time.monotonic() - self._began:.0f} s: peer {peer.index} is stopped", flush=True)
        process = peer.process
        process.send_signal(signal.SIGSTOP)
        timer = threading.Timer(for_s, process.send_signal, (signal.SIGCONT,))
        timer.daemon = True
        timer.start()

    def _raise_the_dead(self) -> None:
        for peer in self.swarm.peers:
            if not peer.is_running:
                self.swarm.restart(peer)

    def _sample(self) -> None:
        now = time.monotonic() - self._began
        for peer in self.swarm.peers:
            with suppress(psutil.Error):
                process = psutil.Process(peer.process.pid)
                with process.oneshot():
                    sample = (
                        now,
                        process.memory_info().rss,
                        process.num_fds(),
                        process.num_threads(),
                        self._tasks(peer) if process.status() != psutil.STATUS_STOPPED else 0,
                    )
                self.growth.setdefault((peer.index, process.pid), Growth()).samples.append(sample)

    def _tasks(self, peer: SwarmPeer) -> int:
        if peer.index != 0:
            return 0
        with suppress(UserError), peer.connect() as client:
            return int(client.status().get("tasks", 0))
        return 0


def _growth_rows(soak: Soak) -> list[list[str]]:
    rows = []
    for (index, pid), growth in sorted(soak.growth.items()):
        samples = growth.samples[int(len(growth.samples) * WARM_UP) :]
        if len(samples) < 4:
            continue
        drift = drift_per_hour([(at, rss / 2**20) for at, rss, *_ in samples])
        rows.append(
            [
                f"peer {index} ({pid})",
                f"{samples[-1][0] - samples[0][0]:.0f} s",
                f"{samples[0][1] / 2**20:.0f}",
                f"{samples[-1][1] / 2**20:.0f}",
                f"{drift:+.1f}",
                f"{samples[0][2]} to {samples[-1][2]}",
                f"{samples[0][3]} to {samples[-1][3]}",
                f"{samples[0][4]} to {samples[-1][4]}" if index == 0 else "",
            ]
        )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Soak, and print; the exit status is 1 if a job was lost, an account isn't square or uptime is low."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="4 peers for 3 minutes")
    parser.add_argument("--peers", type=int, default=PEERS)
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--churn", type=float, default=CHURN_PERCENT, metavar="PERCENT", help="per minute")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args(argv)
    peers, minutes = (4, 3.0) if arguments.quick else (arguments.peers, arguments.minutes)
    with running_swarm(peers, seed=arguments.seed) as swarm:
        soak = Soak(swarm, churn_percent=arguments.churn, seed=arguments.seed)
        soak.run(60 * minutes)
        with suppress(SwarmError):
            swarm.wait_until_acquainted()
        deadline = time.monotonic() + SETTLE_S
        while (broken := list(unsettled(swarm))) and time.monotonic() < deadline:
            time.sleep(1)
    return _report(soak, broken, minutes)


def _report(soak: Soak, broken: list[str], minutes: float) -> int:
    book = soak.book
    submitted, done = book.submitted.total(), book.states["verified"]
    uptime = done / submitted if submitted else 0.0
    rows = [
        ["submitted", str(submitted)],
        ["refused", str(book.refused)],
        ["verified", str(done)],
        ["failed with a reason", str(book.states.total() - done)],
        ["lost", str(len(book.open))],
        ["verified of submitted", f"{uptime:.4f}"],
        ["peers killed, stopped", f"{soak.kills}, {soak.stops}"],
        ["accounts", ", ".join(broken) or "square"],
    ]
    if book.seconds:
        rows.append(["seconds to a verified result, median", f"{percentile(book.seconds, 50):.1f}"])
        rows.append(["99 in 100 below", f"{percentile(book.seconds, 99):.1f}"])
    rows += [[reason, str(count)] for reason, count in book.failures.most_common()]
    print_table(f"{len(soak.swarm.peers)} peers for {minutes:g} minutes", ["", ""], rows)
    head = ["process", "seen for", "MiB", "to", "MiB per hour", "descriptors", "threads", "tasks"]
    print_table("What processes grew by, after their first fifth", head, _growth_rows(soak))
    print(machine_line())
    return int(bool(book.open) or bool(broken) or uptime < UPTIME_MIN)


if __name__ == "__main__":
    sys.exit(main())
