"""What processes of a swarm take over time, and the slope of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from p2p_node.errors import UserError
from p2p_node.swarm import Swarm, SwarmPeer

__all__ = ["Sample", "Watched", "drift_per_hour", "drift_rows", "watch"]

SEEN_S_MIN = 60.0
"""Processes that lived shorter say nothing about growth."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a process, at a time in seconds."""

    at_s: float
    rss_bytes: int
    workers_bytes: int
    """Of its children, by what each has to itself and its share of what they share."""
    descriptors: int
    threads: int
    tasks: int
    """Of trio; 0 where it didn't answer."""


@dataclass(slots=True)
class Watched:
    """One process over time."""

    samples: list[Sample] = field(default_factory=list)


def drift_per_hour(samples: Sequence[tuple[float, float]]) -> float:
    """The slope of the least-squares line through (seconds, value), for an hour; 0 for fewer than two."""
    if len(samples) < 2:
        return 0.0
    mean_x = sum(x for x, _ in samples) / len(samples)
    mean_y = sum(y for _, y in samples) / len(samples)
    spread = sum((x - mean_x) ** 2 for x, _ in samples)
    return 3_600 * sum((x - mean_x) * (y - mean_y) for x, y in samples) / spread if spread else 0.0


def watch(swarm: Swarm, watched: dict[tuple[int, int], Watched], *, at_s: float) -> None:
    """Look at every peer's process once; ``watched`` has them by the peer's index and the process id."""
    for peer in swarm.peers:
        with suppress(psutil.Error):
            process = psutil.Process(peer.process.pid)
            is_up = (peer.datadir / "api.json").exists()
            if process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE) or not is_up:
                continue
            sample = Sample(
                at_s,
                process.memory_info().rss,
                _workers_bytes(process),
                process.num_fds(),
                process.num_threads(),
                _tasks(peer),
            )
            watched.setdefault((peer.index, process.pid), Watched()).samples.append(sample)


def _workers_bytes(process: psutil.Process) -> int:
    total = 0
    for child in process.children(recursive=True):
        with suppress(psutil.Error, AttributeError):
            total += child.memory_full_info().pss
    return total


def _tasks(peer: SwarmPeer) -> int:
    with suppress(UserError), peer.connect() as client:
        return int(client.status().get("tasks", 0))
    return 0


def drift_rows(watched: dict[tuple[int, int], Watched]) -> list[list[str]]:
    """A row for each process that was seen for long enough: first and last figures, and the drift."""
    rows = []
    for (index, pid), one in sorted(watched.items()):
        samples = one.samples
        if len(samples) < 4 or samples[-1].at_s - samples[0].at_s < SEEN_S_MIN:
            continue
        half = samples[len(samples) // 2 :]
        first, last = samples[0], samples[-1]
        tasks = [sample.tasks for sample in samples if sample.tasks] or [0]
        rows.append(
            [
                f"peer {index} ({pid})",
                f"{last.at_s - first.at_s:.0f} s",
                f"{first.rss_bytes / 2**20:.0f}",
                f"{last.rss_bytes / 2**20:.0f}",
                f"{drift_per_hour([(s.at_s, s.rss_bytes / 2**20) for s in half]):+.1f}",
                f"{first.workers_bytes / 2**20:.0f} to {last.workers_bytes / 2**20:.0f}",
                f"{first.descriptors} to {last.descriptors}",
                f"{first.threads} to {last.threads}",
                f"{tasks[0]} to {tasks[-1]}",
            ]
        )
    return rows
