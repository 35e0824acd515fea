"""Real hosts on loopback: what the port promises, libp2p keeps."""

from __future__ import annotations

import gc
import threading

import psutil
import pytest
import trio

from p2p_node.network.libp2p import links, upkeep
from p2p_node.network.port import (
    DialFailed,
    FrameReceived,
    GossipReceived,
    ListenFailed,
    NetworkMismatch,
    PeerConnected,
    PeerDisconnected,
    PeerKey,
    PeerRefused,
)
from protocols.identity import peer_id
from protocols.limits import FRAME_BYTES_MAX, GOSSIP_BYTES_MAX, GRAYLIST_POINTS
from protocols.rulings import Ruling
from tests.network.books import MemoryBook
from tests.network.hosts import (
    TOPIC,
    Attacker,
    eventually,
    free_port,
    join,
    meshed,
    milliseconds,
    network,
    next_event,
    raw_host,
)


@pytest.fixture
def only_who_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody dials on its own, so that a line of peers stays a line."""
    monkeypatch.setattr(upkeep, "DIALLED_PEERS_MIN", 0)


async def test_frames_go_both_ways_in_order() -> None:
    async with network(1) as one, network(2) as two:
        await join(one, two)
        for sender, receiver in ((one, two), (two, one)):
            frames = [bytes([number]) * (1 + number * 1_000) for number in range(50)]
            for frame in frames:
                assert await sender.send(receiver.local_key, frame)
            for frame in frames:
                assert await next_event(receiver, FrameReceived) == FrameReceived(sender.local_key, frame)


async def test_the_largest_frame_arrives_and_a_larger_one_is_refused() -> None:
    async with network(1) as one, network(2) as two:
        await join(one, two)
        largest = bytes(FRAME_BYTES_MAX - 1)
        assert await one.send(two.local_key, largest)
        assert (await next_event(two, FrameReceived)).data == largest
        with pytest.raises(ValueError, match=str(FRAME_BYTES_MAX)):
            await one.send(two.local_key, largest + b"\0")


async def test_a_full_queue_says_no() -> None:
    async with network(1) as one, network(2) as two:
        await join(one, two)
        taken = 0
        while await one.send(two.local_key, bytes(FRAME_BYTES_MAX - 1)):
            taken += 1
            assert taken < 100
        for _ in range(taken):
            await next_event(two, FrameReceived)


async def test_sending_to_a_stranger_says_no() -> None:
    async with network(1) as one:
        assert not await one.send(bytes(32), b"frame")


async def test_gossip_crosses_a_middleman_once_and_never_comes_back(only_who_is_told: None) -> None:
    async with network(1) as one, network(2) as two, network(3) as three:
        await join(one, two)
        await join(two, three)
        sent = {f"message {number}".encode() for number in range(100)}
        for data in sent:
            await one.publish(TOPIC, data)
        await one.publish(TOPIC, b"last")
        heard = []
        while not heard or heard[-1] != b"last":
            event = await next_event(three, GossipReceived)
            assert event.forwarder == two.local_key
            heard.append(event.data)
        assert sorted(heard) == sorted([*sent, b"last"])
        assert one.events.statistics().current_buffer_used == 0


async def test_gossip_in_a_triangle_is_delivered_once() -> None:
    async with network(1) as one, network(2) as two, network(3) as three:
        await join(one, two)
        await join(two, three)
        await one.dial(three.addresses[0])
        await meshed(one, three)
        for number in range(50):
            await one.publish(TOPIC, str(number).encode())
        for receiver in (two, three):
            heard = [(await next_event(receiver, GossipReceived)).data for _ in range(50)]
            assert len(set(heard)) == 50
        await trio.sleep(0.5)
        assert all(
            not isinstance(event, GossipReceived)
            for receiver in (two, three)
            for event in [receiver.events.receive_nowait() for _ in range(_waiting(receiver))]
        )


def _waiting(receiver: object) -> int:
    return receiver.events.statistics().current_buffer_used  # type: ignore[attr-defined, no-any-return]


async def test_gossip_that_is_too_large_or_on_no_topic_of_ours_is_refused() -> None:
    async with network(1) as one:
        with pytest.raises(ValueError, match=str(GOSSIP_BYTES_MAX)):
            await one.publish(TOPIC, bytes(GOSSIP_BYTES_MAX + 1))
        with pytest.raises(ValueError, match="elsewhere"):
            await one.publish("elsewhere", b"")


async def test_a_topic_is_joined_and_left_while_the_network_runs() -> None:
    room = TOPIC.replace("jobs", "room-1")
    async with network(1) as one, network(2) as two, network(3) as three:
        await join(one, two)
        await join(one, three)
        # The first joins before the second does, which has to remember what it was told.
        await one.join(room)
        await two.join(room)
        await eventually(lambda: bool(one.router.mesh[room]) and bool(two.router.mesh[room]))
        assert one.router.mesh[room] == {two.pubsub.my_id}
        await one.publish(room, b"inside")
        await one.publish(TOPIC, b"to all")
        heard = [await next_event(two, GossipReceived) for _ in range(2)]
        assert {(event.topic, event.data) for event in heard} == {(room, b"inside"), (TOPIC, b"to all")}
        assert (await next_event(three, GossipReceived)).data == b"to all"
        await two.leave(room)
        await eventually(lambda: not one.router.mesh[room])
        with pytest.raises(ValueError, match="room-1"):
            await two.publish(room, b"outside")
        assert room not in two.router.mesh
        assert room not in two.pubsub.peer_topics
        await one.publish(room, b"alone")
        await one.publish(TOPIC, b"last")
        assert (await next_event(two, GossipReceived)).data == b"last"


@pytest.mark.parametrize(("ruling", "charged"), [(Ruling.IGNORE, 0), (Ruling.REJECT, 10)])
async def test_what_the_rule_does_not_accept_is_neither_delivered_nor_forwarded(
    only_who_is_told: None, ruling: Ruling, charged: int
) -> None:
    def rule(topic: str, data: bytes, forwarder: PeerKey) -> Ruling:
        return ruling if data == b"doubtful" else Ruling.ACCEPT

    async with network(1) as one, network(2, rule=rule) as two, network(3) as three:
        await join(one, two)
        await join(two, three)
        await one.publish(TOPIC, b"doubtful")
        await one.publish(TOPIC, b"fine")
        assert (await next_event(two, GossipReceived)).data == b"fine"
        assert (await next_event(three, GossipReceived)).data == b"fine"
        assert [status.points for status in two.peers() if status.key == one.local_key] == [charged]


async def test_a_rule_that_fails_ignores_the_message() -> None:
    def rule(topic: str, data: bytes, forwarder: PeerKey) -> Ruling:
        if data == b"poison":
            raise RuntimeError("a bug")
        return Ruling.ACCEPT

    async with network(1) as one, network(2, rule=rule) as two:
        await join(one, two)
        await one.publish(TOPIC, b"poison")
        await one.publish(TOPIC, b"fine")
        assert (await next_event(two, GossipReceived)).data == b"fine"
        assert two.peers()[0].points == 0


async def test_both_dial_at_once_and_one_link_remains() -> None:
    async with network(1) as one, network(2) as two:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.dial, two.addresses[0])
            nursery.start_soon(two.dial, one.addresses[0])
        for sender, receiver in ((one, two), (two, one)):
            assert await sender.send(receiver.local_key, b"frame")
            assert (await next_event(receiver, FrameReceived)).data == b"frame"
            assert len(sender.peers()) == 1


async def test_a_refused_peer_is_cut_off_and_kept_out() -> None:
    now = [0]
    async with network(1) as one, network(2, clock=lambda: now[0]) as two:
        await join(one, two)
        two.penalise(one.local_key, GRAYLIST_POINTS, "test")
        assert (await next_event(two, PeerDisconnected)).peer == one.local_key
        assert (await next_event(one, PeerDisconnected)).peer == two.local_key
        with pytest.raises(DialFailed):
            await one.dial(two.addresses[0])
        with pytest.raises(PeerRefused):
            await two.dial(one.addresses[0])
        now[0] += 3_600_000
        assert await one.dial(two.addresses[0]) == two.local_key


async def test_another_network_is_refused_by_name() -> None:
    async with network(1) as one, network(2, network_name="other") as two:
        with pytest.raises(NetworkMismatch):
            await one.dial(two.addresses[0])
        assert one.peers() == [] and two.peers() == []


async def test_a_hello_of_another_network_ends_the_link() -> None:
    async with network(1) as one, raw_host(9) as (host, swarm):
        attacker = Attacker(host, swarm, one)
        await attacker.link(network_name="other")
        await eventually(lambda: not swarm.get_connections(attacker.target_id))
        assert one.peers() == []


async def test_a_busy_port_is_refused() -> None:
    async with network(1) as one:
        busy = one.addresses[0].rsplit("/p2p/", 1)[0]
        with pytest.raises(ListenFailed, match=busy.split("/")[4]):
            async with network(2, listen=[busy]):
                pass


@pytest.mark.parametrize(
    "listen",
    ["/ip4/127.0.0.1/udp/1/quic-v1", "127.0.0.1:4001", "/ip4/127.0.0.1/tcp/x", "/ip4/203.0.113.1/tcp/0"],
)
async def test_an_address_that_cannot_be_listened_on_is_refused(listen: str) -> None:
    with pytest.raises(ListenFailed):
        async with network(1, listen=[listen]):
            pass


async def test_dialling_nobody_fails_soon_and_a_later_dial_works() -> None:
    async with network(1) as one:
        async with network(2) as two:
            address = two.addresses[0]
        free = f"/ip4/127.0.0.1/tcp/{free_port()}"
        with pytest.raises(DialFailed):
            await one.dial(f"{free}/p2p/{address.rsplit('/', 1)[1]}")
        async with network(2, listen=[free]) as two:
            assert await one.dial(two.addresses[0]) == two.local_key


async def test_whoever_answers_must_be_who_the_address_says() -> None:
    async with network(1) as one, network(2) as two, network(3) as three:
        where = two.addresses[0].rsplit("/p2p/", 1)[0]
        who = three.addresses[0].rsplit("/", 1)[1]
        with pytest.raises(DialFailed):
            await one.dial(f"{where}/p2p/{who}")
        with pytest.raises(DialFailed, match="ourselves"):
            await one.dial(one.addresses[0])


async def test_a_peer_that_goes_is_missed_and_found_again_when_it_returns() -> None:
    listen = f"/ip4/127.0.0.1/tcp/{free_port()}"
    async with network(2) as two:
        address = f"{listen}/p2p/{peer_id(two.local_key)}"
    book = MemoryBook()
    async with network(1, bootstrap=[address], address_book=book) as one:
        async with network(2, listen=[listen]):
            await next_event(one, PeerConnected)
            assert book.addresses == [address]
        await next_event(one, PeerDisconnected)
        async with network(2, listen=[listen]) as two:
            assert (await next_event(one, PeerConnected)).peer == two.local_key
            await meshed(one, two)
            await two.publish(TOPIC, b"after the restart")
            assert (await next_event(one, GossipReceived)).data == b"after the restart"


async def test_dead_bootstrap_peers_are_no_drama() -> None:
    async with network(2) as two:
        dead = two.addresses[0]
    async with network(1, bootstrap=[dead]) as one, network(3) as three:
        await trio.sleep(1)
        assert await three.dial(one.addresses[0]) == one.local_key


async def test_when_the_bootstrap_peers_are_gone_for_good_peers_find_whom_they_met() -> None:
    book = MemoryBook()
    async with network(3) as hub, network(2, bootstrap=hub.addresses) as two:
        listen = two.addresses[0].rpartition("/p2p/")[0]
        async with network(1, bootstrap=hub.addresses, address_book=book):
            await eventually(lambda: {*hub.addresses, *two.addresses} <= set(book.addresses))
        gone = hub.addresses
    async with (
        network(2, bootstrap=gone, listen=[listen]) as two,
        network(1, bootstrap=gone, address_book=book) as one,
    ):
        await eventually(lambda: [status.key for status in one.peers()] == [two.local_key])


async def test_peers_tell_each_other_of_others() -> None:
    async with network(1) as one, network(2) as two, network(3) as three:
        await join(one, two)
        await three.dial(one.addresses[0])
        await eventually(lambda: {status.key for status in three.peers()} == {one.local_key, two.local_key})


async def test_a_peer_that_hangs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "PING_EVERY_S", 0.6)
    monkeypatch.setattr(links, "SILENCE_S", 0.3)
    async with network(1) as one, raw_host(9) as (host, swarm):
        # It says hello, keeps its sockets open, and never answers a ping.
        attacker = Attacker(host, swarm, one)
        await attacker.link()
        assert (await next_event(one, PeerConnected)).peer == attacker.key
        assert (await next_event(one, PeerDisconnected)).peer == attacker.key


async def test_a_peer_isnt_silent_while_it_waits_to_be_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "PING_EVERY_S", 0.3)
    monkeypatch.setattr(links, "SILENCE_S", 0.2)
    monkeypatch.setattr(links, "SIGN_OF_LIFE_S", 0.05)
    async with network(1) as one, network(2) as two:
        await join(one, two)
        hear = one.link_frame

        async def at_leisure(link: links.Link, payload: bytes) -> None:
            await trio.sleep(0.02)
            await hear(link, payload)

        # All of it comes in one piece and takes several times as long as a silence may.
        monkeypatch.setattr(one, "link_frame", at_leisure)
        for number in range(40):
            assert await two.send(one.local_key, bytes([number]))
        heard = [await one.events.receive() for _ in range(40)]
        assert [event.data for event in heard if isinstance(event, FrameReceived)] == [
            bytes([number]) for number in range(40)
        ]
        assert [status.key for status in two.peers()] == [one.local_key]


async def test_a_peer_that_comes_back_before_we_missed_it_replaces_its_old_link() -> None:
    async with network(1) as one, raw_host(9) as (host, swarm), raw_host(9) as (host_again, swarm_again):
        first = Attacker(host, swarm, one)
        await first.link()
        await next_event(one, PeerConnected)
        second = Attacker(host_again, swarm_again, one)
        await second.link()
        await next_event(one, PeerDisconnected)
        assert (await next_event(one, PeerConnected)).peer == second.key
        await eventually(lambda: len(one.peers()) == 1)


async def test_three_hundred_connections_come_and_go() -> None:
    async with network(1) as one, raw_host(9) as (host, swarm):
        attacker = Attacker(host, swarm, one)
        for _ in range(300):
            await attacker.connect()
            for connection in swarm.get_connections(attacker.target_id):
                await connection.muxed_conn.secured_conn.close()
                attacker.swarm.connections.clear()
        async with network(2) as two:
            assert await two.dial(one.addresses[0]) == one.local_key


async def test_closing_leaves_no_socket_open() -> None:
    async with network(1) as one:
        host, port = one.addresses[0].split("/")[2], int(one.addresses[0].split("/")[4])
        async with network(2) as two:
            await join(one, two)
            with trio.fail_after(3):
                await two.close()
            assert not await two.send(one.local_key, b"frame")
            await next_event(one, PeerDisconnected)
    with pytest.raises(OSError):
        await trio.open_tcp_stream(host, port)


async def test_nothing_is_left_open() -> None:
    process = psutil.Process()
    descriptors, threads = process.num_fds(), threading.active_count()
    for _ in range(3):
        async with network(1) as one, network(2) as two:
            # The third comes later: it might be the first that one hears of.
            await join(one, two)
            async with network(3, bootstrap=one.addresses) as three:
                await next_event(three, PeerConnected)
    await trio.sleep(0.1)
    gc.collect()
    assert process.num_fds() <= descriptors
    assert threading.active_count() <= threads


async def test_status_names_the_peer() -> None:
    async with network(1) as one, network(2) as two:
        before = milliseconds()
        await join(one, two)
        await eventually(lambda: one.peers()[0].rtt_ms is not None)
        (status,) = one.peers()
        assert (status.key, status.address, status.direction) == (two.local_key, two.addresses[0], "outbound")
        assert status.rtt_ms is not None and status.rtt_ms > 0
        assert before <= status.connected_since_ms <= milliseconds()
        assert two.peers()[0].direction == "inbound"
