"""Each fault of libp2p 0.8.1 that we mend, seen in upstream and gone in ours.

The half that looks at upstream is a canary: when it fails, upstream has mended the fault and our mend can go.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace

import libp2p.network.swarm as swarm_module
import pytest
import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.connection import swarm_connection
from libp2p.network.stream.exceptions import StreamError
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import RpcQueue
from multiaddr.multiaddr import Multiaddr

from p2p_node.network.libp2p import links, mends
from p2p_node.network.libp2p.gossip import GuardedPubsub
from p2p_node.network.libp2p.host import build_host
from p2p_node.network.libp2p.keys import peer_id_of
from p2p_node.network.libp2p.mends import (
    MendedGossipSub,
    MendedHost,
    MendedSwarm,
    NeverAutoConnect,
    RecentlySeen,
    RoomyRpcQueue,
)
from p2p_node.network.port import GossipReceived, PeerConnected, PeerDisconnected
from protocols.limits import (
    CONNECTIONS_MAX,
    CONNECTIONS_OUTBOUND_RESERVED,
    HALF_OPEN_PER_ADDRESS_MAX,
    SEEN_MESSAGES_MAX,
    STREAMS_PER_CONNECTION_MAX,
)
from tests.network.hosts import TOPIC, Attacker, eventually, join, network, next_event, raw_host

FAIL = TProtocol("/test/fail/1")


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[MendedHost, MendedSwarm, MendedHost, MendedSwarm]]:
    """Two raw hosts, the second connected to the first."""
    async with raw_host(1) as (one, one_swarm), raw_host(2) as (two, two_swarm):
        await two_swarm.dial_addr(Multiaddr(str(one.get_addrs()[0]).rsplit("/p2p/", 1)[0]), one.get_id())
        await eventually(lambda: bool(one_swarm.get_connections()))
        yield one, one_swarm, two, two_swarm


async def fail(stream: INetStream) -> None:
    raise RuntimeError("a handler that fails")


async def provoke(one: MendedHost, two: MendedHost) -> bool:
    """Make a handler of the first host fail; True if the host still serves afterwards."""
    one.set_stream_handler(FAIL, fail)
    served = trio.Event()

    async def serve(stream: INetStream) -> None:
        served.set()

    one.set_stream_handler(TProtocol("/test/serve/1"), serve)
    await two.new_stream(one.get_id(), [FAIL])
    await trio.sleep(0.1)
    await two.new_stream(one.get_id(), [TProtocol("/test/serve/1")])
    with trio.move_on_after(2):
        await served.wait()
    return served.is_set()


async def test_a_failing_handler_ends_its_stream_only() -> None:
    async with pair() as (one, _, two, _):
        assert await provoke(one, two)


async def test_upstream_dies_of_a_failing_handler() -> None:
    with pytest.raises(BaseExceptionGroup):
        async with pair() as (one, one_swarm, two, _):
            one_swarm.set_stream_handler(lambda stream: BasicHost._swarm_stream_handler(one, stream))
            await provoke(one, two)


@pytest.mark.parametrize(
    ("upgrade", "held"), [(MendedSwarm.upgrade_inbound_raw_conn, 0), (Swarm.upgrade_inbound_raw_conn, 1)]
)
async def test_a_closed_inbound_connection_gives_its_slot_back(
    monkeypatch: pytest.MonkeyPatch, upgrade: object, held: int
) -> None:
    monkeypatch.setattr(MendedSwarm, "upgrade_inbound_raw_conn", upgrade)
    async with pair() as (one, one_swarm, _, two_swarm):
        await two_swarm.close_peer(one.get_id())
        await eventually(lambda: not one_swarm.get_connections())
        await trio.sleep(0.3)
        assert one_swarm._inbound_limiter.borrowed_tokens == held


class NoJudge:
    """Nothing comes in, so nothing is judged."""


async def test_sequence_numbers_go_on_after_a_burst_and_a_restart() -> None:
    host, _ = build_host(bytes(32))
    for kind, goes_on in ((GuardedPubsub, True), (Pubsub, False)):
        counters = []
        for _ in range(2):
            if kind is GuardedPubsub:
                pubsub: Pubsub = GuardedPubsub(
                    host, MendedGossipSub([], 6, 4, 12), topics=[], judge=NoJudge()
                )  # type: ignore[arg-type]
            else:
                pubsub = Pubsub(host, GossipSub([], 6, 4, 12))
                pubsub.seen_messages.stop()
            first = pubsub.counter
            for _ in range(1_000):
                pubsub._next_seqno()
            counters.append((first, pubsub.counter))
        assert (counters[1][0] > counters[0][1]) is goes_on


async def test_a_burst_of_gossip_arrives_whole() -> None:
    async with network(1) as one, network(2) as two:
        await join(one, two)
        for number in range(500):
            await one.publish(TOPIC, number.to_bytes(2, "big"))
        heard = {(await next_event(two, GossipReceived)).data for _ in range(500)}
        assert len(heard) == 500


def test_the_outbound_queue_takes_a_burst() -> None:
    mends.install()
    for queue, taken in ((RoomyRpcQueue(), 500), (RpcQueue(), 32)):
        assert sum(queue.push(rpc_pb2.RPC()) for _ in range(500)) == taken


async def test_seen_messages_need_no_thread_and_end() -> None:
    host, _ = build_host(bytes(32))
    before = threading.active_count()
    GuardedPubsub(host, MendedGossipSub([], 6, 4, 12), topics=[], judge=NoJudge())  # type: ignore[arg-type]
    assert threading.active_count() == before
    upstream = Pubsub(host, GossipSub([], 6, 4, 12))
    assert threading.active_count() == before + 1
    upstream.seen_messages.stop()

    seen = RecentlySeen()
    for number in range(SEEN_MESSAGES_MAX + 10):
        assert seen.add(number.to_bytes(4, "big"))
    assert seen.length() == SEEN_MESSAGES_MAX
    assert not seen.add((SEEN_MESSAGES_MAX + 9).to_bytes(4, "big"))
    assert not seen.has((0).to_bytes(4, "big"))


async def test_seen_messages_expire(autojump_clock: trio.testing.MockClock) -> None:
    seen = RecentlySeen()
    seen.add(b"id")
    await trio.sleep(119)
    assert seen.has(b"id")
    await trio.sleep(2)
    assert not seen.has(b"id")


@pytest.mark.parametrize(("kind", "leaks"), [(MendedGossipSub, False), (GossipSub, True)])
async def test_a_heartbeat_tells_each_peer_only_what_concerns_it(kind: type[GossipSub], leaks: bool) -> None:
    router = kind([], 6, 4, 12)
    sent: dict[ID, rpc_pb2.ControlMessage] = {}

    async def note(control: rpc_pb2.ControlMessage, peer: ID) -> None:
        sent[peer] = control

    router.emit_control_message = note  # type: ignore[method-assign]
    first, second = ID(b"first"), ID(b"second")
    await router._emit_control_msgs(
        {first: ["a"], second: ["b"]}, {first: ["c"], second: ["d"]}, {second: {"b": [b"id"]}}
    )
    assert [graft.topicID for graft in sent[first].graft] == ["a"]
    assert [prune.topicID for prune in sent[second].prune] == (["c", "d"] if leaks else ["d"])
    assert [graft.topicID for graft in sent[second].graft] == (["a", "b"] if leaks else ["b"])
    assert [list(ihave.messageIDs) for ihave in sent[second].ihave] == [[b"id"]]


@pytest.mark.parametrize("is_own", [True, False])
async def test_what_we_say_ourselves_passes_a_mesh_of_strangers(is_own: bool) -> None:
    """Strangers in the mesh keep what they hear; a neighbour of ours outside of it is told all the same."""
    router, us, stranger, neighbour = (
        MendedGossipSub([], 6, 4, 12),
        ID(b"us"),
        ID(b"stranger"),
        ID(b"neighbour"),
    )
    deaf = ID(b"on no topic of ours")
    queues = {peer: RoomyRpcQueue() for peer in (stranger, neighbour, deaf)}
    router.pubsub = SimpleNamespace(  # type: ignore[assignment]
        my_id=us, peer_topics={TOPIC: {stranger, neighbour}}, peers=queues, peer_queues=queues
    )
    router.mesh[TOPIC] = {stranger}
    router.own_hearers = lambda: [neighbour, deaf]
    author = us if is_own else ID(b"author")
    await router.publish(us if is_own else deaf, rpc_pb2.Message(from_id=author.to_bytes(), topicIDs=[TOPIC]))
    told = {peer for peer, queue in queues.items() if len(queue)}
    assert told == ({stranger, neighbour} if is_own else {stranger})


async def test_a_peer_whose_gossip_stream_is_lost_hears_us_again() -> None:
    """Ours to it breaks when it doesn't read for five seconds, as happens to peers of one that is flooded."""
    async with network(1) as one, network(2) as two:
        await join(one, two)
        lost = one.pubsub.peers[peer_id_of(two.local_key)]
        await lost.reset()
        await one.publish(TOPIC, b"lost")
        await eventually(
            lambda: one.pubsub.peers.get(peer_id_of(two.local_key)) not in (None, lost), within_s=5
        )
        await one.publish(TOPIC, b"heard")
        while (await next_event(two, GossipReceived, within_s=5)).data != b"heard":
            pass


async def test_delivery_times_are_not_kept_for_ever() -> None:
    async with network(1) as one, network(2) as two:
        await join(one, two)
        for number in range(20):
            await one.publish(TOPIC, str(number).encode())
        assert sum(map(len, one.router.recent_message_deliveries.values())) == 0


def test_a_failed_peer_is_dialled_again_soon() -> None:
    _, swarm = build_host(bytes(32))
    assert swarm._negative_peer_cache._ttl < 10 < swarm_module._NegativePeerCache()._ttl


def test_no_dial_waits_for_a_rival_transport() -> None:
    mends.install()
    assert swarm_module._HAPPY_EYEBALLS_DELAY < 0.05


@pytest.mark.parametrize(("connector", "dials"), [(NeverAutoConnect, 0), (AutoConnector, 1)])
async def test_only_we_choose_whom_to_dial(connector: type[AutoConnector], dials: int) -> None:
    async with raw_host(1) as (one, _), raw_host(2) as (_, swarm):
        swarm.peerstore.add_addrs(
            one.get_id(), [Multiaddr(str(one.get_addrs()[0]).rsplit("/p2p/", 1)[0])], 60
        )
        assert isinstance(swarm.auto_connector, NeverAutoConnect)
        auto = connector(swarm)
        await auto.start()
        await auto.maybe_connect()
        assert len(swarm.get_connections()) == dials


async def test_some_connections_are_kept_for_those_we_dial() -> None:
    _, swarm = build_host(bytes(32))
    assert swarm._inbound_limiter.total_tokens == CONNECTIONS_MAX - CONNECTIONS_OUTBOUND_RESERVED


def test_upstream_has_no_use_of_the_root_logger() -> None:
    mends.install()
    assert swarm_connection.logging.name.startswith("libp2p")


async def test_nobody_is_asked_to_identify() -> None:
    # Upstream asks in a system task, where an exception is fatal to the process.
    async with pair() as (one, _, two, _):
        assert not one._identify_inflight and not two._identify_inflight
        assert not one._identify_tasks and not two._identify_tasks


async def test_half_open_connections_of_one_address_are_bounded() -> None:
    async with network(1) as one:
        host, port = one.addresses[0].split("/")[2], int(one.addresses[0].split("/")[4])
        silent = [await trio.open_tcp_stream(host, port) for _ in range(HALF_OPEN_PER_ADDRESS_MAX + 8)]
        await eventually(lambda: one._swarm.admission.half_open == HALF_OPEN_PER_ADDRESS_MAX)
        hung_up = 0
        for stream in silent:
            with trio.move_on_after(0.05):
                try:
                    while await stream.receive_some(1_024):
                        pass
                    hung_up += 1
                except trio.BrokenResourceError:
                    hung_up += 1
        assert hung_up == 8
        for stream in silent:
            await stream.aclose()
        await eventually(lambda: one._swarm.admission.half_open == 0)
        async with network(2) as two:
            assert await two.dial(one.addresses[0]) == one.local_key


async def test_streams_of_one_connection_are_bounded() -> None:
    async with network(1) as one, raw_host(9) as (host, swarm):
        attacker = Attacker(host, swarm, one)
        await attacker.link()
        await next_event(one, PeerConnected)
        (connection,) = swarm.get_connections(attacker.target_id)
        for _ in range(STREAMS_PER_CONNECTION_MAX + 20):
            await connection.new_stream()
        await trio.sleep(0.3)
        (theirs,) = one._swarm.get_connections(host.get_id())
        assert theirs.muxed_conn._inbound_streams_open == STREAMS_PER_CONNECTION_MAX


async def test_a_peer_that_overruns_its_window_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    # The attacker answers no pings, and must not be cut off for that.
    monkeypatch.setattr(links, "SILENCE_S", 60.0)

    async def never_read(stream: INetStream) -> None:
        await trio.sleep_forever()

    async with network(1) as one, raw_host(9) as (host, swarm):
        one._host.set_stream_handler(FAIL, never_read)
        attacker = Attacker(host, swarm, one)
        await attacker.link()
        await next_event(one, PeerConnected)
        stream = await attacker.stream(FAIL)
        stream.muxed_stream.send_window = 1 << 30
        with suppress(StreamError):
            for _ in range(64):
                await stream.write(bytes(65_000))
        assert (await next_event(one, PeerDisconnected)).peer == attacker.key


async def test_peers_of_a_prune_are_not_dialled() -> None:
    host, _ = build_host(bytes(32))
    pubsub = GuardedPubsub(host, MendedGossipSub([], 6, 4, 12), topics=[TOPIC], judge=NoJudge())  # type: ignore[arg-type]
    control = rpc_pb2.ControlMessage()
    control.prune.add(topicID=TOPIC, backoff=9, peers=[rpc_pb2.PeerInfo(peerID=b"anybody")])
    control.graft.add(topicID="a topic that nobody joined")
    cleaned = pubsub._cleaned(control)
    assert [(prune.topicID, prune.backoff, len(prune.peers)) for prune in cleaned.prune] == [(TOPIC, 9, 0)]
    assert len(cleaned.graft) == 0
