"""Real peers under load, churn and faults for an hour: what is lost, what fails and why, and what grows.

Two peers are given jobs of several small kinds without end; the first is never struck, so that its growth
is seen over the whole run. Each minute some of the others are killed, or stopped for a while, and started
again on their directories. Every job must end, once, verified or with a reason; in the end all accounts must
be square, and no process may have grown. Ctrl-C or SIGTERM ends it early, with what was seen by then.

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

from benchmarks.accounts import unsettled
from benchmarks.drift import Watched, drift_rows, watch
from benchmarks.table import machine_line, percentile, print_table
from p2p_node.errors import UserError
from p2p_node.swarm import Swarm, SwarmError, SwarmPeer, running_swarm

__all__ = ["Book", "Soak", "main"]

PEERS = 8
MINUTES = 60.0
CHURN_PERCENT = 5.0
"""Of the peers, killed or stopped each minute."""

UPTIME_MIN = 0.997
SAMPLE_S = 10.0
PAUSE_S = 0.25
OPEN_MAX = 2
"""Jobs open at once, through each of the two peers."""

SETTLE_S = 60.0
DRAIN_S = 240.0
KILLED = 0.7
"""Share of the blows that kill; the others stop a peer for a while."""

STOP_S = (2.0, 15.0)
LONG_STOP_S = 60.0
"""For each fourth stop."""

TOLD_S = 300.0
"""How often it says how far it is."""

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
    """Jobs as their client sees them, through one peer."""

    open: dict[str, str] = field(default_factory=dict)
    """Kind of each job that isn't over, by its id."""
    ended: dict[str, str] = field(default_factory=dict)
    """State of each job that is over."""
    failures: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    submitted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    struck: set[str] = field(default_factory=set)
    """Jobs that were open when a peer was struck."""
    unsure: int = 0
    """Requests that the peer's death left without an answer: there may be a job or not."""

    @property
    def verified(self) -> int:
        """Jobs that ended verified."""
        return sum(state == "verified" for state in self.ended.values())


class Soak:
    """One run over one swarm."""

    def __init__(self, swarm: Swarm, *, churn_percent: float, seed: int) -> None:
        self.swarm = swarm
        self.clients = {peer.index: Book() for peer in swarm.peers[:2]}
        self.watched: dict[tuple[int, int], Watched] = {}
        self.kills: Counter[int] = Counter()
        self.stops: Counter[int] = Counter()
        self.seconds = 0.0
        self.is_over = False
        """Whether it came to its end, and what is open is lost."""
        self.changed: list[str] = []
        """Jobs that ended twice, in words."""
        self.reawarded = 0
        self._luck = random.Random(seed)
        self._began = time.monotonic()
        self._blow_each_s = 60 / max(1e-9, len(swarm.peers) * churn_percent / 100)
        self._next_blow = self._began + self._blow_each_s / 2
        self._number = 0

    def run(self, seconds: float) -> None:
        """Load it for so long, then let it come to rest."""
        end = self._began + seconds
        sampled, told = self._began, self._began + TOLD_S
        while (now := time.monotonic()) < end:
            self.seconds = now - self._began
            for peer in self.swarm.peers[:2]:
                self._turn(peer, is_open=True)
            if now >= self._next_blow:
                self._next_blow += self._blow_each_s
                self._strike()
            if now >= sampled:
                sampled += SAMPLE_S
                watch(self.swarm, self.watched, at_s=self.seconds)
            if now >= told:
                told += TOLD_S
                self._tell()
            self._raise_the_dead()
            time.sleep(PAUSE_S)
        self.seconds = seconds
        deadline = time.monotonic() + DRAIN_S
        while any(book.open for book in self.clients.values()) and time.monotonic() < deadline:
            for peer in self.swarm.peers[:2]:
                self._turn(peer, is_open=False)
            self._raise_the_dead()
            time.sleep(PAUSE_S)
        self.is_over = True

    def audit(self) -> None:
        """Ask for every job again: each must still be there, and have ended as it did."""
        for peer in self.swarm.peers[:2]:
            book = self.clients[peer.index]
            with peer.connect() as client:
                for job_id, state in book.ended.items():
                    try:
                        now = client.job(job_id)["state"]
                    except UserError as error:
                        now = f"gone: {error}"
                    if now != state:
                        self.changed.append(f"{job_id[:8]} was {state} and is {now}")
                for job_id in sorted(book.struck & book.ended.keys()):
                    with suppress(UserError):
                        events = [event["event"] for event in client.events(job_id)]
                        self.reawarded += events.count("accepted") > 1

    def _turn(self, peer: SwarmPeer, *, is_open: bool) -> None:
        """See what became of the jobs of one peer, and give it another one."""
        book = self.clients[peer.index]
        try:
            with peer.connect() as client:
                for job_id, kind in list(book.open.items()):
                    self._note(book, job_id, kind, client.job(job_id))
                if not is_open or len(book.open) >= OPEN_MAX:
                    return
                kind = list(TASKS)[self._number % len(TASKS)]
                mode = "posted" if self._number % 3 == 0 else "auction"
                self._number += 1
                document = _JOB.format(task=TASKS[kind], mode=mode).encode()
                try:
                    job_id = client.submit(document)["id"]
                except UserError as error:
                    if peer.is_running:
                        book.refused[str(error)] += 1
                    book.unsure += not peer.is_running
                    return
                book.submitted += 1
                book.open[job_id] = kind
        except UserError:
            return  # It is down; its jobs are asked for when it is up again.

    def _note(self, book: Book, job_id: str, kind: str, row: dict[str, object]) -> None:
        finished_ms, created_ms = row["finished_ms"], row["created_ms"]
        if not isinstance(finished_ms, int) or not isinstance(created_ms, int) or not finished_ms:
            return
        del book.open[job_id]
        state = book.ended[job_id] = str(row["state"])
        if state == "verified":
            book.seconds.append((finished_ms - created_ms) / 1_000)
            return
        book.failures[f"{state}: {row['reason']}"] += 1
        self._say(f"{kind} job {job_id[:8]} failed: {state}: {row['reason']}")

    def _strike(self) -> None:
        standing = [peer for peer in self.swarm.peers[1:] if peer.is_running]
        if not standing:
            return
        peer = self._luck.choice(standing)
        for book in self.clients.values():
            book.struck.update(book.open)
        if self._luck.random() < KILLED:
            self.kills[peer.index] += 1
            self._say(f"peer {peer.index} is killed")
            peer.process.kill()
            peer.process.wait()
            return
        self.stops[peer.index] += 1
        for_s = LONG_STOP_S if self.stops.total() % 4 == 0 else self._luck.uniform(*STOP_S)
        self._say(f"peer {peer.index} is stopped for {for_s:.0f} s")
        process = peer.process
        process.send_signal(signal.SIGSTOP)
        timer = threading.Timer(for_s, process.send_signal, (signal.SIGCONT,))
        timer.daemon = True
        timer.start()

    def _raise_the_dead(self) -> None:
        for peer in self.swarm.peers:
            if not peer.is_running:
                self.swarm.restart(peer)

    def _say(self, what: str) -> None:
        print(f"{time.monotonic() - self._began:.0f} s: {what}", flush=True)

    def _tell(self) -> None:
        books = self.clients.values()
        submitted, ended = sum(b.submitted for b in books), sum(len(b.ended) for b in books)
        verified = sum(b.verified for b in books)
        self._say(f"{submitted} submitted, {verified} verified, {ended - verified} failed")


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
        broken = ["not compared: the run was ended early"]
        print(f"{peers} peers are up; it ends in {minutes:g} minutes", flush=True)
        try:
            soak.run(60 * minutes)
            with suppress(SwarmError):
                swarm.wait_until_acquainted()
            soak.audit()
            deadline = time.monotonic() + SETTLE_S
            while (broken := list(unsettled(swarm))) and time.monotonic() < deadline:
                time.sleep(1)
        finally:
            # Also of a run that a signal ends: an hour's figures are worth printing.
            status = _report(soak, broken)
    return status


def _report(soak: Soak, broken: list[str]) -> int:
    books = list(soak.clients.values())
    columns = [f"peer {index}" for index in soak.clients]
    submitted, verified = sum(b.submitted for b in books), sum(b.verified for b in books)
    ended = sum(len(b.ended) for b in books)
    lost = sum(len(b.open) for b in books)
    # Those that a run's early end left open are no failures.
    asked = submitted if soak.is_over else ended
    uptime = verified / asked if asked else 0.0

    def row(name: str, cells: list[int]) -> list[str]:
        return [name, *map(str, cells), str(sum(cells))]

    rows = [
        row("submitted", [b.submitted for b in books]),
        row("verified", [b.verified for b in books]),
        row("failed with a reason", [len(b.ended) - b.verified for b in books]),
        row("lost" if soak.is_over else "open at the early end", [len(b.open) for b in books]),
        row("refused", [b.refused.total() for b in books]),
        row("requests that a kill left unanswered", [b.unsure for b in books]),
        row("open when a peer was struck", [len(b.struck) for b in books]),
        row("of these verified", [_verified_of(b) for b in books]),
    ]
    print_table(
        f"{len(soak.swarm.peers)} peers for {soak.seconds / 60:.1f} minutes: jobs by the peer asked",
        ["", *columns, "all"],
        rows,
    )
    seconds = [value for book in books for value in book.seconds]
    facts = [["uptime: verified of submitted", f"{uptime:.4f} (at least {UPTIME_MIN} is wanted)"]]
    if seconds:
        facts.append(["seconds to a verified result, median", f"{percentile(seconds, 50):.1f}"])
        facts.append(["99 in 100 below", f"{percentile(seconds, 99):.1f}"])
        facts.append(["longest", f"{max(seconds):.1f}"])
    facts += [
        ["given to a second executor, of those open at a blow", str(soak.reawarded)],
        ["peers killed, stopped", f"{soak.kills.total()}, {soak.stops.total()}"],
        ["ended twice", "; ".join(soak.changed) or "none"],
        ["accounts", ", ".join(broken) or "square"],
    ]
    reasons: Counter[str] = Counter()
    for index, book in soak.clients.items():
        reasons.update({f"failed, peer {index}: {why}": count for why, count in book.failures.items()})
        reasons.update({f"refused, peer {index}: {why}": count for why, count in book.refused.items()})
    facts += [[reason, str(count)] for reason, count in reasons.most_common()]
    print_table("What came of them", ["", ""], facts)
    head = ["process", "seen for", "MiB", "to", "MiB per hour", "workers MiB", "descriptors", "threads"]
    print_table(
        "Processes, by a fit over the second half of each", [*head, "tasks"], drift_rows(soak.watched)
    )
    print(machine_line(), flush=True)
    return int(bool(lost or broken or soak.changed) or uptime < UPTIME_MIN or not submitted)


def _verified_of(book: Book) -> int:
    return sum(book.ended.get(job_id) == "verified" for job_id in book.struck)


if __name__ == "__main__":
    sys.exit(main())
