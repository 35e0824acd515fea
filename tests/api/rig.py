"""A node with a real API on loopback, whose peers live on a simulated network in the same process.

The client node takes jobs and serves none; three others bid. The trio loop runs in a thread of its own,
so that tests may use the synchronous client and the command line.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import trio

from p2p_node import api
from p2p_node.accesslists import AccessLists
from p2p_node.blobs import BlobService, BlobStore
from p2p_node.config import NodeConfig
from p2p_node.core.keyring import Keyring, RealCrypto
from p2p_node.core.node import Capability, NodeCore
from p2p_node.datadir import DataDir
from p2p_node.executor import builtin_places
from p2p_node.jobs import JobBook
from p2p_node.logs import configure_logging
from p2p_node.network.simulated import Conditions, SimulatedInternet, open_internet
from p2p_node.node import Node, NodeNotes
from p2p_node.pausing import Pausing
from p2p_node.runtime import Runtime, topic_names
from p2p_node.sim.workload import chunk_digest
from p2p_node.store import Store
from protocols.bidding import Ability
from protocols.digest import tagged
from protocols.effects import Execute, Recompute, Task
from protocols.events import RunChunk, RunEvent, RunFailed, RunFinished, RunOutput, RunRecomputed
from protocols.limits import LM_CHUNK_UNITS
from protocols.messages import Offering
from workloads.lm.input import decode_input
from workloads.registry import KINDS, open_workload

__all__ = ["NETWORK", "PEERS", "PRICES", "PRODUCT", "Rig", "job_document", "running_rig"]

MODEL = "kjv-2m"
MODEL_WORKLOAD = "lm.generate"
PRODUCT_MODEL = "integer-matmul"
NETWORK = "api-tests"
PEERS = 4
PRICES = (0, 100, 110, 120)
VOCABULARY = 1_000
START_TIMEOUT_S = 30

SPEC = """\
apiVersion: p2p/v1
kind: Job
name: {name}
task:
  workload: lm.generate
  model: kjv-2m
  prompt: "In the beginning"
  max_tokens: {max_tokens}
auction:
  window: {window}
  max_price: {max_price}
  rebids: {rebids}
verify: {{verifiers: 2, chunks: all}}
timeouts:
  queue: 10s
  execution: 30s
  total: 40s
"""

T = TypeVar("T")


def job_document(**changes: Any) -> bytes:
    """A job file that takes about a second.

    All chunks are checked: of an executor with a record, which depends on the tests before, less would be.
    """
    fields = {"name": "verse", "max_tokens": 40, "window": "200ms", "max_price": 500, "rebids": 0} | changes
    return SPEC.format(**fields).encode()


PRODUCT = b"""\
apiVersion: p2p/v1
kind: Job
name: product
task:
  workload: linalg.matmul
  rows: 2
  inner: 2
  columns: 2
  left: [[1, 2], [3, 4]]
  right: [[0, 1], [1, 0]]
auction: {window: 200ms, rebids: 0}
timeouts: {queue: 10s, execution: 30s, total: 40s}
"""
"""A job whose output isn't text."""


class QuickExecutor:
    """The language model's inputs and chunks without its arithmetic; small matrix products as they are."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._scopes: dict[tuple[Any, ...], trio.CancelScope] = {}
        self.executed_cpu_us = 0
        self.recomputed_cpu_us = 0

    def start(self, key: tuple[Any, ...], task: Task, report: Callable[[RunEvent], None]) -> None:
        if not isinstance(task, Execute | Recompute):
            report(RunFailed(key, "unsupported", "nothing is disputed here"))
            return
        scope = self._scopes[key] = trio.CancelScope()
        work = self._execute if isinstance(task, Execute) else self._recompute
        self._nursery.start_soon(work, scope, key, task, report)

    def cancel(self, key: tuple[Any, ...]) -> None:
        if key in self._scopes:
            self._scopes[key].cancel()

    async def _execute(self, scope: trio.CancelScope, key: Any, task: Any, report: Any) -> None:
        with scope:
            units: list[int] = []
            if task.workload != MODEL_WORKLOAD:
                product = open_workload(task.workload, Path(), task.profile)
                product.generate(
                    task.input,
                    task.prefix,
                    lambda first, new: report(RunOutput(key, first, tuple(new))),
                    lambda chunk, digest: report(RunChunk(key, chunk, digest)),
                    lambda: False,
                )
                report(RunFinished(key, 4, 1_000))
                return
            units_max = decode_input(task.input).max_tokens
            for chunk in range(-(-units_max // LM_CHUNK_UNITS)):
                await trio.sleep(0.02)
                first, end = chunk * LM_CHUNK_UNITS, min(units_max, (chunk + 1) * LM_CHUNK_UNITS)
                units += [tagged("unit", bytes([i % 256]))[0] for i in range(first, end)]
                report(RunOutput(key, first, tuple(units[first:end])))
                digest = chunk_digest(task, units, chunk, chunk_units=LM_CHUNK_UNITS)
                report(RunChunk(key, chunk, digest))
            report(RunFinished(key, units_max, 1_000))

    async def _recompute(self, scope: trio.CancelScope, key: Any, task: Any, report: Any) -> None:
        with scope:
            await trio.sleep(0.01)
            if task.workload != MODEL_WORKLOAD:
                product = open_workload(task.workload, Path(), task.profile)
                found = product.recompute(task.input, task.units, task.chunks)
                report(RunRecomputed(key, tuple(found.items()), 500))
                return
            digests = tuple(
                (chunk, chunk_digest(task, task.units, chunk, chunk_units=LM_CHUNK_UNITS))
                for chunk in task.chunks
            )
            report(RunRecomputed(key, digests, 500))


class _NoAddresses:
    def load(self) -> list[str]:
        return []

    def remember(self, address: str) -> None:
        return

    def forget(self, address: str) -> None:
        return


@dataclass
class Rig:
    """The client node, and a way into its loop."""

    node: Node
    others: list[Node]
    datadir: Path
    token: trio.lowlevel.TrioToken
    stopped: threading.Event
    """Set when the node's `stop` was called."""

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in the node's thread."""
        return trio.from_thread.run_sync(function, *arguments, trio_token=self.token)


def clock() -> int:
    return time.time_ns() // 1_000_000


async def _open_node(
    stack: AsyncExitStack,
    nursery: trio.Nursery,
    internet: SimulatedInternet,
    place: DataDir,
    *,
    index: int,
    bootstrap: list[str],
    stop: Callable[[], None],
) -> Node:
    seed = tagged("api-test-seed", bytes([index]))
    models = {name: place for name, place in builtin_places().items() if name in (MODEL, PRODUCT_MODEL)}
    abilities = tuple(
        Ability(
            Offering(place.workload, place.digest, ("exact14",), PRICES[index], 500_000, True),
            "cpu",
            512,
            1 << 30,
            KINDS[place.workload].chunk_units,
        )
        for place in models.values()
        if index
    )
    core = NodeCore(
        keys=Keyring(seed),
        crypto=RealCrypto(),
        secret=tagged("api-test-secret", seed),
        network=NETWORK,
        capability=Capability(abilities=abilities, cores=2, ram_bytes=1 << 30, slots_total=4),
        jitter=random.Random(index),
    )
    store = stack.enter_context(Store.open(place.store))
    notes = NodeNotes()
    executor: Any = QuickExecutor(nursery)
    runtime = Runtime(core, executor=executor, keeper=store, clock=clock, on_notify=notes)
    network = await stack.enter_async_context(
        internet.open_network(
            seed=seed,
            listen=["/ip4/127.0.0.1/tcp/0"],
            topics=topic_names(NETWORK),
            rule=runtime.rule,
            network_name=NETWORK,
            bootstrap=list(bootstrap),
            address_book=_NoAddresses(),
            mdns=False,
            jitter=random.Random(index),
            clock=clock,
        )
    )
    core.capability = replace(core.capability, addresses=tuple(network.addresses))
    bootstrap += network.addresses
    notes.book = JobBook(runtime, store, models, clock=clock)
    blob_store = BlobStore.open(place.blobs, bytes_max=16 * 1024**2, clock=clock)
    stack.callback(blob_store.close)
    blobs = BlobService(blob_store, serve_bytes_per_s=10**9, serve_peer_bytes_per_s=10**9)
    await nursery.start(blobs.run, network)
    await nursery.start(runtime.run, network)
    nursery.start_soon(notes.book.wholes.run)
    return Node(
        config=NodeConfig(network=NETWORK),
        place=place,
        core=core,
        runtime=runtime,
        network=network,
        store=store,
        book=notes.book,
        models=models,
        measured={"cores": 2},
        started_ms=clock(),
        earned=notes.earned,
        activity=notes.activity,
        stop=stop,
        pausing=Pausing(("cpu",), runtime.pause),
        executor=executor,
        blobs=blobs,
        # The simulated network keeps nobody out.
        lists=AccessLists(place.config, lambda access: len(access.denied_peers)),
    )


async def _main(root: Path, peers: int, ready: Callable[[Rig], None], finish: threading.Event) -> None:
    stopped = threading.Event()
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        conditions = Conditions(delay_ms_min=1, delay_ms_max=2)
        internet = await stack.enter_async_context(open_internet(seed=1, conditions=conditions))
        bootstrap: list[str] = []
        nodes = [
            await _open_node(
                stack,
                nursery,
                internet,
                DataDir.open(root / str(index)),
                index=index,
                bootstrap=bootstrap,
                stop=stopped.set,
            )
            for index in range(peers)
        ]
        while any(len(node.core.registry) < max(0, peers - 2) for node in nodes):
            await trio.sleep(0.01)
        await nursery.start(api.serve, nodes[0], "127.0.0.1:0")
        ready(Rig(nodes[0], nodes[1:], root / "0", trio.lowlevel.current_trio_token(), stopped))
        await trio.to_thread.run_sync(finish.wait, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


@contextmanager
def running_rig(root: Path, *, peers: int = PEERS) -> Iterator[Rig]:
    """A client node with its API, and ``peers - 1`` peers that serve."""
    rigs: list[Rig] = []
    is_ready, finish = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    def ready(rig: Rig) -> None:
        rigs.append(rig)
        is_ready.set()

    def run() -> None:
        # Locals in a traceback would show tokens and keys; the node's own logging has none.
        configure_logging("console", level=logging.WARNING)
        try:
            trio.run(_main, root, peers, ready, finish)
        except BaseException as error:
            failures.append(error)
            is_ready.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        assert is_ready.wait(START_TIMEOUT_S), "the rig didn't start"
        if failures:
            raise failures[0]
        yield rigs[0]
    finally:
        finish.set()
        thread.join(START_TIMEOUT_S)
    assert not thread.is_alive(), "the rig didn't stop"
    if failures:
        raise failures[0]
