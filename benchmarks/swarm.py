"""Jobs through five real peers on loopback, against the same model called directly.

    python -m benchmarks.swarm [--quick]

Every peer is a `p2p-node start` with its worker processes; jobs go through the first one's HTTP API, as any
client's do. The baseline is `LmExecutor` in this process, on one thread, warm, with the swarm idle; direct
runs and jobs take turns, so that both see the same machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks import footprint
from benchmarks.table import machine_line, percentile, print_table
from p2p_node.client import NodeClient
from p2p_node.swarm import Swarm, running_swarm

PEERS = 5
MODEL = "kjv-2m"
PROMPT = "And the LORD spake unto Moses, saying,"
TEMPERATURE_MILLI = 800
WINDOW_MS = 300
EXACT = ("exact14", "exact21")

DISPATCH_MS_TARGET = 50
STREAMING_TARGET = 0.95
VERIFYING_TARGET = 0.10


@dataclass(frozen=True)
class Effort:
    """How much of each to measure."""

    dispatches: int
    auctions: int
    short_tokens: int
    long_runs: int
    long_tokens: int


FULL = Effort(dispatches=30, auctions=10, short_tokens=48, long_runs=6, long_tokens=512)
QUICK = Effort(dispatches=10, auctions=4, short_tokens=48, long_runs=2, long_tokens=256)


# --- The baseline ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Generation:
    """One output as its client saw it come; seconds since it was asked for."""

    tokens: int
    first_s: float
    last_s: float
    tokens_first: int
    """Tokens that came together with the first one."""

    @property
    def tokens_per_s(self) -> float:
        """The pace after the first token."""
        return (self.tokens - self.tokens_first) / (self.last_s - self.first_s)


class Direct:
    """The model in this process."""

    def __init__(self) -> None:
        # Imported late: the tables can be had without torch.
        import torch

        from workloads.lm.generate import LmExecutor
        from workloads.lm.tokenizer import TextTokenizer

        torch.set_num_threads(1)
        self._prompt = TextTokenizer(model_folder()).encode(PROMPT)
        self._executors = {profile: LmExecutor(model_folder(), profile) for profile in (*EXACT, "native")}

    def generate(self, profile: str, tokens: int, seed: int) -> Generation:
        """Generate without anybody in between."""
        from workloads.lm.input import LmInput

        job = LmInput((self._prompt,), tokens, seed, TEMPERATURE_MILLI)
        times: list[float] = []
        started = time.perf_counter()
        self._executors[profile].generate(
            job,
            (),
            lambda *_: times.append(time.perf_counter() - started),
            lambda *_: None,
            lambda: False,
        )
        return Generation(len(times), times[0], times[-1], 1)


def model_folder() -> Path:
    """Where the model that ships lies."""
    from workloads.lm.manifest import builtin_models

    return builtin_models()[MODEL]


# --- One job --------------------------------------------------------------------------------------


@dataclass
class Job:
    """One job as its client saw it."""

    generation: Generation
    verified_s: float
    """From submitting to the last segment's verdict."""
    receipt_s: float
    """From submitting to the receipt."""
    executor: str
    verifiers: int
    """Peers that verified any of it."""
    executed_cpu_us: int = 0
    recomputed_cpu_us: int = 0
    node_cpu_us: dict[str, int] = field(default_factory=dict)
    """CPU time of node processes, workers left out, by role."""


def job_file(
    *, mode: str, profile: str, tokens: int, seed: int, verifiers: int = 2, exclude: Sequence[str] = ()
) -> bytes:
    """A job file for the benchmark's prompt."""
    return f"""
apiVersion: p2p/v1
kind: Job
name: bench
task:
  workload: lm.generate
  model: {MODEL}
  prompt: "{PROMPT}"
  max_tokens: {tokens}
  seed: {seed}
  temperature: {TEMPERATURE_MILLI / 1000}
placement:
  exclude: [{", ".join(exclude)}]
auction:
  mode: {mode}
  window: {WINDOW_MS}ms
  max_price: 500
verify:
  profile: {profile}
  verifiers: {verifiers}
  chunks: all
""".encode()


def run_job(client: NodeClient, document: bytes) -> Job:
    """Submit, follow the stream to its end and note when what came.

    Raises:
        RuntimeError: the job wasn't verified on its first attempt.
    """
    started = time.perf_counter()
    job_id = client.submit(document)["id"]
    first_s = last_s = verified_s = 0.0
    tokens = tokens_first = 0
    executor, state = "", ""
    verifiers: set[str] = set()
    seen: Counter[str] = Counter()
    for event in client.events(job_id):
        now_s = time.perf_counter() - started
        seen[event["event"]] += 1
        match event["event"]:
            case "awarded":
                executor = event["peer"]
            case "output":
                tokens = event["units_total"]
                if not first_s:
                    first_s, tokens_first = now_s, tokens
                last_s = now_s
            case "verifier-drawn":
                verifiers.add(event["peer"])
            case "concluded":
                verified_s, state = now_s, event["state"]
    receipt_s = time.perf_counter() - started
    if state != "verified" or seen["awarded"] != 1:
        raise RuntimeError(f"job {job_id[:16]} ended {state!r} after {seen['awarded']} awards: {dict(seen)}")
    generation = Generation(tokens, first_s, last_s, tokens_first)
    return Job(generation, verified_s, receipt_s, executor, len(verifiers))


class Bench:
    """A swarm, and clients of all its peers."""

    def __init__(self, swarm: Swarm, clients: Sequence[NodeClient]) -> None:
        self.peers = swarm.peers
        self.clients = clients

    def run(self, **fields: Any) -> Job:
        """Run one job from the first peer."""
        return run_job(self.clients[0], job_file(**fields))

    def run_counted(self, **fields: Any) -> Job:
        """Run one job, and count whose CPU time it took."""
        workers_before, nodes_before = self._workers_cpu_us(), self._nodes_cpu_us()
        job = self.run(**fields)
        workers, nodes = self._workers_cpu_us(), self._nodes_cpu_us()
        job.executed_cpu_us = workers[0] - workers_before[0]
        job.recomputed_cpu_us = workers[1] - workers_before[1]
        for index, peer in enumerate(self.peers):
            role = "requester" if index == 0 else "executor" if peer.peer_id == job.executor else "others"
            job.node_cpu_us[role] = job.node_cpu_us.get(role, 0) + nodes[index] - nodes_before[index]
        return job

    def warm_up(self, profile: str) -> None:
        """Let each peer but the first execute once, while all the others verify."""
        workers = [peer.peer_id for peer in self.peers[1:]]
        for chosen in workers:
            others = [key for key in workers if key != chosen]
            job = self.run(
                mode="posted", profile=profile, tokens=33, seed=0, verifiers=len(others), exclude=others
            )
            if (job.executor, job.verifiers) != (chosen, len(others)):
                raise RuntimeError(f"{job.executor} executed and {job.verifiers} verified, not as asked")

    def _workers_cpu_us(self) -> tuple[int, int]:
        statuses = [client.status() for client in self.clients]
        return (
            sum(status["executed_cpu_us"] for status in statuses),
            sum(status["recomputed_cpu_us"] for status in statuses),
        )

    def _nodes_cpu_us(self) -> list[int]:
        times = [psutil.Process(peer.process.pid).cpu_times() for peer in self.peers]
        return [round(1e6 * (spent.user + spent.system)) for spent in times]


# --- Tables ---------------------------------------------------------------------------------------


def dispatch_rows(
    direct: Sequence[Generation], posted: Sequence[Job], auctioned: Sequence[Job]
) -> list[list[str]]:
    """First token, last token and verdict of short jobs, and what the swarm adds to the direct call's."""
    first = [run.first_s for run in direct]
    last = [run.last_s for run in direct]
    rows = [
        _latency_row("direct, to first token", first, first),
        _latency_row("direct, to last token", last, last),
    ]
    for name, jobs in (("posted", posted), (f"auction of {WINDOW_MS} ms", auctioned)):
        rows += [
            _latency_row(f"{name}, to first token", [job.generation.first_s for job in jobs], first),
            _latency_row(f"{name}, to last token", [job.generation.last_s for job in jobs], last),
            _latency_row(f"{name}, to verified", [job.verified_s for job in jobs], last),
            _latency_row(f"{name}, to receipt", [job.receipt_s for job in jobs], last),
        ]
    return rows


def _latency_row(name: str, values: Sequence[float], baseline: Sequence[float]) -> list[str]:
    p50, p95 = (1e3 * percentile(values, percent) for percent in (50, 95))
    base = 1e3 * percentile(baseline, 50)
    return [name, str(len(values)), f"{p50:.1f}", f"{p95:.1f}", f"{p50 - base:+.1f}", f"{p50 / base:.1f}x"]


def streaming_row(profile: str, direct: Sequence[Generation], jobs: Sequence[Job]) -> list[str]:
    """Tokens a second after the first token, direct and through the swarm, and CPU time of node processes.

    The best run of each side counts besides the median: what else runs on the machine spoils it least.
    """
    base = [run.tokens_per_s for run in direct]
    swarm = [job.generation.tokens_per_s for job in jobs]
    tokens = sum(job.generation.tokens for job in jobs)
    cells = [profile]
    for choose in (statistics.median, max):
        cells += [f"{choose(base):.0f}", f"{choose(swarm):.0f}", f"{choose(swarm) / choose(base):.3f}"]
    cells += [
        f"{sum(job.node_cpu_us.get(role, 0) for job in jobs) / tokens:.0f}"
        for role in ("requester", "executor", "others")
    ]
    return cells


def verifying_row(profile: str, jobs: Sequence[Job]) -> list[str]:
    """CPU time of verifiers over that of the executor, for each peer that verified and for all."""
    executed = sum(job.executed_cpu_us for job in jobs)
    recomputed = sum(job.recomputed_cpu_us for job in jobs)
    verifiers = sum(job.verifiers for job in jobs) / len(jobs)
    return [
        profile,
        f"{executed / len(jobs) / 1e3:.0f} ms",
        f"{recomputed / len(jobs) / 1e3:.0f} ms",
        f"{verifiers:.1f}",
        f"{recomputed / executed / verifiers:.3f}",
        f"{recomputed / executed:.3f}",
    ]


# --- Measuring ------------------------------------------------------------------------------------


def measure_dispatch(bench: Bench, direct: Direct, effort: Effort) -> None:
    """Short jobs, one after another."""
    calls, posted, auctioned = [], [], []
    for seed in range(effort.dispatches):
        fields: dict[str, Any] = {"profile": "exact14", "tokens": effort.short_tokens, "seed": seed}
        calls.append(direct.generate(**fields))
        posted.append(bench.run(mode="posted", **fields))
        if seed < effort.auctions:
            auctioned.append(bench.run(mode="auction", **fields))
    print_table(
        f"Warm jobs of {effort.short_tokens} tokens, exact14: milliseconds from submitting "
        f"(target: posted adds at most {DISPATCH_MS_TARGET} to the first token)",
        ["path", "runs", "p50", "p95", "added", "to direct"],
        dispatch_rows(calls, posted, auctioned),
    )


def measure_streaming(bench: Bench, direct: Direct, effort: Effort) -> None:
    """Long jobs, one after another."""
    streaming, verifying = [], []
    for profile in EXACT:
        calls, jobs = [], []
        for seed in range(effort.long_runs):
            fields: dict[str, Any] = {"profile": profile, "tokens": effort.long_tokens, "seed": seed}
            calls.append(direct.generate(**fields))
            jobs.append(bench.run_counted(mode="posted", **fields))
        streaming.append(streaming_row(profile, calls, jobs))
        verifying.append(verifying_row(profile, jobs))
    native = [direct.generate("native", effort.long_tokens, seed) for seed in range(effort.long_runs)]
    rates = [run.tokens_per_s for run in native]
    reference = [f"{statistics.median(rates):.0f}", "", "", f"{max(rates):.0f}"]
    streaming.append(["native, for reference", *reference, *[""] * 5])
    print_table(
        f"Streaming {effort.long_tokens} tokens, {effort.long_runs} jobs: tokens a second after the first "
        f"(target: {STREAMING_TARGET} of direct), median and best runs; CPU of nodes in microseconds a token",
        ["profile", "direct", "swarm", "ratio", "best", "swarm", "ratio", "requester", "executor", "others"],
        streaming,
    )
    print_table(
        f"CPU time of a job of {effort.long_tokens} tokens, every chunk verified "
        f"(target: a verifier takes at most {VERIFYING_TARGET} of the executor's)",
        ["profile", "executor", "verifiers", "peers", "each", "all"],
        verifying,
    )


def measure(effort: Effort) -> None:
    """Measure everything and print it."""
    model, alone = footprint.model_alone(model_folder()), footprint.peer_alone()
    started: dict[int, float] = {}
    took: dict[int, float] = {}

    def note(event: str, details: dict[str, Any]) -> None:
        if event == "started":
            started[details["peer"].index] = time.perf_counter()
        elif event == "up":
            took[details["peer"].index] = time.perf_counter() - started[details["peer"].index]

    with running_swarm(PEERS, on_event=note) as swarm:
        with ExitStack() as stack:
            bench = Bench(swarm, [stack.enter_context(peer.connect()) for peer in swarm.peers])
            direct = Direct()
            for profile in EXACT:
                direct.generate(profile, 64, 0)
                bench.warm_up(profile)
            direct.generate("native", 64, 0)
            measure_dispatch(bench, direct, effort)
            measure_streaming(bench, direct, effort)
        memory = [footprint.Footprint.of_node(peer.process.pid) for peer in swarm.peers]
        print_table(
            "Start-up until the API answers, and memory in MiB (PSS divides pages that processes share)",
            footprint.HEAD,
            footprint.rows(model, alone, list(took.values()), memory),
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments, then measure."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.swarm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter jobs, about a minute")
    arguments = parser.parse_args(argv)
    print(machine_line(), flush=True)
    measure(QUICK if arguments.quick else FULL)


if __name__ == "__main__":
    main()
