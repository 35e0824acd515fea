"""What the peer's runtime may ask of a network, and what a network tells it.

Two things implement this port: real libp2p (`p2p_node.network.libp2p`) and a network in memory for tests
(`p2p_node.network.simulated`). A peer is named by its 32-byte Ed25519 public key, and every frame and
gossip message comes with the key of the peer who handed it to us, proved by the transport.

Delivery is best effort: frames of one connected peer arrive in order and at most once; those in flight when
a connection breaks are lost, and `PeerDisconnected` says so. Whoever needs more keeps its own timers.

What is too large for frames goes over bulk streams: one for each transfer, beside the frames, which it
doesn't hold up.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import trio

from protocols.rulings import Ruling

__all__ = [
    "AddressBook",
    "BulkHandler",
    "BulkStream",
    "DialFailed",
    "FrameReceived",
    "GossipReceived",
    "GossipRule",
    "ListenFailed",
    "Network",
    "NetworkError",
    "NetworkEvent",
    "NetworkMismatch",
    "NetworkOpener",
    "PeerConnected",
    "PeerDisconnected",
    "PeerKey",
    "PeerRefused",
    "PeerStatus",
    "StreamBroken",
]

PeerKey: TypeAlias = bytes
"""A peer's Ed25519 public key, 32 bytes."""


@dataclass(frozen=True, slots=True)
class PeerConnected:
    """Frames can now be exchanged with ``peer``; ``address`` is where the connection leads."""

    peer: PeerKey
    address: str


@dataclass(frozen=True, slots=True)
class PeerDisconnected:
    """The connection ended; frames that were on their way are lost."""

    peer: PeerKey


@dataclass(frozen=True, slots=True)
class FrameReceived:
    """``peer`` sent us ``data`` on its direct stream."""

    peer: PeerKey
    data: bytes


@dataclass(frozen=True, slots=True)
class GossipReceived:
    """Gossip that our rule accepted, once. ``forwarder`` handed it to us, and need not be its author."""

    topic: str
    data: bytes
    forwarder: PeerKey


NetworkEvent: TypeAlias = PeerConnected | PeerDisconnected | FrameReceived | GossipReceived

GossipRule: TypeAlias = Callable[[str, bytes, PeerKey], Ruling]
"""Judges (topic, data, forwarder). Pure, synchronous, and done within a millisecond: the network waits.

ACCEPT delivers and forwards the message. IGNORE does neither. REJECT also costs the forwarder its standing.
"""


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """A connected peer as an operator sees it. ``points`` grow with faults and decay with time."""

    key: PeerKey
    address: str
    direction: Literal["inbound", "outbound"]
    rtt_ms: float | None
    points: int
    connected_since_ms: int


class NetworkError(Exception):
    """The network couldn't do what it was asked, for a reason outside our code."""


class ListenFailed(NetworkError):
    """An address to listen on is taken, malformed, or not ours."""


class DialFailed(NetworkError):
    """Nobody answered at that address, or somebody else did."""


class NetworkMismatch(DialFailed):
    """The peer answered but belongs to another network, or speaks no link protocol of ours."""


class PeerRefused(DialFailed):
    """We don't talk to this peer for now: its faults have used up its standing."""


class StreamBroken(NetworkError):
    """A bulk stream couldn't be opened, or is over: closed by the peer, cut, or not read for too long."""


class BulkStream(Protocol):
    """Bytes between us and one peer, in order. One task sends and one receives at a time.

    Nothing here has a deadline of its own but for the credit of a peer that doesn't read: whoever waits
    brings a cancel scope. A stream on which a send was cancelled is good for nothing but closing.
    """

    peer: PeerKey
    range: bytes | None
    """The address range that the peer comes from; None for this machine, and where it isn't known."""

    async def send(self, data: bytes) -> None:
        """Send all of ``data``; it may still be on its way when this returns.

        Raises:
            StreamBroken: the stream is over, or the peer read nothing for five seconds.
        """
        ...

    async def receive(self) -> bytes:
        """What has arrived, at least a byte. Whoever sends waits while too much of it isn't received.

        Raises:
            StreamBroken: the stream is over, and all that the peer sent before it closed was received.
        """
        ...

    async def close(self) -> None:
        """End the stream, both ways. What was sent still arrives unless the connection breaks. Idempotent."""
        ...


BulkHandler: TypeAlias = Callable[[BulkStream], Awaitable[None]]
"""Serves one stream that a peer opened; the stream is closed when it returns. A `PeerFault` that it raises is
charged to the peer, `StreamBroken` is the end, and anything else is logged."""


class AddressBook(Protocol):
    """Addresses that outlive the process. Calls are short and synchronous."""

    def load(self) -> list[str]:
        """Every remembered address, best first, each ending in ``/p2p/<peer id>``."""
        ...

    def remember(self, address: str) -> None:
        """A connection to this address worked."""
        ...

    def forget(self, address: str) -> None:
        """This address failed for so long that it isn't worth keeping."""
        ...


class Network(Protocol):
    """A running network. Its opener closes it; using it afterwards raises `NetworkError` or returns False."""

    local_key: PeerKey
    events: trio.MemoryReceiveChannel[NetworkEvent]
    """Bounded. Its reader must always drain it: what arrives while it is full is dropped and logged."""

    @property
    def addresses(self) -> list[str]:
        """Where others reach us: multiaddrs that end in ``/p2p/<our peer id>``."""
        ...

    async def publish(self, topic: str, data: bytes) -> None:
        """Gossip ``data`` to everyone else on ``topic``, which we have joined.

        Raises:
            ValueError: a topic that we aren't on, or more than GOSSIP_BYTES_MAX bytes.
        """
        ...

    async def join(self, topic: str) -> None:
        """Hear gossip on ``topic`` too, from now on. Idempotent."""
        ...

    async def leave(self, topic: str) -> None:
        """Don't hear gossip on ``topic`` any more. Idempotent."""
        ...

    async def send(self, peer: PeerKey, frame: bytes) -> bool:
        """Queue one frame for ``peer``. False: not connected, or its queue is full; nothing was sent.

        Raises:
            ValueError: the frame exceeds FRAME_BYTES_MAX less one byte.
        """
        ...

    async def open_bulk(self, peer: PeerKey, protocol: str) -> BulkStream:
        """Open a stream to a connected peer; the caller closes it.

        Args:
            peer: who serves it.
            protocol: name and version, e.g. ``blobs/1``; the network's name is added.

        Raises:
            StreamBroken: not connected, or it serves no such protocol.
        """
        ...

    def serve_bulk(self, protocol: str, handler: BulkHandler) -> None:
        """Serve the streams that connected peers open for ``protocol``, each in a task of its own."""
        ...

    async def dial(self, address: str) -> PeerKey:
        """Connect, or find the connection that is already there.

        Raises:
            DialFailed: nobody there, not who the address says, another network, or refused by us.
        """
        ...

    def penalise(self, peer: PeerKey, points: int, reason: str) -> None:
        """Count a fault. Enough of them end the connection, and the peer is refused for a while."""
        ...

    def hang_up(self, peer: PeerKey) -> None:
        """End the connection with a peer, if there is one. Nobody is blamed, and it may come back."""
        ...

    def peers(self) -> list[PeerStatus]:
        """Who is connected."""
        ...

    async def close(self) -> None:
        """End every connection and stop listening. Idempotent."""
        ...


class NetworkOpener(Protocol):
    """Opens a network for the length of an ``async with``; both implementations have one."""

    def __call__(
        self,
        *,
        seed: bytes,
        listen: list[str],
        topics: list[str],
        rule: GossipRule,
        network_name: str,
        bootstrap: list[str],
        address_book: AddressBook,
        mdns: bool,
        jitter: random.Random,
        clock: Callable[[], int],
    ) -> AbstractAsyncContextManager[Network]:
        """See `p2p_node.network.libp2p.open_network` for the arguments."""
        ...
