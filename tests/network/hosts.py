"""Real libp2p networks on loopback, and the raw hosts that attack them."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from multiaddr.multiaddr import Multiaddr

from p2p_node.network.frames import Hello, control_frame
from p2p_node.network.libp2p import open_network
from p2p_node.network.libp2p.host import build_host
from p2p_node.network.libp2p.keys import key_of, peer_id_of
from p2p_node.network.libp2p.mends import MendedHost, MendedSwarm
from p2p_node.network.libp2p.network import Libp2pNetwork
from p2p_node.network.port import NetworkEvent, PeerConnected, PeerKey
from protocols.rulings import Ruling
from tests.network.books import MemoryBook

TOPIC = "/p2p-node/test/jobs/1"
LINK = TProtocol("/p2p-node/test/link/1")
LOOPBACK = "/ip4/127.0.0.1/tcp/0"
E = TypeVar("E", bound=NetworkEvent)


def free_port() -> int:
    """A TCP port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def milliseconds() -> int:
    return time.monotonic_ns() // 1_000_000


def accept(topic: str, data: bytes, forwarder: PeerKey) -> Ruling:
    return Ruling.ACCEPT


def network(number: int, **changes: Any) -> AbstractAsyncContextManager[Libp2pNetwork]:
    """A network with the identity of this number; keyword arguments replace the defaults."""
    arguments: dict[str, Any] = {
        "seed": number.to_bytes(4, "big") * 8,
        "listen": [LOOPBACK],
        "topics": [TOPIC],
        "rule": accept,
        "network_name": "test",
        "bootstrap": [],
        "address_book": MemoryBook(),
        "mdns": False,
        "jitter": random.Random(number),
        "clock": milliseconds,
    }
    return open_network(**(arguments | changes))


async def next_event(of: Libp2pNetwork, kind: type[E], within_s: float = 15) -> E:
    """The next event of this kind; others before it are dropped."""
    with trio.fail_after(within_s):
        while True:
            event = await of.events.receive()
            if isinstance(event, kind):
                return event


async def join(one: Libp2pNetwork, other: Libp2pNetwork) -> None:
    """Connect two networks, until both say so and gossip flows between them."""
    await one.dial(other.addresses[0])
    assert (await next_event(one, PeerConnected)).peer == other.local_key
    assert (await next_event(other, PeerConnected)).peer == one.local_key
    await meshed(one, other)


async def meshed(one: Libp2pNetwork, other: Libp2pNetwork) -> None:
    """Wait until each forwards the other's gossip."""
    for here, there in ((one, other), (other, one)):
        await eventually(
            lambda here=here, there=there: peer_id_of(there.local_key) in here.router.mesh[TOPIC]
        )


async def eventually(holds: Callable[[], bool], within_s: float = 15) -> None:
    """Wait until something holds."""
    with trio.fail_after(within_s):
        while not holds():
            await trio.sleep(0.01)


@asynccontextmanager
async def raw_host(number: int) -> AsyncIterator[tuple[MendedHost, MendedSwarm]]:
    """A host without any protocol of ours, for attacks and for upstream's own faults."""
    host, swarm = build_host(number.to_bytes(4, "big") * 8)
    async with host.run([Multiaddr(LOOPBACK)]):
        try:
            yield host, swarm
        finally:
            with trio.CancelScope() as scope:
                scope.shield = True
                await host.close()


class Attacker:
    """A peer that says its hello like anybody, then whatever it likes."""

    def __init__(self, host: MendedHost, swarm: MendedSwarm, victim: Libp2pNetwork) -> None:
        self.host, self.swarm = host, swarm
        self.target = victim.addresses[0]
        self.target_id = peer_id_of(victim.local_key)
        key = key_of(host.get_id())
        assert key is not None
        self.key = key
        host.set_stream_handler(LINK, self._drain)

    async def _drain(self, stream: INetStream) -> None:
        while await stream.read(65_536):
            pass

    async def connect(self) -> None:
        """Connect if we aren't."""
        if not self.swarm.get_connections(self.target_id):
            await self.swarm.dial_addr(Multiaddr(self.target.rsplit("/p2p/", 1)[0]), self.target_id)

    async def stream(self, protocol: TProtocol) -> INetStream:
        """A new stream of this protocol."""
        return await self.host.new_stream(self.target_id, [protocol])

    async def link(self, network_name: str = "test") -> INetStream:
        """Connect and say hello; our half of a link."""
        await self.connect()
        stream = await self.stream(LINK)
        await stream.write(control_frame(Hello(network_name, [])))
        return stream
