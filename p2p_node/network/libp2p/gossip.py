"""Gossip: upstream's GossipSub with our own judgement of what it hears.

Upstream validators answer only yes or no, run after the cache of earlier answers, and its delivery passes
through 32-message buffers that drop in silence. `GuardedPubsub` replaces the path from a stream's bytes to
a delivered message: every RPC is bounded and cleaned, every message is judged once, by `Judge`, and what is
accepted is handed straight to the runtime. IGNORE therefore means what the gossipsub specification says:
not delivered, not forwarded, nobody punished.
"""

from __future__ import annotations

import time
from typing import Protocol

import structlog
import trio
from google.protobuf.message import DecodeError
from libp2p.abc import IHost, INetStream
from libp2p.custom_types import TProtocol
from libp2p.io.exceptions import IOException
from libp2p.network.connection.exceptions import RawConnError
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.pubsub.validators import signature_validator
from libp2p.utils.varint import encode_uvarint

from p2p_node.network.libp2p.mends import MendedGossipSub, RecentlySeen, RoomyRpcQueue
from p2p_node.network.libp2p.speed import keep_window
from p2p_node.network.libp2p.varint import VarintSplitter
from protocols.errors import Malformed, Oversized
from protocols.limits import GOSSIP_BYTES_MAX
from protocols.rulings import Ruling

__all__ = ["MESHSUB", "GuardedPubsub", "Judge", "new_gossipsub"]

log = structlog.get_logger(__name__)

MESHSUB = TProtocol("/meshsub/1.1.0")
RPC_BYTES_MAX = 16 * GOSSIP_BYTES_MAX
"""One gossip RPC: several messages, their signatures, and control."""

CONTROL_ENTRIES_MAX = 64
"""IHAVE, IWANT, GRAFT or PRUNE entries of one RPC."""

SUBSCRIPTIONS_MAX = 256
"""Topics of one neighbour: three rooms for each of 64 abilities, and those that everybody is on."""

TOPIC_BYTES_MAX = 160
MESSAGE_IDS_MAX = 512
"""Message ids in one IHAVE or IWANT."""

WRITE_S = 20.0
GATHER_S = 0.05
"""Between two writes to one peer, unless we say something ourselves."""

_BATCH_BYTES = 60_000
_READ_BYTES = 65_536
_FAULT_POINTS = 20


class Judge(Protocol):
    """Our side of gossip: who may speak, what is accepted, where it goes."""

    def admits(self, forwarder: ID, messages: int) -> bool:
        """Whether this peer may hand us ``messages`` more now."""
        ...

    async def turn(self, *, is_own_word: bool) -> bool:
        """Wait until the next message of a peer is due, so that none keeps others from being heard.

        What a neighbour only passes on doesn't wait long: what it says itself is behind it. False if the
        message is to be dropped, unread and not marked as seen; the comparison of gossip brings it later.
        """
        ...

    def rule(self, topic: str, data: bytes, forwarder: ID) -> Ruling:
        """What to do with a message whose signature holds. REJECT has already been charged."""
        ...

    def deliver(self, topic: str, data: bytes, forwarder: ID) -> None:
        """Hand an accepted message to the runtime. Must not block."""
        ...

    def fault(self, peer: ID, points: int, reason: str) -> None:
        """A peer broke a rule of gossip itself."""
        ...


def new_gossipsub() -> MendedGossipSub:
    """A router with our parameters: fixed degrees, a heartbeat a second, none of the adaptive modes.

    Upstream's defaults beat every 120 s, and its adaptive, spam and eclipse modes slide the heartbeat, drop
    our own messages above ten a second, and trust addresses that they never learn.
    """
    return MendedGossipSub(
        protocols=[MESHSUB],
        degree=6,
        degree_low=4,
        degree_high=8,
        heartbeat_interval=1,
        heartbeat_initial_delay=0.1,
        prune_back_off=10,
        adaptive_gossip_enabled=False,
        spam_protection_enabled=False,
        eclipse_protection_enabled=False,
    )


class GuardedPubsub(Pubsub):
    """Pubsub whose inbound path can neither crash, nor stall, nor drop without a word."""

    def __init__(self, host: IHost, router: GossipSub, *, topics: list[str], judge: Judge) -> None:
        super().__init__(host, router, strict_signing=True)
        # Upstream's cache runs a thread that nobody stops.
        self.seen_messages.stop()
        self.seen_messages = RecentlySeen()  # type: ignore[assignment]
        # Upstream counts from time.time(): after a burst and a restart, new messages reuse old numbers.
        self.counter = time.time_ns()
        self._topics = set(topics)
        self.allowed_topics = self._topics  # type: ignore[assignment]
        self._elsewhere: dict[ID, set[str]] = {}
        """Topics that neighbours are on and we aren't, in case we join one."""
        self._judge = judge
        self._router = router

    async def join(self) -> None:
        """Subscribe to every topic. The subscriptions are never read: `Judge.deliver` is our way out."""
        for topic in sorted(self._topics):
            await self.subscribe(topic)

    async def enter(self, topic: str) -> None:
        """Subscribe to one topic more. Who of the neighbours is on it has been remembered."""
        self._topics.add(topic)
        for peer, topics in self._elsewhere.items():
            if topic in topics:
                topics.discard(topic)
                self.handle_subscription(peer, rpc_pb2.RPC.SubOpts(subscribe=True, topicid=topic))
        await self.subscribe(topic)

    async def leave(self, topic: str) -> None:
        """Unsubscribe, and forget all that was kept for the topic."""
        await self.unsubscribe(topic)
        for peer in list(self.peer_topics.get(topic, ())):
            self.handle_subscription(peer, rpc_pb2.RPC.SubOpts(subscribe=False, topicid=topic))
            self._note_elsewhere(peer, topic, is_on=True)
        self._topics.discard(topic)
        self.peer_topics.pop(topic, None)
        self._router.back_off.pop(topic, None)

    def _note_elsewhere(self, peer: ID, topic: str, *, is_on: bool) -> None:
        topics = self._elsewhere.setdefault(peer, set())
        if not is_on:
            topics.discard(topic)
        elif len(topics) < SUBSCRIPTIONS_MAX and len(topic.encode()) <= TOPIC_BYTES_MAX:
            topics.add(topic)

    def _handle_dead_peer(self, peer_id: ID) -> None:
        """Forget a peer that is gone; of one that is here, and whose stream was lost, keep its topics.

        Fault: upstream opens our stream to it anew but forgets what it is subscribed to, which it tells us
        only once, on its own stream. It then hears no gossip of ours for as long as it stays: a peer that was
        too busy for five seconds to read was as good as gone.
        """
        is_here = self._peer_is_connected(peer_id)
        kept = [topic for topic, peers in self.peer_topics.items() if peer_id in peers] if is_here else []
        super()._handle_dead_peer(peer_id)
        for topic in kept:
            self.handle_subscription(peer_id, rpc_pb2.RPC.SubOpts(subscribe=True, topicid=topic))
        if not is_here:
            self._elsewhere.pop(peer_id, None)

    def notify_subscriptions(self, publish_message: rpc_pb2.Message) -> None:
        """Nobody reads upstream's subscription buffers; deliveries go through the judge."""

    async def stream_handler(self, stream: INetStream) -> None:
        """Read one peer's gossip until its stream ends. Bad bytes cost the peer and reset the stream."""
        peer = stream.muxed_conn.peer_id
        keep_window(stream)
        try:
            await self.continuously_read_stream(stream)
        except (Malformed, DecodeError, UnicodeError) as error:
            self._judge.fault(peer, _FAULT_POINTS, f"gossip stream: {error}")
            await stream.reset()
            self._handle_dead_peer(peer)
        except (StreamError, IOException, RawConnError):
            # The connection went; the swarm tells us so by itself.
            return

    async def handle_sending_messages(self, peer_id: ID, stream: INetStream, queue: RpcQueue) -> None:
        """Write what is queued for one peer, all that waits in one go. Each write has a deadline.

        A write costs more than what is in it, and each message is written to every neighbour: of what comes
        in quick succession more is gathered first.
        """
        assert isinstance(queue, RoomyRpcQueue)  # noqa: S101  mends.install() sees to it
        gather_until = float("-inf")
        try:
            while (rpc := await queue.pop()) is not None:
                await queue.gather(gather_until)
                batch = bytearray()
                while rpc is not None:
                    raw = rpc.SerializeToString()  # type: ignore[no-untyped-call]
                    batch += encode_uvarint(len(raw))
                    batch += raw
                    rpc = queue._queue.pop() if len(batch) < _BATCH_BYTES else None
                with trio.move_on_after(WRITE_S) as deadline:
                    await stream.write(bytes(batch))
                if deadline.cancelled_caught:
                    await stream.reset()
                    break
                gather_until = trio.current_time() + GATHER_S
        except (StreamError, IOException, RawConnError) as error:
            log.debug("gossip to a peer ended", peer=str(peer_id), error=repr(error))
        # If the queue was closed, somebody else has ended this stream, and may have opened the next.
        if self.peer_queues.get(peer_id) is queue:
            self._handle_dead_peer(peer_id)

    async def continuously_read_stream(self, stream: INetStream) -> None:
        """Split, bound, clean and perform each RPC, in order.

        Raises:
            Malformed: a length prefix or an RPC that can't be read.
        """
        peer = stream.muxed_conn.peer_id
        splitter = VarintSplitter(RPC_BYTES_MAX)
        while self.manager.is_running:
            data = await stream.read(_READ_BYTES)
            if not data:
                return
            for raw in splitter.feed(data):
                rpc = rpc_pb2.RPC()
                rpc.ParseFromString(raw)  # type: ignore[no-untyped-call]
                await self._perform(rpc, peer)

    async def _perform(self, rpc: rpc_pb2.RPC, peer: ID) -> None:
        # Above its allowance a peer's messages are dropped unread: signatures cost us more than it.
        if rpc.publish and self._judge.admits(peer, len(rpc.publish)):
            for message in rpc.publish:
                if await self._judge.turn(is_own_word=message.from_id == peer.to_bytes()):
                    await self.push_msg(peer, message)
        if len(rpc.subscriptions) > SUBSCRIPTIONS_MAX:
            raise Oversized(f"{len(rpc.subscriptions)} subscriptions in one RPC")
        for subscription in rpc.subscriptions:
            if subscription.topicid in self._topics:
                self.handle_subscription(peer, subscription)
            else:
                self._note_elsewhere(peer, subscription.topicid, is_on=subscription.subscribe)
        if rpc.HasField("control"):
            control = self._cleaned(rpc.control)
            # Publish and sender record have been dealt with or are of no use to us.
            await self._router.handle_rpc(rpc_pb2.RPC(control=control), peer)

    def _cleaned(self, control: rpc_pb2.ControlMessage) -> rpc_pb2.ControlMessage:
        """Control about our topics only, within bounds, and without peer exchange.

        Topic names and peers are otherwise kept in tables that nobody prunes, and exchanged peers are dialled
        wherever the sender says.
        """
        entries = (control.ihave, control.iwant, control.graft, control.prune)
        if any(len(field) > CONTROL_ENTRIES_MAX for field in entries):
            raise Oversized(f"more than {CONTROL_ENTRIES_MAX} control entries of one kind")
        cleaned = rpc_pb2.ControlMessage()
        for ihave in control.ihave:
            if ihave.topicID in self._topics:
                cleaned.ihave.add(topicID=ihave.topicID, messageIDs=ihave.messageIDs[:MESSAGE_IDS_MAX])
        for iwant in control.iwant:
            cleaned.iwant.add(messageIDs=iwant.messageIDs[:MESSAGE_IDS_MAX])
        for graft in control.graft:
            if graft.topicID in self._topics:
                cleaned.graft.add(topicID=graft.topicID)
        for prune in control.prune:
            if prune.topicID in self._topics:
                cleaned.prune.add(topicID=prune.topicID, backoff=prune.backoff)
        return cleaned

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        """Judge a message and, if it is accepted, deliver and forward it.

        Nothing between the look into the cache of seen messages and the mark in it awaits, so that a message
        that two peers hand us at once is delivered once.
        """
        own = msg_forwarder == self.my_id
        if not own:
            if self._is_msg_seen(msg):
                return
            if self._ruling(msg_forwarder, msg) is not Ruling.ACCEPT:
                return
        self._mark_msg_seen(msg)
        if not own:
            self._judge.deliver(msg.topicIDs[0], msg.data, msg_forwarder)
        await self._router.publish(msg_forwarder, msg)

    def _ruling(self, forwarder: ID, msg: rpc_pb2.Message) -> Ruling:
        if len(msg.topicIDs) != 1 or msg.topicIDs[0] not in self._topics:
            return Ruling.IGNORE
        if len(msg.data) > GOSSIP_BYTES_MAX:
            return self._rejected(forwarder, f"message of {len(msg.data)} bytes exceeds {GOSSIP_BYTES_MAX}")
        if msg.from_id == self.my_id.to_bytes():
            return Ruling.IGNORE
        if not _signature_holds(msg):
            return self._rejected(forwarder, "message isn't signed by its author")
        ruling = self._judge.rule(msg.topicIDs[0], msg.data, forwarder)
        if ruling is Ruling.IGNORE:
            # It has its author's signature, so only the author can make this id anew.
            self._mark_msg_seen(msg)
        return ruling

    def _rejected(self, forwarder: ID, reason: str) -> Ruling:
        self._judge.fault(forwarder, _FAULT_POINTS, f"gossip: {reason}")
        return Ruling.REJECT


def _signature_holds(msg: rpc_pb2.Message) -> bool:
    try:
        return bool(signature_validator(msg))
    except Exception:
        # Upstream raises whatever its parsers of foreign keys raise.
        return False
