"""The network port over libp2p.

`Libp2pNetwork` owns the links, judges gossip on behalf of `GuardedPubsub`, keeps the peers' standing and
turns all of it into events. It never reads a socket itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog
import trio
from libp2p.abc import INetConn, INetStream, INetwork, INotifee
from libp2p.custom_types import TProtocol
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.peer.id import ID
from libp2p.protocol_muxer.exceptions import MultiselectClientError
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from multiaddr.multiaddr import Multiaddr

from p2p_node.network.access import EVERYBODY, PeerAccess
from p2p_node.network.dialplan import CIRCUIT, BadAddress, DialPlan, peer_of
from p2p_node.network.frames import Hello, application_frame
from p2p_node.network.interfaces import reachable_addresses
from p2p_node.network.libp2p import dialback
from p2p_node.network.libp2p.bulk import Libp2pBulk
from p2p_node.network.libp2p.circuits import Circuits
from p2p_node.network.libp2p.circuitwire import HOP, STOP
from p2p_node.network.libp2p.dialback import DialBack
from p2p_node.network.libp2p.gossip import GuardedPubsub, new_gossipsub
from p2p_node.network.libp2p.host import STREAM_OPEN_S
from p2p_node.network.libp2p.keys import key_of, peer_id_of
from p2p_node.network.libp2p.links import Link
from p2p_node.network.libp2p.mends import MendedHost, MendedSwarm, close_connection
from p2p_node.network.libp2p.relaying import Relay, is_relayed
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
from p2p_node.network.reachability import DialledBack, Found, conclude
from p2p_node.network.relaypolicy import RelayPolicy
from p2p_node.network.shielding import last_words
from p2p_node.network.standing import Pace, RateLimits, Standings
from p2p_node.network.turns import GOSSIP_PER_SECOND_MIN, WAIT_S_MAX, Turns
from protocols.errors import PeerFault
from protocols.identity import peer_id, short_id
from protocols.limits import (
    ADDRESSES_PER_PEER_MAX,
    EVENTS_MAX,
    FRAMES_BURST_MAX,
    FRAMES_PER_SECOND_MAX,
    GOSSIP_BYTES_MAX,
    GOSSIP_MESSAGES_BURST_MAX,
    GOSSIP_MESSAGES_PER_SECOND_MAX,
    PEER_EXCHANGE_ADDRESSES_MAX,
    RANGE_FRAMES_BURST,
    RANGE_FRAMES_PER_SECOND,
    RANGE_GOSSIP_BURST,
    RANGE_GOSSIP_PER_SECOND,
)
from protocols.rulings import Ruling

__all__ = ["Libp2pNetwork"]

log = structlog.get_logger(__name__)

DIAL_S = 10.0
CLOSE_S = 3.0
EVENT_WAIT_S = 2.0
"""How long a frame waits for a runtime that doesn't drain its events."""

PACE_S_MAX = 1.0
"""Yamux gives up a stream that isn't read for 5 s."""

PASSED_ON_WAIT_S = 0.25
REJECTED_POINTS = 10
OWN_HEARERS_MAX = 16
"""Neighbours that are told of each message of our own."""

DIALLED_BACK_BY_MAX = 4
"""Peers asked to dial us back at once."""


class _Notifee(INotifee):
    """Tells the network of connections; upstream calls it while it registers them, so it must not wait."""

    def __init__(self, connected: Callable[[SwarmConn], None], closed: Callable[[SwarmConn], None]) -> None:
        self._connected, self._closed = connected, closed

    async def connected(self, network: INetwork, conn: INetConn) -> None:
        if isinstance(conn, SwarmConn):
            self._connected(conn)

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        if isinstance(conn, SwarmConn):
            self._closed(conn)

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None:
        pass

    async def closed_stream(self, network: INetwork, stream: INetStream) -> None:
        pass

    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None:
        pass

    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None:
        pass


class Libp2pNetwork:
    """A peer among peers. Made and closed by `open_network`."""

    def __init__(
        self,
        host: MendedHost,
        swarm: MendedSwarm,
        nursery: trio.Nursery,
        *,
        network_name: str,
        topics: list[str],
        rule: GossipRule,
        address_book: AddressBook,
        plan: DialPlan,
        clock: Callable[[], int],
        access: PeerAccess = EVERYBODY,
        relay: RelayPolicy | None = None,
        is_unreachable: Callable[[], bool] = lambda: False,
    ) -> None:
        key = key_of(host.get_id())
        if key is None:
            raise ValueError("our own identity must be an Ed25519 key")
        self.local_key: PeerKey = key
        self.network_name = network_name
        self._host, self._swarm, self._nursery = host, swarm, nursery
        self._topics = set(topics)
        self._access = access
        self._rule, self._address_book, self._plan, self._clock = rule, address_book, plan, clock
        self._protocol = TProtocol(f"/p2p-node/{network_name}/link/1")
        self._events, self.events = trio.open_memory_channel[NetworkEvent](EVENTS_MAX)
        self._standings = Standings(clock)
        self._rates = RateLimits(clock, GOSSIP_MESSAGES_PER_SECOND_MAX, GOSSIP_MESSAGES_BURST_MAX)
        self._range_rates = RateLimits(clock, RANGE_GOSSIP_PER_SECOND, RANGE_GOSSIP_BURST)
        self._turns = Turns(GOSSIP_PER_SECOND_MIN)
        self._pace = Pace(trio.current_time, FRAMES_PER_SECOND_MAX, FRAMES_BURST_MAX)
        self._range_pace = Pace(trio.current_time, RANGE_FRAMES_PER_SECOND, RANGE_FRAMES_BURST)
        self._links: dict[PeerKey, Link] = {}
        self._dialling: dict[PeerKey, trio.Event] = {}
        self._dialled: dict[PeerKey, str] = {}
        self._failures: dict[PeerKey, DialFailed] = {}
        self._closing = False
        self.router = new_gossipsub()
        self.router.own_hearers = self._own_hearers
        self.pubsub = GuardedPubsub(host, self.router, topics=topics, judge=self)
        self.circuits = Circuits(self, swarm, is_wanted=is_unreachable)
        self.relay = Relay(self, relay) if relay is not None and relay.volunteer else None
        self._dial_back = DialBack(self, swarm, clock)
        self.serve_bulk(dialback.PROTOCOL, self._dial_back.serve)
        host.set_stream_handler(STOP, self.circuits.serve)
        if self.relay is not None:
            host.set_stream_handler(HOP, self.relay.serve)
        swarm.register_notifee(_Notifee(self._on_connected, self._on_closed))
        host.set_stream_handler(self._protocol, self._on_link_stream)

    # --- The port ------------------------------------------------------------------------------

    @property
    def addresses(self) -> list[str]:
        """Our multiaddrs, each ending in our peer id."""
        return [*self._direct_addresses, *self.circuits.addresses]

    @property
    def _direct_addresses(self) -> list[str]:
        return reachable_addresses([str(address) for address in self._host.get_addrs()])

    async def publish(self, topic: str, data: bytes) -> None:
        """See `Network.publish`."""
        if topic not in self._topics:
            raise ValueError(f"we aren't on topic {topic!r}")
        if len(data) > GOSSIP_BYTES_MAX:
            raise ValueError(f"message of {len(data)} bytes exceeds {GOSSIP_BYTES_MAX}")
        await self.pubsub.publish(topic, data)

    async def join(self, topic: str) -> None:
        """See `Network.join`."""
        if topic not in self._topics:
            self._topics.add(topic)
            await self.pubsub.enter(topic)

    async def leave(self, topic: str) -> None:
        """See `Network.leave`."""
        if topic in self._topics:
            self._topics.discard(topic)
            await self.pubsub.leave(topic)

    async def send(self, peer: PeerKey, frame: bytes) -> bool:
        """See `Network.send`."""
        encoded = application_frame(frame)
        await trio.lowlevel.checkpoint()
        link = self._links.get(peer)
        return link is not None and link.push(encoded)

    async def open_bulk(self, peer: PeerKey, protocol: str) -> BulkStream:
        """See `Network.open_bulk`."""
        link = self._links.get(peer)
        connection = link.connection if link is not None and link.up.is_set() else None
        if connection is None:
            raise StreamBroken(f"{short_id(peer)} isn't connected")
        try:
            with trio.fail_after(STREAM_OPEN_S):
                stream = await self._open_stream(connection, self._bulk_protocol(protocol))
        except trio.TooSlowError as error:
            raise StreamBroken(f"{short_id(peer)} opened no stream within {STREAM_OPEN_S:g} s") from error
        except Exception as error:
            raise StreamBroken(f"{short_id(peer)} opened no stream: {_innermost(error)}") from error
        return Libp2pBulk(peer, stream)

    def serve_bulk(self, protocol: str, handler: BulkHandler) -> None:
        """See `Network.serve_bulk`."""

        async def serve(stream: INetStream) -> None:
            key = key_of(stream.muxed_conn.peer_id)
            link = self._links.get(key) if key is not None else None
            if key is None or link is None or self._standings.refused(key):
                await stream.reset()
                return
            bulk = Libp2pBulk(key, stream, link.range)
            try:
                await handler(bulk)
            except PeerFault as error:
                self.penalise(key, max(error.points, 1), f"{protocol}: {error}")
            except StreamBroken as error:
                log.debug("bulk stream over", peer=short_id(key), why=str(error))
            except Exception:
                # A bug of ours must not become a way to stop us from afar.
                log.exception("bulk stream met a bug", protocol=protocol)
            finally:
                await bulk.close()

        self._host.set_stream_handler(self._bulk_protocol(protocol), serve)

    async def dial(self, address: str) -> PeerKey:
        """See `Network.dial`."""
        try:
            key = peer_of(address)
        except BadAddress as error:
            raise DialFailed(str(error)) from error
        if key == self.local_key:
            raise DialFailed(f"{address} is ourselves")
        if self._standings.refused(key):
            raise PeerRefused(f"{peer_id(key)} is refused for its faults")
        if self._access.refuses_peer(key) or self._access.refuses_host(address.split("/")[2]):
            raise PeerRefused(f"{address} is kept out by our lists of peers and addresses")
        while (rival := self._dialling.get(key)) is not None:
            await rival.wait()
        self._dialling[key] = trio.Event()
        try:
            if key not in self._links:
                self._dialled[key] = address
                await self._connect(key, address)
            await self._until_up(key, address)
        finally:
            self._dialled.pop(key, None)
            self._failures.pop(key, None)
            self._dialling.pop(key).set()
        return key

    def admit(self, access: PeerAccess) -> int:
        """Keep to these lists from now on, and cut off whom they keep out; how many peers those are."""
        self._access = self._swarm.access = access
        cut_off = [link for link in self._links.values() if self._keeps_out(link.key, link.first_connection)]
        for link in cut_off:
            link.end(PeerRefused("kept out by our lists"))
        return len(cut_off)

    def penalise(self, peer: PeerKey, points: int, reason: str) -> None:
        """See `Network.penalise`."""
        log.info("peer penalised", peer=short_id(peer), points=points, reason=reason)
        if self._standings.penalise(peer, points):
            log.warning("peer refused", peer=short_id(peer), reason=reason)
            link = self._links.get(peer)
            if link is not None:
                if (host := link.host()) is not None and link.direction == "inbound":
                    self._swarm.admission.fault(host)
                link.end(PeerRefused("refused for its faults"))
            self._nursery.start_soon(self._disconnect, peer_id_of(peer))

    def hang_up(self, peer: PeerKey) -> None:
        """See `Network.hang_up`."""
        link = self._links.get(peer)
        if link is not None:
            link.end(DialFailed("no longer needed"))

    def peers(self) -> list[PeerStatus]:
        """See `Network.peers`."""
        return [
            PeerStatus(
                key, link.address, link.direction, link.rtt_ms, self._standings.points(key), link.since_ms
            )
            for key, link in self._links.items()
            if link.up.is_set()
        ]

    async def close(self) -> None:
        """See `Network.close`."""
        if self._closing:
            return
        self._closing = True
        with last_words(CLOSE_S):
            for link in self._links.values():
                link.end()
            # Upstream closes connections one after another, at 0.2 s each.
            async with trio.open_nursery() as nursery:
                for connection in self._swarm.get_connections():
                    nursery.start_soon(_close_quietly, connection)
            await self._host.close()
        self._events.close()

    async def reachability(self) -> list[Found]:
        """Ask a few peers to dial us back; what they found. Takes up to half a minute."""
        ports = sorted({int(address.split("/")[4]) for address in self._direct_addresses})
        ports = ports[: dialback.PORTS_MAX]
        answers: list[DialledBack] = []

        async def ask(peer: PeerKey) -> None:
            try:
                stream = await self.open_bulk(peer, dialback.PROTOCOL)
                try:
                    answers.extend(await self._dial_back.ask(stream, ports))
                finally:
                    await stream.close()
            except StreamBroken as error:
                log.debug("not dialled back", peer=short_id(peer), why=str(error))

        asked = [status.key for status in self.peers() if not is_relayed(self.connection_to(status.key))]
        async with trio.open_nursery() as nursery:
            for peer in asked[:DIALLED_BACK_BY_MAX] if ports else ():
                nursery.start_soon(ask, peer)
        return conclude(answers, ports)

    # --- What circuits ask ---------------------------------------------------------------------

    def connection_to(self, peer: PeerKey) -> SwarmConn | None:
        """An open connection under the link to this peer, once the link is up."""
        link = self._links.get(peer)
        return link.connection if link is not None and link.up.is_set() else None

    def linked_addresses(self) -> dict[PeerKey, str]:
        """Where each linked peer can be dialled, as far as we know."""
        return {key: link.address for key, link in self._links.items() if link.up.is_set() and link.address}

    async def open_stream(self, connection: SwarmConn, protocol: str) -> INetStream:
        """Open a stream on this very connection.

        Raises:
            DialFailed: the peer doesn't speak the protocol, or isn't there.
        """
        try:
            with trio.fail_after(STREAM_OPEN_S):
                return await self._open_stream(connection, TProtocol(protocol))
        except trio.TooSlowError:
            raise DialFailed(f"no stream within {STREAM_OPEN_S:g} s") from None
        except Exception as error:
            raise DialFailed(f"no stream: {_innermost(error)}") from error

    # --- Connections and links -----------------------------------------------------------------

    @property
    def connected(self) -> frozenset[PeerKey]:
        """Every peer with a link, up or not yet."""
        return frozenset(self._links)

    @property
    def outbound_count(self) -> int:
        """Links that we dialled."""
        return sum(link.direction == "outbound" for link in self._links.values())

    def _own_hearers(self) -> list[ID]:
        """Who hears what we say although it isn't in our mesh: first those that we chose to dial, then those
        that have been here longest. A crowd of newcomers changes neither.
        """
        links = sorted(self._links.values(), key=lambda link: (link.direction == "inbound", link.since_ms))
        return [peer_id_of(link.key) for link in links[:OWN_HEARERS_MAX]]

    async def _connect(self, key: PeerKey, address: str) -> None:
        try:
            with trio.fail_after(DIAL_S):
                if f"/{CIRCUIT}/" in address:
                    await self.circuits.dial(address)
                else:
                    transport_address = Multiaddr(address.rsplit("/p2p/", 1)[0])
                    await self._swarm.dial_addr(transport_address, peer_id_of(key))
        except trio.TooSlowError as error:
            raise DialFailed(f"{address} didn't answer within {DIAL_S:g} s") from error
        except Exception as error:
            # libp2p wraps refused sockets, failed handshakes and wrong identities in many ways.
            hint = " (does it have our network key?)" if self._swarm.psk is not None else ""
            raise DialFailed(f"{address}: {_innermost(error)}{hint}") from error

    async def _until_up(self, key: PeerKey, address: str) -> None:
        link = self._links.get(key)
        if link is not None:
            async with trio.open_nursery() as nursery:

                async def first(event: trio.Event) -> None:
                    await event.wait()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(first, link.up)
                nursery.start_soon(first, link.ended)
            if link.up.is_set() and not link.ended.is_set():
                return
        failure = link.failure if link is not None else self._failures.get(key)
        if failure is not None:
            raise type(failure)(f"{address}: {failure}")
        raise DialFailed(f"{address}: the connection closed at once")

    def _on_connected(self, connection: SwarmConn) -> None:
        key = key_of(connection.muxed_conn.peer_id)
        if key is None or self._closing or self._standings.refused(key) or self._keeps_out(key, connection):
            self._nursery.start_soon(_close_quietly, connection)
        elif key not in self._links:
            self._start_link(key, connection)

    def _keeps_out(self, key: PeerKey, connection: SwarmConn) -> bool:
        # Again by address: a name that we dialled has resolved to one only now.
        hosts = (str(address).split("/")[2] for address in connection.get_transport_addresses())
        if not self._access.refuses_peer(key) and not any(map(self._access.refuses_host, hosts)):
            return False
        log.debug("peer kept out", peer=short_id(key))
        return True

    def _on_closed(self, connection: SwarmConn) -> None:
        remote = connection.muxed_conn.peer_id
        if not self._swarm.get_connections(remote):
            # Upstream's peerstore keeps everyone it ever met.
            self._swarm.peerstore.clear_peerdata(remote)

    def _start_link(self, key: PeerKey, connection: SwarmConn) -> Link:
        link = Link(self, key, connection, now_ms=self._clock())
        self._links[key] = link
        self._nursery.start_soon(self._run_link, link)
        return link

    async def _run_link(self, link: Link) -> None:
        try:
            await link.run()
        finally:
            await link.close_streams()
            if self._links.get(link.key) is link:
                del self._links[link.key]
            if link.failure is not None and link.key in self._dialling:
                self._failures[link.key] = link.failure
            link.ended.set()
            if not link.superseded:
                await self._disconnect(peer_id_of(link.key))
        log.info("link ended", peer=short_id(link.key), reason=str(link.failure or "closed"))
        if link.announced:
            await self._announce(PeerDisconnected(link.key))

    async def _announce(self, event: NetworkEvent) -> None:
        # Who is there is never dropped: a runtime that doesn't know can't recover.
        try:
            await self._events.send(event)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            log.debug("event after the end", kind=type(event).__name__)

    async def _disconnect(self, remote: ID) -> None:
        with last_words(CLOSE_S):
            for connection in self._swarm.get_connections(remote):
                await _close_quietly(connection)

    async def _on_link_stream(self, stream: INetStream) -> None:
        key = key_of(stream.muxed_conn.peer_id)
        connection = getattr(stream, "swarm_conn", None)
        if key is None or connection is None or self._closing or self._standings.refused(key):
            await stream.reset()
            return
        link = self._links.get(key)
        if link is not None and link.inbound is not None:
            if link.inbound.muxed_conn is stream.muxed_conn:
                self.penalise(key, REJECTED_POINTS, "opened a second link on one connection")
                await stream.reset()
                return
            # It has come back, on a new connection, before we noticed that it went.
            link.superseded = True
            link.end(DialFailed("the peer came back on a new connection"))
            await link.ended.wait()
            link = self._links.get(key)
        if link is None:
            link = self._start_link(key, connection)
        await link.read_from(stream)

    # --- What links ask ------------------------------------------------------------------------

    def hello(self) -> Hello:
        """Our greeting: the network and where we listen."""
        return Hello(self.network_name, self.addresses[:ADDRESSES_PER_PEER_MAX])

    async def open_link_stream(self, connection: SwarmConn) -> INetStream:
        """Open our half of a link on this very connection."""
        try:
            return await self._open_stream(connection, self._protocol)
        except MultiselectClientError as error:
            raise NetworkMismatch(f"peer doesn't speak {self._protocol}: {error}") from error

    async def _open_stream(self, connection: SwarmConn, protocol: TProtocol) -> INetStream:
        stream = await connection.new_stream()
        try:
            await self._host.multiselect_client.select_one_of(
                [protocol], MultiselectCommunicator(stream), int(STREAM_OPEN_S)
            )
        except BaseException:
            with last_words(1):
                await stream.reset()
            raise
        stream.set_protocol(protocol)
        return stream

    def _bulk_protocol(self, protocol: str) -> TProtocol:
        return TProtocol(f"/p2p-node/{self.network_name}/{protocol}")

    async def link_up(self, link: Link) -> None:
        """Announce the peer, remember where it lives, and tell it of others."""
        theirs = [address for address in link.remote_addresses if _is_of(address, link.key)]
        for address in theirs:
            self._plan.add(address)
        dialled = self._dialled.get(link.key)
        if link.direction == "outbound" and dialled is not None:
            link.address = dialled
            self._plan.succeeded(dialled)
            self._address_book.remember(dialled)
        else:
            link.address = theirs[0] if theirs else _transport_address(link)
        others = [other.address for other in self._links.values() if other is not link and other.up.is_set()]
        link.send_peers([address for address in others if address][:PEER_EXCHANGE_ADDRESSES_MAX])
        log.info("link up", peer=short_id(link.key), address=link.address, direction=link.direction)
        await self._announce(PeerConnected(link.key, link.address))

    async def link_frame(self, link: Link, payload: bytes) -> None:
        """Hand an application frame to the runtime, at a pace that leaves it time for the others."""
        wait_s = self._pace.wait_s(link.key)
        if link.range is not None:
            wait_s = max(wait_s, self._range_pace.wait_s(link.range))
        if wait_s:
            await trio.sleep(min(wait_s, PACE_S_MAX))
        event = FrameReceived(link.key, payload)
        with trio.move_on_after(EVENT_WAIT_S) as waiting:
            await self._announce(event)
        if waiting.cancelled_caught:
            log.error("frame dropped: events aren't drained", peer=short_id(link.key))

    def link_peers(self, link: Link, addresses: list[str]) -> None:
        """Candidates from another peer's mouth: worth a try, no more."""
        for address in addresses:
            if not self._plan.consider(address):
                self.penalise(link.key, 1, f"peer exchange: {address[:80]!r} can't be dialled")

    # --- What gossip asks ----------------------------------------------------------------------

    def admits(self, forwarder: ID, messages: int) -> bool:
        """Whether the forwarder may hand us that many more messages now."""
        key = key_of(forwarder)
        if key is None or self._standings.refused(key):
            return False
        link = self._links.get(key)
        source = link.range if link is not None else None
        if self._rates.take(key, messages) and (source is None or self._range_rates.take(source, messages)):
            return True
        log.debug("gossip above its allowance", peer=short_id(key))
        return False

    async def turn(self, *, is_own_word: bool) -> bool:
        """Wait for a turn of gossip; see `Judge.turn`."""
        return await self._turns.next(WAIT_S_MAX if is_own_word else PASSED_ON_WAIT_S)

    def rule(self, topic: str, data: bytes, forwarder: ID) -> Ruling:
        """Ask the runtime's rule; charge what it rejects."""
        key = key_of(forwarder)
        if key is None:
            return Ruling.IGNORE
        points, reason = REJECTED_POINTS, "rejected"
        try:
            ruling = self._rule(topic, data, key)
        except PeerFault as error:
            ruling, points, reason = Ruling.REJECT, max(error.points, 1), str(error)
        except Exception:
            # A bug of ours must not become a way to stop us from afar.
            log.exception("gossip rule failed", topic=topic)
            return Ruling.IGNORE
        if ruling is Ruling.REJECT:
            self.penalise(key, points, f"gossip on {topic}: {reason}")
        return ruling

    def deliver(self, topic: str, data: bytes, forwarder: ID) -> None:
        """Hand accepted gossip to the runtime."""
        key = key_of(forwarder)
        if key is None:
            return
        try:
            self._events.send_nowait(GossipReceived(topic, data, key))
        except trio.WouldBlock:
            log.error("gossip dropped: events aren't drained", topic=topic)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            log.debug("gossip after the end", topic=topic)

    def fault(self, peer: Any, points: int, reason: str) -> None:
        """Charge a peer, named by key or libp2p id."""
        key = key_of(peer) if isinstance(peer, ID) else peer
        if key is not None:
            self.penalise(key, points, reason)


def _is_of(address: str, key: PeerKey) -> bool:
    try:
        return peer_of(address) == key
    except BadAddress:
        return False


def _transport_address(link: Link) -> str:
    addresses = link.transport_addresses()
    return f"{addresses[0]}/p2p/{peer_id(link.key)}" if addresses else ""


async def _close_quietly(connection: INetConn) -> None:
    try:
        await (close_connection(connection) if isinstance(connection, SwarmConn) else connection.close())
    except Exception as error:
        log.debug("closing a connection failed", error=repr(error))


def _innermost(error: BaseException) -> str:
    while True:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        elif error.__cause__ is not None:
            error = error.__cause__
        else:
            return f"{type(error).__name__}: {error}"[:200]
