"""A network in memory, for tests of the runtime under trio's MockClock.

One task moves everything: a heap of deliveries ordered by due time and then by the order in which they were
scheduled, with delays, losses and duplicates drawn from one seeded generator. The same seed and the same
calls give the same events (with `tests.support.deterministic_trio`, which fixes trio's own order).

It is harsher than the port promises: frames and gossip can also be lost or come twice without a disconnect.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import structlog
import trio
from nacl.signing import SigningKey

from p2p_node.network.dialplan import DialPlan, peer_of
from p2p_node.network.port import (
    AddressBook,
    BulkHandler,
    BulkStream,
    DialFailed,
    FrameReceived,
    GossipReceived,
    GossipRule,
    NetworkEvent,
    NetworkMismatch,
    PeerConnected,
    PeerDisconnected,
    PeerKey,
    PeerRefused,
    PeerStatus,
    StreamBroken,
)
from p2p_node.network.simulated_bulk import SimulatedBulk
from p2p_node.network.standing import Standings
from protocols.digest import tagged
from protocols.errors import PeerFault
from protocols.identity import peer_id
from protocols.limits import EVENTS_MAX, FRAME_BYTES_MAX, GOSSIP_BYTES_MAX
from protocols.rulings import Ruling

__all__ = ["Conditions", "SimulatedInternet", "SimulatedNetwork", "open_internet"]

log = structlog.get_logger(__name__)

SILENCE_MS = 8_000
"""How long a broken path goes unnoticed."""

REDIAL_MS = 500
DIALLED_PEERS_MIN = 4
REJECTED_POINTS = 10


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the network does to each delivery: uniform delay in milliseconds, and chances in [0, 1]."""

    delay_ms_min: int = 1
    delay_ms_max: int = 20
    loss: float = 0.0
    duplication: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.delay_ms_min <= self.delay_ms_max:
            raise ValueError(f"delays must satisfy 0 <= {self.delay_ms_min} <= {self.delay_ms_max}")
        for name, chance in (("loss", self.loss), ("duplication", self.duplication)):
            if not 0 <= chance <= 1:
                raise ValueError(f"{name}={chance} must be in [0, 1]")


@dataclass(slots=True)
class _Link:
    direction: Literal["inbound", "outbound"]
    address: str
    since_ms: int
    # Frames of one link stay in order, however their delays fall.
    last_due: float = 0.0


class SimulatedInternet:
    """Every node of one simulation, and the weather between them. Opened by `open_internet`."""

    def __init__(self, rng: random.Random, conditions: Conditions, nursery: trio.Nursery) -> None:
        self.conditions = conditions
        self._nursery = nursery
        self._rng = rng
        self._nodes: dict[PeerKey, SimulatedNetwork] = {}
        self._group_of: dict[PeerKey, int] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._wake = trio.Event()

    def partition(self, *groups: Collection[PeerKey]) -> None:
        """Cut the network: only nodes of one group reach each other. Nodes not named form another group.

        Links across the cut end after the silence that a real network needs to notice.
        """
        self._group_of = {key: number for number, group in enumerate(groups, 1) for key in group}
        for node in list(self._nodes.values()):
            for key in list(node.links):
                if not self.reaches(node.local_key, key):
                    self._after(SILENCE_MS, partial(self._notice_cut, node, key))

    def heal(self) -> None:
        """End the partition. Nodes find each other again by their own redialling."""
        self._group_of = {}

    @asynccontextmanager
    async def open_network(
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
    ) -> AsyncIterator[SimulatedNetwork]:
        """Join a node, with the arguments of the real opener. ``listen`` and ``mdns`` have no meaning here.

        Raises:
            ValueError: a node of this identity is already there, or a bad bootstrap address.
        """
        key = bytes(SigningKey(seed).verify_key)
        if key in self._nodes:
            raise ValueError(f"{peer_id(key)} is already part of this simulation")
        plan = DialPlan(key, jitter)
        for address in bootstrap:
            plan.add(address, lasting=True)
        for address in address_book.load():
            plan.add(address)
        node = SimulatedNetwork(
            self,
            key,
            topics=frozenset(topics),
            rule=rule,
            network_name=network_name,
            plan=plan,
            address_book=address_book,
            clock=clock,
        )
        self._nodes[key] = node
        self._keep_connected(node)
        try:
            yield node
        finally:
            await node.close()

    async def run(self) -> None:
        """Deliver for ever, each thing when it is due."""
        while True:
            now = trio.current_time()
            while self._heap and self._heap[0][0] <= now:
                heapq.heappop(self._heap)[2]()
            self._wake = trio.Event()
            until = self._heap[0][0] if self._heap else float("inf")
            with trio.move_on_at(until):
                await self._wake.wait()

    # --- Scheduling ----------------------------------------------------------------------------

    def _at(self, due: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (due, next(self._order), action))
        self._wake.set()

    def _after(self, delay_ms: float, action: Callable[[], None]) -> None:
        self._at(trio.current_time() + delay_ms / 1_000, action)

    def _delay_ms(self) -> float:
        return self._rng.uniform(self.conditions.delay_ms_min, self.conditions.delay_ms_max)

    def _copies(self) -> int:
        if self._rng.random() < self.conditions.loss:
            return 0
        return 2 if self._rng.random() < self.conditions.duplication else 1

    def reaches(self, one: PeerKey, other: PeerKey) -> bool:
        """Whether what one node sends gets through to the other now."""
        return self._group_of.get(one, 0) == self._group_of.get(other, 0)

    # --- Connections ---------------------------------------------------------------------------

    def connect(self, dialler: SimulatedNetwork, address: str) -> PeerKey:
        """Make a link, or raise what a real dial would raise."""
        key = peer_of(address)
        if key == dialler.local_key:
            raise DialFailed(f"{address} is ourselves")
        if dialler.standings.refused(key):
            raise PeerRefused(f"{peer_id(key)} is refused for its faults")
        target = self._nodes.get(key)
        if target is None or not self.reaches(dialler.local_key, key):
            raise DialFailed(f"{address}: nobody answers")
        if target.network_name != dialler.network_name:
            raise NetworkMismatch(f"{address} is on network {target.network_name!r}")
        if target.standings.refused(dialler.local_key):
            raise DialFailed(f"{address}: the connection closed at once")
        if key not in dialler.links:
            now_ms = int(trio.current_time() * 1_000)
            dialler.links[key] = _Link("outbound", address, now_ms)
            target.links[dialler.local_key] = _Link("inbound", dialler.addresses[0], now_ms)
            dialler.address_book.remember(address)
            dialler.plan.succeeded(address)
            target.plan.add(dialler.addresses[0])
            for known in list(target.links.values()):
                dialler.plan.add(known.address)
            dialler.emit(PeerConnected(key, address))
            target.emit(PeerConnected(dialler.local_key, dialler.addresses[0]))
        return key

    def disconnect(self, one: PeerKey, other: PeerKey) -> None:
        """End the link between two nodes: the first hears of it now, the other a little later."""
        node = self._nodes.get(one)
        if node is not None:
            node.lose(other)
        self._after(self._delay_ms(), partial(self._end_link, other, one))

    def _end_link(self, key: PeerKey, other: PeerKey) -> None:
        node = self._nodes.get(key)
        peer = self._nodes.get(other)
        if node is None or (peer is not None and key in peer.links):
            return
        node.lose(other)

    def _notice_cut(self, node: SimulatedNetwork, key: PeerKey) -> None:
        if not self.reaches(node.local_key, key):
            node.lose(key)

    def leave(self, node: SimulatedNetwork) -> None:
        """Take a node away; its peers notice."""
        self._nodes.pop(node.local_key, None)
        for key in node.links:
            self._after(self._delay_ms(), partial(self._end_link, key, node.local_key))
        node.links.clear()
        for bulk in node.bulks:
            bulk.cut()

    def _keep_connected(self, node: SimulatedNetwork) -> None:
        if self._nodes.get(node.local_key) is not node:
            return
        missing = DIALLED_PEERS_MIN - sum(link.direction == "outbound" for link in node.links.values())
        now_ms = int(trio.current_time() * 1_000)
        for address in node.plan.next(max(0, missing), node.links, now_ms):
            try:
                self.connect(node, address)
            except DialFailed as error:
                log.debug("dial failed", reason=str(error))
                if node.plan.failed(address, now_ms):
                    node.address_book.forget(address)
        self._after(REDIAL_MS, partial(self._keep_connected, node))

    # --- Deliveries ----------------------------------------------------------------------------

    def carry(self, due: float, action: Callable[[], None]) -> float:
        """Do something after the network's delay, not before ``due``; when that will be."""
        due = max(due, trio.current_time() + self._delay_ms() / 1_000)
        self._at(due, action)
        return due

    def open_bulk(self, opener: SimulatedNetwork, peer: PeerKey, protocol: str) -> SimulatedBulk:
        """Connect a stream to whoever serves the protocol there, once the opening has arrived."""
        target = self._nodes.get(peer)
        if peer not in opener.links or target is None:
            raise StreamBroken(f"{peer_id(peer)} isn't connected")
        handler = target.bulk_handlers.get(protocol)
        if handler is None:
            raise StreamBroken(f"{peer_id(peer)} doesn't serve {protocol}")
        near, far = SimulatedBulk.pair(self, opener.local_key, peer)
        for node, bulk in ((opener, near), (target, far)):
            node.bulks = [other for other in node.bulks if not other.is_over] + [bulk]

        def arrive() -> None:
            if self.reaches(opener.local_key, peer):
                self._nursery.start_soon(target.serve, handler, far)

        self._after(self._delay_ms(), arrive)
        return near

    def carry_frame(self, sender: SimulatedNetwork, receiver: PeerKey, link: _Link, data: bytes) -> None:
        """Bring a frame to the other end of a link."""
        for _ in range(self._copies()):
            due = max(link.last_due, trio.current_time() + self._delay_ms() / 1_000)
            link.last_due = due
            self._at(due, partial(self._arrive_frame, sender.local_key, receiver, data))

    def _arrive_frame(self, sender: PeerKey, receiver: PeerKey, data: bytes) -> None:
        node = self._nodes.get(receiver)
        if node is not None and sender in node.links and self.reaches(sender, receiver):
            node.emit(FrameReceived(sender, data))

    def carry_gossip(self, forwarder: SimulatedNetwork, message: bytes, topic: str, data: bytes) -> None:
        """Bring a gossip message to every neighbour of a node that accepted or wrote it."""
        for key in list(forwarder.links):
            for _ in range(self._copies()):
                self._after(
                    self._delay_ms(),
                    partial(self._arrive_gossip, forwarder.local_key, key, message, topic, data),
                )

    def _arrive_gossip(
        self, forwarder: PeerKey, receiver: PeerKey, message: bytes, topic: str, data: bytes
    ) -> None:
        node = self._nodes.get(receiver)
        if node is not None and forwarder in node.links and self.reaches(forwarder, receiver):
            node.hear(message, topic, data, forwarder)


class SimulatedNetwork:
    """One node's end of the simulation: the `Network` port."""

    def __init__(
        self,
        internet: SimulatedInternet,
        key: PeerKey,
        *,
        topics: frozenset[str],
        rule: GossipRule,
        network_name: str,
        plan: DialPlan,
        address_book: AddressBook,
        clock: Callable[[], int],
    ) -> None:
        self.local_key = key
        self.network_name = network_name
        self.plan = plan
        self.address_book = address_book
        self.standings = Standings(clock)
        self.links: dict[PeerKey, _Link] = {}
        self.bulk_handlers: dict[str, BulkHandler] = {}
        self.bulks: list[SimulatedBulk] = []
        self._internet, self._topics, self._rule = internet, set(topics), rule
        self._events, self.events = trio.open_memory_channel[NetworkEvent](EVENTS_MAX)
        self._heard: set[bytes] = set()
        self._published = 0
        self._closed = False

    @property
    def addresses(self) -> list[str]:
        """One made-up address that no other node has."""
        host = ".".join(str(byte) for byte in tagged("simulated-host", self.local_key)[:3])
        return [f"/ip4/10.{host}/tcp/4001/p2p/{peer_id(self.local_key)}"]

    async def publish(self, topic: str, data: bytes) -> None:
        """See `Network.publish`."""
        if topic not in self._topics:
            raise ValueError(f"we aren't on topic {topic!r}")
        if len(data) > GOSSIP_BYTES_MAX:
            raise ValueError(f"message of {len(data)} bytes exceeds {GOSSIP_BYTES_MAX}")
        await trio.lowlevel.checkpoint()
        self._published += 1
        message = tagged("simulated-gossip", self.local_key, self._published.to_bytes(8, "big"))
        self._heard.add(message)
        self._internet.carry_gossip(self, message, topic, data)

    async def join(self, topic: str) -> None:
        """See `Network.join`."""
        self._topics.add(topic)
        await trio.lowlevel.checkpoint()

    async def leave(self, topic: str) -> None:
        """See `Network.leave`."""
        self._topics.discard(topic)
        await trio.lowlevel.checkpoint()

    async def send(self, peer: PeerKey, frame: bytes) -> bool:
        """See `Network.send`."""
        if 1 + len(frame) > FRAME_BYTES_MAX:
            raise ValueError(f"frame of {1 + len(frame)} bytes exceeds {FRAME_BYTES_MAX}")
        await trio.lowlevel.checkpoint()
        link = self.links.get(peer)
        if link is None:
            return False
        self._internet.carry_frame(self, peer, link, frame)
        return True

    async def dial(self, address: str) -> PeerKey:
        """See `Network.dial`."""
        await trio.lowlevel.checkpoint()
        try:
            return self._internet.connect(self, address)
        except ValueError as error:
            raise DialFailed(str(error)) from error

    async def open_bulk(self, peer: PeerKey, protocol: str) -> BulkStream:
        """See `Network.open_bulk`."""
        await trio.lowlevel.checkpoint()
        return self._internet.open_bulk(self, peer, protocol)

    def serve_bulk(self, protocol: str, handler: BulkHandler) -> None:
        """See `Network.serve_bulk`."""
        self.bulk_handlers[protocol] = handler

    def penalise(self, peer: PeerKey, points: int, reason: str) -> None:
        """See `Network.penalise`."""
        if self.standings.penalise(peer, points):
            log.warning("peer refused", peer=peer_id(peer), reason=reason)
            self._internet.disconnect(self.local_key, peer)

    def hang_up(self, peer: PeerKey) -> None:
        """See `Network.hang_up`."""
        self._internet.disconnect(self.local_key, peer)

    def peers(self) -> list[PeerStatus]:
        """See `Network.peers`."""
        return [
            PeerStatus(key, link.address, link.direction, 1.0, self.standings.points(key), link.since_ms)
            for key, link in self.links.items()
        ]

    async def close(self) -> None:
        """See `Network.close`."""
        if not self._closed:
            self._closed = True
            self._internet.leave(self)
            self._events.close()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def lose(self, peer: PeerKey) -> None:
        """The link to a peer is gone, and every stream over it."""
        if self.links.pop(peer, None) is not None:
            self.emit(PeerDisconnected(peer))
        for bulk in self.bulks:
            if bulk.peer == peer:
                bulk.cut()
        self.bulks = [bulk for bulk in self.bulks if not bulk.is_over]

    async def serve(self, handler: BulkHandler, bulk: SimulatedBulk) -> None:
        """Serve one stream that a peer opened."""
        try:
            if bulk.peer in self.links:
                await handler(bulk)
        except PeerFault as error:
            self.penalise(bulk.peer, max(error.points, 1), str(error))
        except StreamBroken as error:
            log.debug("bulk stream over", why=str(error))
        except Exception:
            log.exception("bulk stream met a bug")
        finally:
            await bulk.close()

    def emit(self, event: NetworkEvent) -> None:
        """Queue an event for the runtime, or drop it loudly if nobody drains them."""
        try:
            self._events.send_nowait(event)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            log.error("event dropped: events aren't drained", kind=type(event).__name__)

    def hear(self, message: bytes, topic: str, data: bytes, forwarder: PeerKey) -> None:
        """Judge a gossip message once; deliver and forward what is accepted."""
        if topic not in self._topics or message in self._heard or self.standings.refused(forwarder):
            return
        points, reason = REJECTED_POINTS, "rejected"
        try:
            ruling = self._rule(topic, data, forwarder)
        except PeerFault as error:
            ruling, points, reason = Ruling.REJECT, max(error.points, 1), str(error)
        if ruling is Ruling.REJECT:
            self.penalise(forwarder, points, reason)
            return
        self._heard.add(message)
        if ruling is Ruling.ACCEPT:
            self.emit(GossipReceived(topic, data, forwarder))
            self._internet.carry_gossip(self, message, topic, data)


@asynccontextmanager
async def open_internet(
    *, seed: int, conditions: Conditions | None = None
) -> AsyncIterator[SimulatedInternet]:
    """A simulated internet that lives as long as the body."""
    # Not a secret: the point is that it can be drawn again.
    rng = random.Random(seed)  # noqa: S311
    async with trio.open_nursery() as nursery:
        internet = SimulatedInternet(rng, conditions or Conditions(), nursery)
        nursery.start_soon(internet.run)
        try:
            yield internet
        finally:
            nursery.cancel_scope.cancel()
