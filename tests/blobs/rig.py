"""Peers with blob services on a simulated network, and sources that don't keep to the rules."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from p2p_node.blobs import BlobService, BlobStore
from p2p_node.blobs.talk import PROTOCOL, BlobTalk
from p2p_node.network.port import BulkStream
from p2p_node.network.simulated import Conditions, SimulatedInternet, SimulatedNetwork, open_internet
from protocols.blobs import Ask, Holding, Piece, Want, piece_count, piece_digest
from protocols.limits import BLOB_PIECE_BYTES
from tests.network.test_simulated import node
from tests.support.deterministic_trio import run_deterministically

MIB = BLOB_PIECE_BYTES
FAST = 10**12


def content(number: int, size: int = 1_000) -> bytes:
    """Bytes in which no two pieces are alike: the pattern's length and a piece's have no common factor."""
    pattern = bytes((number + at) % 251 for at in range(997))
    return (pattern * (size // 997 + 1))[:size]


def pieces_of(data: bytes) -> list[bytes]:
    return [data[at : at + MIB] for at in range(0, len(data), MIB)]


def index_of(data: bytes) -> bytes:
    return b"".join(map(piece_digest, pieces_of(data)))


def clock() -> int:
    return int(trio.current_time() * 1_000)


async def at_once(function: Callable[..., Any], *arguments: Any) -> Any:
    """Stands in for a thread: the mock clock would take one for idleness."""
    await trio.lowlevel.checkpoint()
    return function(*arguments)


class Peer:
    """One peer: its network, its store, and its service."""

    def __init__(self, network: SimulatedNetwork, store: BlobStore, service: BlobService) -> None:
        self.network, self.store, self.service = network, store, service

    @property
    def key(self) -> bytes:
        return self.network.local_key

    def points_of(self, other: bytes) -> int:
        """What another peer's faults amount to here."""
        return {status.key: status.points for status in self.network.peers()}.get(other, 0)


class World:
    """A simulated internet; every peer is connected to those before it."""

    def __init__(
        self, internet: SimulatedInternet, stack: AsyncExitStack, nursery: trio.Nursery, folder: Path
    ) -> None:
        self.internet, self.nursery = internet, nursery
        self._stack, self._folder = stack, folder
        self._networks: list[SimulatedNetwork] = []

    async def network(self) -> SimulatedNetwork:
        """Another node, without a service."""
        number = len(self._networks) + 1
        network = await self._stack.enter_async_context(node(self.internet, number))
        for other in self._networks:
            await network.dial(other.addresses[0])
        self._networks.append(network)
        self.nursery.start_soon(_drain, network)
        return network

    async def peer(self, *, bytes_max: int = 256 * MIB, serve: int = FAST, **changes: Any) -> Peer:
        """Another peer."""
        network = await self.network()
        folder = self._folder / f"peer-{len(self._networks)}"
        store = BlobStore.open(folder, bytes_max=bytes_max, clock=clock)
        service = BlobService(
            store,
            **{"serve_bytes_per_s": serve, "serve_peer_bytes_per_s": serve, "offload": at_once} | changes,
        )
        await self.nursery.start(service.run, network)
        return Peer(network, store, service)

    async def source(self, handler: Callable[[BulkStream], Awaitable[None]]) -> SimulatedNetwork:
        """A peer that serves blobs in its own way."""
        network = await self.network()
        network.serve_bulk(PROTOCOL, handler)
        return network


async def _drain(network: SimulatedNetwork) -> None:
    async for _ in network.events:
        pass


def play(folder: Path, scenario: Callable[[World], Awaitable[None]], *, seed: int = 1) -> None:
    """Run a scenario under a mock clock."""

    async def main() -> None:
        async with opened(folder, seed) as world:
            await scenario(world)

    run_deterministically(main)


@asynccontextmanager
async def opened(folder: Path, seed: int) -> AsyncIterator[World]:
    conditions = Conditions(delay_ms_min=1, delay_ms_max=5)
    async with (
        open_internet(seed=seed, conditions=conditions) as internet,
        AsyncExitStack() as stack,
        trio.open_nursery() as nursery,
    ):
        yield World(internet, stack, nursery, folder)
        nursery.cancel_scope.cancel()


class Scripted:
    """A source that has a blob, and may be told to misbehave from some answer on.

    Args:
        data: the blob's content.
        held: which pieces it says it has; empty for all.
        instead: what it does in place of giving a piece; returns False to give it after all.
    """

    def __init__(
        self,
        data: bytes,
        *,
        held: bytes = b"",
        index: bytes | None = None,
        instead: Callable[[BulkStream, int], Awaitable[bool]] | None = None,
    ) -> None:
        self.pieces = pieces_of(data)
        self.index = index_of(data) if index is None else index
        self.held, self.instead = held, instead
        self.streams = 0
        self.asked: list[int] = []

    async def __call__(self, stream: BulkStream) -> None:
        self.streams += 1
        talk = BlobTalk(stream, silence_s=1_000)
        want = await talk.message()
        assert isinstance(want, Want) and piece_count(want.blob.size_bytes) == len(self.pieces)
        await talk.send(Holding(self.held))
        if want.with_index:
            await talk.send_bytes(self.index)
        while True:
            ask = await talk.message()
            assert isinstance(ask, Ask)
            self.asked.append(ask.piece)
            if self.instead is not None and await self.instead(stream, ask.piece):
                continue
            await talk.send(Piece(ask.piece), self.pieces[ask.piece])
