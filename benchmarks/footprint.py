"""What a peer takes to start and to hold in memory, against a process that only loads the model.

Part of ``python -m benchmarks.swarm``, which has a swarm to look at.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from p2p_node import keystore
from p2p_node.datadir import DataDir

__all__ = ["HEAD", "Footprint", "Started", "model_alone", "peer_alone", "rows"]

MEBIBYTE = 2**20
START_S_MAX = 120
HEAD = ["process", "seconds", "to model", "RSS", "PSS", "to model"]

_LOAD_MODEL = """
import sys
from pathlib import Path
from workloads.lm.generate import LmExecutor
LmExecutor(Path(sys.argv[1]), "exact14")
print("ready", flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Footprint:
    """Memory of some processes."""

    resident_mib: float
    """Pages that the processes map, shared ones counted in each."""
    proportional_mib: float
    """The same, each shared page divided among those that map it; where the system can't say, the same."""

    @classmethod
    def of(cls, processes: Sequence[psutil.Process]) -> Footprint:
        """Measure now."""
        memory = [process.memory_full_info() for process in processes]
        return cls(
            sum(used.rss for used in memory) / MEBIBYTE,
            sum(getattr(used, "pss", used.rss) for used in memory) / MEBIBYTE,
        )

    @classmethod
    def of_node(cls, pid: int) -> tuple[Footprint, Footprint]:
        """Of a node's own process, and of its workers."""
        node = psutil.Process(pid)
        return cls.of([node]), cls.of(node.children(recursive=True))


@dataclass(frozen=True)
class Started:
    """A process or a peer that is up."""

    seconds: float
    footprint: Footprint


def model_alone(folder: Path) -> Started:
    """A Python process that loads the model, and nothing else."""
    command = [sys.executable, "-c", _LOAD_MODEL, str(folder)]
    started = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError("the model doesn't load")
            return Started(time.perf_counter() - started, Footprint.of([psutil.Process(process.pid)]))
        finally:
            process.kill()


def peer_alone() -> Started:
    """A node as an operator starts it, measuring its machine first, until its API answers."""
    with tempfile.TemporaryDirectory(prefix="p2p-node-bench-") as folder:
        place = DataDir.open(Path(folder) / "peer")
        keystore.create(place.keystore, None)
        with _node(place) as process:
            started = time.perf_counter()
            while not place.api.exists():
                if process.poll() is not None or time.perf_counter() - started > START_S_MAX:
                    raise RuntimeError(f"a peer didn't start within {START_S_MAX} s")
                time.sleep(0.01)
            seconds = time.perf_counter() - started
            node, workers = Footprint.of_node(process.pid)
            return Started(seconds, _sum(node, workers))


@contextmanager
def _node(place: DataDir) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "p2p_node", "start", "--datadir", str(place.path), "--network", "alone"]
    command += ["--listen", "/ip4/127.0.0.1/tcp/0", "--api", "127.0.0.1:0", "--no-mdns"]
    command += ["--parent", str(os.getpid())]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def rows(
    model: Started,
    alone: Started,
    together: Sequence[float],
    swarm: Sequence[tuple[Footprint, Footprint]],
) -> list[list[str]]:
    """The table's rows.

    Args:
        model: the baseline.
        alone: one peer, just started.
        together: seconds that each peer of the swarm took to start beside the others.
        swarm: of each peer, its node process and its workers, after their jobs.
    """
    nodes, workers = [node for node, _ in swarm], [its_workers for _, its_workers in swarm]
    return [
        _row("the model alone", model, model.seconds, [model.footprint]),
        _row("one peer, just started", model, alone.seconds, [alone.footprint]),
        _row(
            f"each of {len(swarm)} peers, after jobs",
            model,
            statistics.mean(together),
            [_sum(node, its_workers) for node, its_workers in swarm],
        ),
        _row("  its node process", model, None, nodes),
        _row("  its workers", model, None, workers),
    ]


def _sum(first: Footprint, second: Footprint) -> Footprint:
    return Footprint(
        first.resident_mib + second.resident_mib, first.proportional_mib + second.proportional_mib
    )


def _row(name: str, model: Started, seconds: float | None, footprints: Sequence[Footprint]) -> list[str]:
    resident = statistics.mean(footprint.resident_mib for footprint in footprints)
    proportional = statistics.mean(footprint.proportional_mib for footprint in footprints)
    return [
        name,
        f"{seconds:.1f}" if seconds is not None else "",
        f"{seconds / model.seconds:.1f}x" if seconds is not None else "",
        f"{resident:.0f}",
        f"{proportional:.0f}",
        f"{proportional / model.footprint.proportional_mib:.1f}x",
    ]
