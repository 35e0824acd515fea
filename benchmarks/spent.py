"""What a swarm's processes spend, on what, and how short several executors could make it at best."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields

import psutil

from p2p_node.client import NodeClient
from p2p_node.swarm import Swarm

__all__ = ["Spent", "cores", "mean", "ratio_bound", "spending"]


@dataclass
class Spent:
    """Seconds of processors, but for the first.

    Args:
        wall_s: on the clock.
        computed_s: in executions.
        verified_s: in verifiers' recomputations.
        workers_s: of worker processes, whatever for.
        nodes_s: of the nodes: network, signatures, records.
        others_s: of all other processes of the machine.
    """

    wall_s: float = 0.0
    computed_s: float = 0.0
    verified_s: float = 0.0
    workers_s: float = 0.0
    nodes_s: float = 0.0
    others_s: float = 0.0

    @property
    def total_s(self) -> float:
        """All that the swarm's processes took."""
        return self.workers_s + self.nodes_s

    @property
    def others_cores(self) -> float:
        """Cores that other processes held, on average."""
        return self.others_s / self.wall_s if self.wall_s else 0.0


def mean(found: Sequence[Spent]) -> Spent:
    """The mean of each figure."""
    names = [field.name for field in fields(Spent)]
    return Spent(**{name: sum(getattr(each, name) for each in found) / len(found) for name in names})


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ratio_bound(one: Spent, several: Spent, executors: int, *, cores: int, is_verified: bool) -> float:
    """The least share of one executor's time that several could take, by the processor time that they took.

    Args:
        one: with one executor, whose time is at least what it computes: others have other cores.
        several: with several.
        executors: how many.
        cores: of the machine, for executors, verifiers and nodes together.
        is_verified: whether verifiers' recomputations count.

    Source: Graham's bound for work that falls into parts at will: the longest share, or all over the cores.
    """
    all_s = several.total_s - (0.0 if is_verified else several.verified_s)
    return max(several.computed_s / executors, all_s / cores) / max(one.computed_s, 1e-9)


@contextmanager
def spending(swarm: Swarm, clients: Sequence[NodeClient]) -> Iterator[Spent]:
    """What is given is filled in when the block ends.

    Args:
        swarm: whose processes count.
        clients: of all of its peers, which tell what their workers did.
    """
    spent = Spent()
    machine, own = _machine_s(), time.process_time()
    nodes, workers = _processes_s(swarm)
    computed, verified = _done_s(clients)
    started = time.perf_counter()
    yield spent
    spent.wall_s = time.perf_counter() - started
    nodes_after, workers_after = _processes_s(swarm)
    computed_after, verified_after = _done_s(clients)
    spent.nodes_s, spent.workers_s = nodes_after - nodes, workers_after - workers
    spent.computed_s, spent.verified_s = computed_after - computed, verified_after - verified
    others = _machine_s() - machine - spent.total_s - (time.process_time() - own)
    spent.others_s = max(0.0, others)


def _machine_s() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.system + getattr(times, "nice", 0.0))


def _done_s(clients: Sequence[NodeClient]) -> tuple[float, float]:
    statuses = [client.status() for client in clients]
    return (
        sum(status["executed_cpu_us"] for status in statuses) / 1e6,
        sum(status["recomputed_cpu_us"] for status in statuses) / 1e6,
    )


def _processes_s(swarm: Swarm) -> tuple[float, float]:
    nodes = workers = 0.0
    for peer in swarm.peers:
        with suppress(psutil.Error):
            node = psutil.Process(peer.process.pid)
            nodes += _cpu_s(node)
            for worker in node.children(recursive=True):
                with suppress(psutil.Error):
                    workers += _cpu_s(worker)
    return nodes, workers


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
