"""Over three thousand broken inputs, at every layer, to one live peer, which goes on serving."""

from __future__ import annotations

import random
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils.varint import encode_uvarint

from p2p_node.network.frames import Hello, Peers, Ping, application_frame, control_frame
from p2p_node.network.libp2p import host as host_module
from p2p_node.network.libp2p.gossip import MESHSUB
from p2p_node.network.libp2p.network import Libp2pNetwork
from p2p_node.network.port import FrameReceived, GossipReceived, PeerConnected
from protocols.limits import GRAYLIST_MS
from tests.network.hosts import LINK, TOPIC, Attacker, eventually, join, network, next_event, raw_host

MULTISTREAM = b"\x13/multistream/1.0.0\n"
NOISE = b"\x07/noise\n"


def mutated(valid: bytes, rng: random.Random) -> bytes:
    """``valid`` with bits flipped, bytes lost, doubled or put in, or its length prefix blown up."""
    data = bytearray(valid)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at : at + rng.randrange(1, 9)]
            case 2:
                data[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 3:
                data[at:at] = data[at : at + rng.randrange(1, 30)]
            case _:
                data[:4] = rng.randbytes(4)
    return bytes(data)


@asynccontextmanager
async def victim() -> AsyncIterator[Libp2pNetwork]:
    """A peer that forgives at once, so that a single attacker can go on; its events are drained."""
    now = [0]

    def clock() -> int:
        now[0] += 2 * GRAYLIST_MS
        return now[0]

    async with network(1, clock=clock) as target:
        yield target


async def serves(target: Libp2pNetwork) -> None:
    """The victim still takes connections, frames and gossip."""
    async with network(7) as friend:
        while target.events.statistics().current_buffer_used:
            target.events.receive_nowait()
        await join(friend, target)
        await friend.send(target.local_key, b"still there?")
        assert (await next_event(target, FrameReceived)).data == b"still there?"
        await friend.publish(TOPIC, b"news")
        assert (await next_event(target, GossipReceived)).data == b"news"


async def test_junk_on_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    # A handshake that junk has begun is waited for; that is the time that this test takes.
    monkeypatch.setattr(host_module, "UPGRADE_S", 1.0)
    rng = random.Random(1)
    valid = MULTISTREAM + NOISE + struct.pack("!H", 48) + rng.randbytes(48)
    async with victim() as target:
        host, port = target.addresses[0].split("/")[2], int(target.addresses[0].split("/")[4])
        for number in range(1_000):
            junk = mutated(valid, rng) if number % 4 else rng.randbytes(rng.randrange(1, 2_000))
            stream = await trio.open_tcp_stream(host, port)
            with suppress(trio.BrokenResourceError):
                await stream.send_all(junk)
            await stream.aclose()
            if number % 8 == 0:
                await eventually(lambda: target._swarm.admission.half_open == 0)
        await serves(target)


def rpcs(rng: random.Random) -> list[bytes]:
    """Valid gossip RPCs of every kind, framed."""
    message = rpc_pb2.Message(
        data=b"data",
        topicIDs=[TOPIC],
        from_id=b"\x00\x24\x08\x01\x12\x20" + rng.randbytes(32),
        seqno=rng.randbytes(8),
        signature=rng.randbytes(64),
        key=b"\x08\x01\x12\x20" + rng.randbytes(32),
    )
    control = rpc_pb2.ControlMessage()
    control.ihave.add(topicID=TOPIC, messageIDs=[rng.randbytes(20), b"\xff zz"])
    control.iwant.add(messageIDs=[rng.randbytes(46)])
    control.graft.add(topicID=TOPIC)
    control.prune.add(topicID=TOPIC, backoff=2**63, peers=[rpc_pb2.PeerInfo(peerID=b"zz")])
    subscription = rpc_pb2.RPC.SubOpts(subscribe=True, topicid=TOPIC)
    whole = [
        rpc_pb2.RPC(publish=[message]),
        rpc_pb2.RPC(control=control),
        rpc_pb2.RPC(subscriptions=[subscription], senderRecord=rng.randbytes(80)),
        rpc_pb2.RPC(publish=[message, message], control=control, subscriptions=[subscription]),
    ]
    return [encode_uvarint(len(raw := rpc.SerializeToString())) + raw for rpc in whole]


async def send_junk(attacker: Attacker, stream: INetStream | None, junk: bytes) -> INetStream | None:
    """Write to a gossip stream, opening what the victim has closed; None if it closed again."""
    for _ in range(3):
        try:
            if stream is None:
                if not attacker.swarm.get_connections(attacker.target_id):
                    await attacker.link()
                stream = await attacker.stream(MESHSUB)
            await stream.write(junk)
            return stream
        except Exception:
            # The victim is free to hang up at any point of this, and we must get to hear of it.
            stream = None
            await trio.sleep(0.01)
    return None


async def test_junk_on_the_gossip_stream() -> None:
    rng = random.Random(2)
    sent = 0
    async with victim() as target, raw_host(9) as (host, swarm):
        attacker = Attacker(host, swarm, target)
        stream: INetStream | None = None
        while sent < 2_000:
            for valid in rpcs(rng):
                junk = mutated(valid, rng) if rng.random() < 0.8 else valid
                stream = await send_junk(attacker, stream, junk)
                sent += stream is not None
        await serves(target)


async def test_junk_on_the_link() -> None:
    rng = random.Random(3)
    valid = [
        control_frame(Hello("test", ["/ip4/127.0.0.1/tcp/1/p2p/x"])),
        control_frame(Peers(["/ip4/127.0.0.1/tcp/1/p2p/x"])),
        control_frame(Ping(7)),
        application_frame(b"payload"),
    ]
    async with victim() as target, raw_host(9) as (host, swarm):
        attacker = Attacker(host, swarm, target)
        for number in range(150):
            try:
                stream = await attacker.link()
                for _ in range(3):
                    await stream.write(mutated(rng.choice(valid), rng))
            except Exception:
                continue
            finally:
                if number % 3 == 0:
                    await eventually(
                        lambda: not swarm.get_connections(attacker.target_id) or bool(target.peers())
                    )
                    await swarm.close_peer(attacker.target_id)
        await serves(target)


@pytest.mark.parametrize(
    "junk",
    [
        struct.pack("<I", 0xFFFFFFFF),
        struct.pack("<I", 0),
        struct.pack("<IB", 1, 0x02),
        struct.pack("<IB", 3, 0) + b"zz",
        control_frame(Hello("test", [])),
        control_frame(Peers(["x" * 250] * 32)),
    ],
)
async def test_a_bad_frame_costs_the_peer(junk: bytes) -> None:
    async with network(1) as target, raw_host(9) as (host, swarm):
        attacker = Attacker(host, swarm, target)
        stream = await attacker.link()
        await next_event(target, PeerConnected)
        await stream.write(junk)
        await eventually(lambda: target._standings.points(attacker.key) > 0)


async def test_a_frame_before_the_hello_costs_the_peer() -> None:
    async with network(1) as target, raw_host(9) as (host, swarm):
        attacker = Attacker(host, swarm, target)
        await attacker.connect()
        stream = await attacker.stream(LINK)
        await stream.write(application_frame(b"no hello"))
        await eventually(lambda: target._standings.points(attacker.key) > 0)
        assert target.peers() == []


async def test_yamux_junk_ends_that_connection_only() -> None:
    def header(kind: int, flags: int, stream: int, length: int) -> bytes:
        return struct.pack("!BBHII", 0, kind, flags, stream, length)

    rng = random.Random(4)
    attacks = [
        rng.randbytes(4_096),
        b"\x07" * 12,
        header(0, 1, 101, 0xFFFFFFFF) + b"zz",
        header(0, 0, 9_999, 4) + b"abcd",
        header(1, 1, 1_001, 0) * 2,
        header(1, 1, 1_003, 0xFFFFFFFF),
        header(3, 0, 0, 77),
        header(2, 1, 0, 5) * 50,
    ]
    async with victim() as target:
        for number, attack in enumerate(attacks):
            async with raw_host(20 + number) as (host, swarm):
                attacker = Attacker(host, swarm, target)
                await attacker.connect()
                (connection,) = swarm.get_connections(attacker.target_id)
                await connection.muxed_conn.secured_conn.write(attack)
                await trio.sleep(0.05)
        await serves(target)


async def test_stream_negotiation_junk_ends_that_stream_only() -> None:
    attacks = [
        random.Random(5).randbytes(4_096),
        MULTISTREAM + encode_uvarint(5) + b"\xff\xfe\xfd\xfc\n",
        MULTISTREAM + b"\xff" * 20,
        MULTISTREAM + encode_uvarint(3) + b"ls\n",
        MULTISTREAM[:5],
    ]
    async with victim() as target, raw_host(9) as (host, swarm):
        attacker = Attacker(host, swarm, target)
        await attacker.link()
        for attack in attacks:
            for connection in swarm.get_connections(attacker.target_id):
                stream = await connection.muxed_conn.open_stream()
                await stream.write(attack)
        await trio.sleep(0.2)
        await serves(target)


async def test_a_name_without_end_is_hung_up_on_before_the_handshake() -> None:
    async with victim() as target:
        _, _, host, _, port, *_ = target.addresses[0].split("/")
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all(MULTISTREAM + encode_uvarint(1 << 40))
            with trio.fail_after(3):  # Less than a handshake may take.
                try:
                    while await stream.receive_some(4_096):
                        await stream.send_all(bytes(4_096))
                except trio.BrokenResourceError:
                    pass
        await serves(target)
