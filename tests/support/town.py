"""A small town on the simulated network under a clock that jumps: a client with a store, and executors."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import trio

from p2p_node.core.keyring import Keyring, RealCrypto
from p2p_node.core.node import Capability, NodeCore
from p2p_node.jobrecord import JobRecord
from p2p_node.jobs import JobBook
from p2p_node.network.simulated import Conditions, SimulatedInternet, open_internet
from p2p_node.node import NodeNotes
from p2p_node.partition.receipts import check_raw
from p2p_node.runtime import Runtime, topic_names
from p2p_node.store import Store
from protocols.digest import tagged
from tests.runtime.test_scenario import NETWORK, Addresses
from verification.receipt_parts import WholeReport

__all__ = ["CLIENT", "EXECUTORS", "Peer", "Town", "Trade", "checked", "clock", "events", "over", "town"]

EXECUTORS = 4
CLIENT = 0


@dataclass(frozen=True)
class Trade:
    """What the town lives of.

    Args:
        capability: of a peer, by its number.
        employ: opens a peer's executor.
    """

    capability: Callable[[int], Capability]
    employ: Callable[[trio.Nursery, int], Any]


@dataclass
class Peer:
    """One node."""

    runtime: Runtime
    executor: Any
    scope: trio.CancelScope
    book: JobBook | None = None

    @property
    def key(self) -> bytes:
        """By which others know it."""
        return self.runtime.core.key


def clock() -> int:
    """Milliseconds of the town's time."""
    return 1_700_000_000_000 + int(trio.current_time() * 1_000)


class Town:
    """A client with a store, executors, and what they do."""

    def __init__(self, internet: SimulatedInternet, nursery: trio.Nursery, path: Path, trade: Trade) -> None:
        self._trade = trade
        self._internet = internet
        self._nursery = nursery
        self._path = path
        self._bootstrap: list[str] = []
        self.peers: list[Peer] = []

    async def open(self, index: int) -> Peer:
        """Start a peer that runs until its scope is cancelled."""
        return await self._nursery.start(partial(self._live, index))

    async def _live(self, index: int, *, task_status: Any) -> None:
        seed = tagged("town-seed", bytes([index]))
        async with AsyncExitStack() as stack:
            nursery = await stack.enter_async_context(trio.open_nursery())
            core = NodeCore(
                keys=Keyring(seed),
                crypto=RealCrypto(),
                secret=tagged("town-secret", seed),
                network=NETWORK,
                capability=self._trade.capability(index),
                jitter=random.Random(index),
            )
            notes = NodeNotes()
            executor = self._trade.employ(nursery, index)
            keeper: Any = SimpleNamespace(apply=lambda changes: None)
            if index == CLIENT:
                keeper = stack.enter_context(Store.open(self._path))
            runtime = Runtime(core, executor=executor, keeper=keeper, clock=clock, on_notify=notes)
            network = await stack.enter_async_context(
                self._internet.open_network(
                    seed=seed,
                    listen=["/ip4/127.0.0.1/tcp/0"],
                    topics=topic_names(NETWORK),
                    rule=runtime.rule,
                    network_name=NETWORK,
                    bootstrap=list(self._bootstrap),
                    address_book=Addresses(),
                    mdns=False,
                    jitter=random.Random(index),
                    clock=clock,
                )
            )
            core.capability = replace(core.capability, addresses=tuple(network.addresses))
            self._bootstrap += network.addresses
            peer = Peer(runtime, executor, nursery.cancel_scope)
            if index == CLIENT:
                peer.book = notes.book = JobBook(runtime, keeper, {}, clock=clock)
                nursery.start_soon(peer.book.wholes.run)
            await nursery.start(runtime.run, network)
            task_status.started(peer)
            await trio.sleep_forever()

    async def ready(self, client: Peer, peers: int) -> None:
        """Wait until the client knows so many."""
        while len(client.runtime.core.registry) < peers:
            await trio.sleep(0.05)


@asynccontextmanager
async def town(path: Path, trade: Trade) -> AsyncIterator[tuple[Town, Peer, list[Peer]]]:
    """A client that knows its executors."""
    conditions = Conditions(delay_ms_min=2, delay_ms_max=10)
    with trio.fail_after(2_000):
        async with open_internet(seed=1, conditions=conditions) as internet, trio.open_nursery() as nursery:
            made = Town(internet, nursery, path, trade)
            client = await made.open(CLIENT)
            others = [await made.open(index) for index in range(1, EXECUTORS + 1)]
            await made.ready(client, EXECUTORS)
            yield made, client, others
            nursery.cancel_scope.cancel()


async def over(record: JobRecord) -> None:
    """Wait until a job is."""
    while not record.is_final:
        await trio.sleep(0.1)


def checked(client: Peer, record: JobRecord) -> WholeReport:
    """The whole's receipt, checked as a stranger would."""
    assert client.book is not None
    raw = client.book.receipt(record)
    assert raw is not None
    return check_raw(raw, network=NETWORK, crypto=RealCrypto())


def events(record: JobRecord, name: str) -> list[dict[str, Any]]:
    """Those of a name."""
    return [event for event in record.events if event["event"] == name]
