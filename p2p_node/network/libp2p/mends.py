"""Mends of libp2p 0.8.1: each names the upstream fault it covers, and goes when upstream mends it.

Subclasses where upstream lets us pass our own; a patched module name only where it doesn't.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import libp2p.network.connection.swarm_connection as swarm_connection_module
import libp2p.network.swarm as swarm_module
import libp2p.protocol_muxer.multiselect_communicator as multiselect_module
import libp2p.pubsub.pubsub as pubsub_module
import structlog
import trio
from libp2p.abc import IMuxedConn, INetStream, IRawConnection
from libp2p.exceptions import ParseError
from libp2p.host.basic_host import BasicHost
from libp2p.io.abc import Reader, ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream
from libp2p.utils.varint import read_varint_prefixed_bytes_limited
from multiaddr.multiaddr import Multiaddr

from p2p_node.network.access import EVERYBODY
from p2p_node.network.libp2p.admission import Admission
from p2p_node.network.shielding import last_words
from p2p_node.network.turns import HANDSHAKES_PER_SECOND_MIN, Turns
from protocols.limits import SEEN_MESSAGES_MAX, STREAMS_PER_CONNECTION_MAX

__all__ = [
    "MendedGossipSub",
    "MendedHost",
    "MendedSwarm",
    "NeverAutoConnect",
    "RecentlySeen",
    "RoomyRpcQueue",
    "WindowOverrun",
    "close_connection",
    "install",
]

log = structlog.get_logger(__name__)

_OUTBOUND_RPCS_MAX = 1_024
_SEEN_S = 120.0
_FAILED_PEER_TTL_S = 2.0
_HAPPY_EYEBALLS_DELAY_S = 0.01
_FRAME_S = 20.0
_NAME_BYTES_MAX = 1_024
_GOODBYE_S = 1.0


class RoomyRpcQueue(RpcQueue):
    """Outbound gossip of one peer.

    Fault: upstream holds 32 RPCs and drops the rest silently, a burst of a single publisher.
    """

    def __init__(self) -> None:
        super().__init__(_OUTBOUND_RPCS_MAX)
        self._urgent = trio.Event()

    def push(self, rpc: rpc_pb2.RPC, priority: bool = False) -> bool:
        """Queue an RPC; False if there is no room. What has priority takes the room of the rest.

        What we say ourselves passes what we only pass on: of that a stranger may give us any amount.
        """
        if priority and len(self) >= _OUTBOUND_RPCS_MAX and self._queue._non_priority:
            self._queue._non_priority.popleft()
        if priority:
            self._urgent.set()
        return super().push(rpc, priority)

    async def gather(self, until: float) -> None:
        """Let more come until then, or until something with priority does."""
        with trio.move_on_at(until):
            await self._urgent.wait()
        self._urgent = trio.Event()


def install() -> None:
    """Patch what can't be passed in. Idempotent, and harmless to other users of libp2p in the process."""
    pubsub_module.RpcQueue = RoomyRpcQueue  # type: ignore[attr-defined, assignment]
    # Fault: every dial waits 250 ms for a rival transport that we don't have.
    swarm_module._HAPPY_EYEBALLS_DELAY = _HAPPY_EYEBALLS_DELAY_S
    # Fault: it logs to the root logger, which thereby gets a handler that nobody asked for.
    swarm_connection_module.logging = logging.getLogger(  # type: ignore[attr-defined, assignment]
        "libp2p.network"
    )
    # Fault: a peer that ignores its window fills our memory; upstream logs it and keeps the bytes.
    YamuxStream.recv_window = property(_remaining_window, _set_remaining_window)  # type: ignore[assignment]
    Yamux._write_frame = _write_whole_frame  # type: ignore[method-assign]
    multiselect_module.read_delim = _read_name  # type: ignore[attr-defined]


async def _read_name(reader: Reader) -> bytes:
    """A protocol's name, as negotiation sends it.

    Fault: upstream reads as many bytes as a stranger announces, up to 25 MB, before it is authenticated.
    """
    line = await read_varint_prefixed_bytes_limited(reader, _NAME_BYTES_MAX)
    if not line.endswith(b"\n"):
        raise ParseError(f"a protocol's name ends in a line feed, got {line[-1:]!r}")
    return line[:-1]


async def _write_whole_frame(self: Yamux, data: bytes) -> None:
    """Write one frame, whatever becomes of the task that wants it written.

    Fault: a write that is cancelled halfway, or after Noise has counted its message, leaves a connection of
    which the peer can't decipher another byte: one stream's deadline ends all streams. Cost: a header taken
    apart for a debug line, and two more turns of the scheduler.
    """
    async with self._write_lock:
        with last_words(_FRAME_S) as patience:
            await self.secured_conn.write(data)
        if patience.cancelled_caught:
            _cut(self)
            raise ConnectionClosedError(f"peer took no frame for {_FRAME_S:g} s", transport="tcp")


def _cut(muxed: Any) -> None:
    """Close the socket under a connection; who reads or writes it wakes up."""
    # Through the Noise session and upstream's two wrappers of the socket.
    layer = muxed.secured_conn.conn
    for name in ("conn", "stream", "stream", "socket"):
        layer = getattr(layer, name, None)
    if layer is not None:
        layer.close()


async def close_connection(connection: SwarmConn) -> None:
    """Close a connection, at once if a frame is stuck in it.

    Fault: upstream's close waits for the frame being written, and when that wait is cancelled the connection
    stays on the books for ever.
    """
    muxed: Any = connection.muxed_conn
    with last_words(_GOODBYE_S) as patience:
        async with muxed._write_lock:
            pass
    if patience.cancelled_caught:
        _cut(muxed)
    await connection.close()


class WindowOverrun(trio.TooSlowError):
    """A peer sent more than its window. Yamux ends a connection only for exceptions of this base."""


def _remaining_window(stream: YamuxStream) -> int:
    remaining: int = stream.__dict__["_remaining_window"]
    return remaining


def _set_remaining_window(stream: YamuxStream, remaining: int) -> None:
    if remaining < 0:
        raise WindowOverrun(f"peer overran its window on stream {stream.stream_id} by {-remaining} bytes")
    stream.__dict__["_remaining_window"] = remaining


class RecentlySeen:
    """Message ids of the last two minutes, bounded.

    Fault: upstream's cache starts a thread per Pubsub that outlives it, and grows without bound.
    """

    def __init__(self) -> None:
        self._expiry: OrderedDict[bytes, float] = OrderedDict()

    def add(self, key: bytes) -> bool:
        """Remember an id; True if it is new."""
        now = trio.current_time()
        new = key not in self._expiry
        self._expiry[key] = now + _SEEN_S
        self._expiry.move_to_end(key)
        while self._expiry:
            oldest = next(iter(self._expiry))
            if len(self._expiry) <= SEEN_MESSAGES_MAX and self._expiry[oldest] > now:
                break
            del self._expiry[oldest]
        return new

    def has(self, key: bytes) -> bool:
        """Whether the id was seen within two minutes."""
        expiry = self._expiry.get(key)
        return expiry is not None and expiry > trio.current_time()

    def length(self) -> int:
        """How many ids are held."""
        return len(self._expiry)

    def stop(self) -> None:
        """Nothing runs."""


class MendedGossipSub(GossipSub):
    """GossipSub whose heartbeat tells each peer only what concerns it, and whose tables end.

    Fault: upstream's scores are without effect (caps of zero, thresholds of minus infinity) and reset when a
    peer reconnects, but are computed for every message and peer. `Standings` takes their place.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.scorer = None
        self.own_hearers: Callable[[], Iterable[ID]] = list
        """Peers that are told what we say ourselves, in the mesh or not."""

    async def _emit_control_msgs(
        self,
        peers_to_graft: dict[ID, list[str]],
        peers_to_prune: dict[ID, list[str]],
        peers_to_gossip: dict[ID, dict[str, list[bytes]]],
    ) -> None:
        """One control message per peer.

        Fault: upstream builds its lists once, outside the loop over peers, so that with several topics a
        peer is sent the GRAFTs, PRUNEs and IHAVEs of those before it.
        """
        controls: dict[ID, rpc_pb2.ControlMessage] = defaultdict(rpc_pb2.ControlMessage)
        for peer, topics in peers_to_graft.items():
            for topic in topics:
                controls[peer].graft.add(topicID=topic)
        for peer, topics in peers_to_prune.items():
            for topic in topics:
                controls[peer].prune.add(topicID=topic, backoff=self.prune_back_off)
        for peer, ids_by_topic in peers_to_gossip.items():
            for topic, message_ids in ids_by_topic.items():
                controls[peer].ihave.add(topicID=topic, messageIDs=message_ids)
        for peer, control in controls.items():
            await self.emit_control_message(control, peer)

    async def leave(self, topic: str) -> None:
        """Prune our mesh of a topic.

        Fault: upstream goes through the mesh while it waits for each PRUNE to be queued, and fails when a
        peer comes or goes meanwhile.
        """
        for peer in self.mesh.pop(topic, set()):
            self._add_back_off(peer, topic, True)
            await self.emit_prune(topic, peer, False, True)

    async def publish(self, msg_forwarder: ID, pubsub_msg: rpc_pb2.Message) -> None:
        """Queue a message for every mesh peer but its forwarder and its author.

        What we say ourselves also goes to `own_hearers`: a crowd of strangers in our mesh can't hide it.

        Fault: a time of every delivery is kept per topic and only ever trimmed in adaptive mode, and copies
        are kept for every peer that isn't on the topic. Cost: a copy, a split, a score and a signed record
        of our addresses for each peer and message.
        """
        self.mcache.put(pubsub_msg)
        rpc = rpc_pb2.RPC(publish=[pubsub_msg])
        queues = self.pubsub.peer_queues if self.pubsub is not None else {}
        author = ID(pubsub_msg.from_id)
        peers = set(self._get_peers_to_send(pubsub_msg.topicIDs, msg_forwarder, author))
        if msg_forwarder == author and self.pubsub is not None:
            listening = set().union(
                *(self.pubsub.peer_topics.get(topic, ()) for topic in pubsub_msg.topicIDs)
            )
            peers |= listening.intersection(self.own_hearers())
        for peer in peers:
            queue = queues.get(peer)
            if queue is not None and not queue.push(rpc, priority=msg_forwarder == author):
                log.debug("gossip dropped: the peer's queue is full", peer=str(peer))
        await trio.lowlevel.checkpoint()


class MendedHost(BasicHost):
    """A host that a stream can't kill."""

    def _schedule_identify(self, peer_id: ID, *, reason: str) -> None:
        """Never ask who a peer is: Noise has proved it, and our hello says the rest.

        Fault: identify runs as a trio system task, where any exception is fatal to the whole process, and
        costs a stream of 3 ms per connection and direction.
        """

    async def _swarm_stream_handler(self, net_stream: INetStream) -> None:
        """Run a stream's handler; whatever it raises ends that stream only.

        Fault: any exception of a handler, and of protocol negotiation, ends `host.run`: a gossip frame of
        junk or a protocol name that isn't UTF-8 kills the peer from afar. Nor does upstream bound the
        streams that one connection holds open.
        """
        muxed = net_stream.muxed_conn
        open_streams = getattr(muxed, "_inbound_streams_open", 0)
        if open_streams >= STREAMS_PER_CONNECTION_MAX:
            await _reset(net_stream)
            return
        muxed._inbound_streams_open = open_streams + 1  # type: ignore[attr-defined]
        try:
            await super()._swarm_stream_handler(net_stream)
        except Exception as error:
            log.debug("stream ended badly", peer=str(muxed.peer_id), error=repr(error))
            await _reset(net_stream)
        finally:
            muxed._inbound_streams_open -= 1  # type: ignore[attr-defined]


async def _reset(stream: INetStream) -> None:
    with last_words(1):
        try:
            await stream.reset()
        except Exception as error:
            log.debug("reset failed", error=repr(error))


class NeverAutoConnect(AutoConnector):
    """Dials nobody.

    Fault: upstream dials every peer it has an address of until half of its limits are used, whatever its
    low watermark says; a fully connected swarm of strangers' choosing.
    """

    async def run_background_task(self, nursery: trio.Nursery) -> None:
        """No background."""

    async def maybe_connect(self) -> None:
        """Never."""


class MendedSwarm(Swarm):
    """A swarm whose doors open again after they close, and can't be held shut by half-open connections."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.admission = Admission()
        self._turns = Turns(HANDSHAKES_PER_SECOND_MIN)
        self.access = EVERYBODY
        self.auto_connector = NeverAutoConnect(self)
        # Fault: a peer whose dial failed once can't be dialled for 60 s.
        self._negative_peer_cache = swarm_module._NegativePeerCache(ttl=_FAILED_PEER_TTL_S)

    async def _handle_inbound_connection(self, read_write_closer: ReadWriteCloser, maddr: Multiaddr) -> None:
        """Serve one accepted socket, if its address may connect and hasn't too many handshakes open.

        Fault: 500 half-open connections of one host shut every new peer out while they last.
        """
        remote = read_write_closer.get_remote_address()
        host = remote[0] if remote is not None else ""
        if self.access.refuses_host(host) or not self.admission.enter(read_write_closer, host):
            await read_write_closer.close()
            return
        try:
            await self._turns.next()
            await super()._handle_inbound_connection(read_write_closer, maddr)
        finally:
            self.admission.end(read_write_closer)

    async def upgrade_inbound_raw_conn(self, raw_conn: IRawConnection, maddr: Multiaddr) -> IMuxedConn:
        """Upgrade an inbound connection and stay until it closes.

        Fault: upstream waits for the end of the swarm instead, so the connection's slot is never given
        back, and after 250 inbound connections in a lifetime a peer accepts no more.
        """
        try:
            muxed = await super().upgrade_inbound_raw_conn(raw_conn, maddr)
        finally:
            self.admission.leave(getattr(raw_conn, "stream", None))
        for connection in list(self.connections.get(muxed.peer_id, [])):
            if isinstance(connection, SwarmConn) and connection.muxed_conn is muxed:
                await connection.event_closed.wait()
        raise SwarmException("inbound connection closed")
