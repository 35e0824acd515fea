"""Bulk streams keep the port's promises, over libp2p and in the simulated network alike."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import pytest
import trio

from p2p_node.network import simulated_bulk
from p2p_node.network.delayed import delayed
from p2p_node.network.libp2p import links, mends, speed
from p2p_node.network.libp2p.network import Libp2pNetwork
from p2p_node.network.port import BulkStream, FrameReceived, Network, PeerDisconnected, StreamBroken
from p2p_node.network.simulated import open_internet
from protocols.errors import Malformed
from protocols.limits import GRAYLIST_POINTS
from tests.network.hosts import join, network, next_event
from tests.network.test_simulated import node
from tests.support.deterministic_trio import run_deterministically

ECHO = "echo/1"
MIB = 1 << 20

Pair: TypeAlias = tuple[Network, Network]
Scenario: TypeAlias = Callable[[Network, Network], Awaitable[None]]


@asynccontextmanager
async def libp2p_pair() -> AsyncIterator[Pair]:
    async with network(1) as one, network(2) as two:
        await join(one, two)
        yield one, two


@asynccontextmanager
async def simulated_pair() -> AsyncIterator[Pair]:
    async with open_internet(seed=1) as internet, node(internet, 1) as one, node(internet, 2) as two:
        await one.dial(two.addresses[0])
        yield one, two


@pytest.fixture(params=["libp2p", "simulated"])
def play(request: pytest.FixtureRequest) -> Callable[[Scenario], None]:
    """Runs a scenario between two connected peers, in real time or under a mock clock."""

    def run(scenario: Scenario) -> None:
        opener = libp2p_pair if request.param == "libp2p" else simulated_pair

        async def main() -> None:
            with trio.fail_after(60):
                async with opener() as (one, two):
                    await scenario(one, two)

        if request.param == "libp2p":
            trio.run(main)
        else:
            run_deterministically(main)

    return run


async def received(stream: BulkStream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        data += await stream.receive()
    return bytes(data)


async def echo(stream: BulkStream) -> None:
    while True:
        await stream.send(await stream.receive())


async def never_read(stream: BulkStream) -> None:
    await trio.sleep_forever()


def test_bytes_come_in_order_and_back_from_whom_they_say(play: Callable[[Scenario], None]) -> None:
    async def scenario(one: Network, two: Network) -> None:
        openers = []

        async def serve(stream: BulkStream) -> None:
            openers.append(stream.peer)
            await echo(stream)

        two.serve_bulk(ECHO, serve)
        data = bytes(at % 251 for at in range(MIB + 17))
        streams = [await one.open_bulk(two.local_key, ECHO) for _ in range(2)]
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(stream.send, data)
            for stream in streams:
                assert stream.peer == two.local_key
                assert await received(stream, len(data)) == data
        assert openers == [one.local_key, one.local_key]
        for stream in streams:
            await stream.close()
            await stream.close()

    play(scenario)


def test_what_was_sent_before_closing_arrives_and_then_the_end(play: Callable[[Scenario], None]) -> None:
    async def scenario(one: Network, two: Network) -> None:
        async def answer_and_go(stream: BulkStream) -> None:
            await stream.send(await stream.receive())
            await stream.send(bytes(200_000))

        two.serve_bulk(ECHO, answer_and_go)
        stream = await one.open_bulk(two.local_key, ECHO)
        await stream.send(b"question")
        await trio.sleep(0.3)
        assert await received(stream, 200_008) == b"question" + bytes(200_000)
        for _ in range(2):
            with pytest.raises(StreamBroken):
                await stream.receive()
        await stream.close()

    play(scenario)


def test_a_closed_stream_ends_for_the_peer_too(play: Callable[[Scenario], None]) -> None:
    async def scenario(one: Network, two: Network) -> None:
        over = trio.Event()

        async def serve(stream: BulkStream) -> None:
            try:
                await echo(stream)
            finally:
                over.set()

        two.serve_bulk(ECHO, serve)
        stream = await one.open_bulk(two.local_key, ECHO)
        await stream.send(b"ping")
        assert await stream.receive() == b"ping"
        await stream.close()
        await over.wait()
        with pytest.raises(StreamBroken):
            await stream.send(b"late")
        assert [status.key for status in one.peers()] == [two.local_key]

    play(scenario)


def test_nobody_there_or_no_such_protocol(play: Callable[[Scenario], None]) -> None:
    async def scenario(one: Network, two: Network) -> None:
        with pytest.raises(StreamBroken, match="isn't connected"):
            await one.open_bulk(bytes(32), ECHO)
        with pytest.raises(StreamBroken):
            await one.open_bulk(two.local_key, "nothing/1")
        assert [status.key for status in one.peers()] == [two.local_key]

    play(scenario)


def test_a_handler_that_finds_fault_charges_the_peer_and_a_bug_charges_nobody(
    play: Callable[[Scenario], None],
) -> None:
    async def scenario(one: Network, two: Network) -> None:
        async def find_fault(stream: BulkStream) -> None:
            raise Malformed("junk")

        async def stumble(stream: BulkStream) -> None:
            raise ZeroDivisionError

        two.serve_bulk("strict/1", find_fault)
        two.serve_bulk("broken/1", stumble)
        for protocol, points in (("broken/1", 0), ("strict/1", Malformed.points)):
            stream = await one.open_bulk(two.local_key, protocol)
            with pytest.raises(StreamBroken):
                await stream.receive()
            assert [status.points for status in two.peers()] == [points]
            await stream.close()

    play(scenario)


def test_a_peer_that_is_refused_loses_its_streams(play: Callable[[Scenario], None]) -> None:
    async def scenario(one: Network, two: Network) -> None:
        two.serve_bulk(ECHO, echo)
        stream = await one.open_bulk(two.local_key, ECHO)
        await stream.send(b"ping")
        assert await stream.receive() == b"ping"
        two.penalise(one.local_key, GRAYLIST_POINTS, "test")
        with pytest.raises(StreamBroken):
            while True:
                await stream.receive()
        await stream.close()

    play(scenario)


def test_who_doesnt_read_is_cut_off_and_frames_pass_meanwhile(
    play: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "WINDOW_WAIT_S", 0.5)
    monkeypatch.setattr(simulated_bulk, "WINDOW_WAIT_S", 0.5)

    async def scenario(one: Network, two: Network) -> None:
        outcome: list[StreamBroken] = []
        over = trio.Event()

        async def flood(stream: BulkStream) -> None:
            try:
                while True:
                    await stream.send(bytes(MIB))
            except StreamBroken as error:
                outcome.append(error)
                over.set()
                raise

        two.serve_bulk("flood/1", flood)
        stream = await one.open_bulk(two.local_key, "flood/1")
        await trio.sleep(0.2)
        assert await one.send(two.local_key, b"frame")
        with trio.fail_after(5):
            async for event in two.events:
                if isinstance(event, FrameReceived):
                    break
        assert not outcome
        await over.wait()
        assert len(outcome) == 1
        assert [status.key for status in one.peers()] == [two.local_key]
        await stream.close()

    play(scenario)


def test_a_cancelled_send_ends_its_stream_and_nothing_else(play: Callable[[Scenario], None]) -> None:
    async def scenario(one: Network, two: Network) -> None:
        async def listen(heard: trio.Event) -> None:
            async for event in two.events:
                if isinstance(event, FrameReceived):
                    heard.set()

        two.serve_bulk("deaf/1", never_read)
        two.serve_bulk(ECHO, echo)
        # At many moments, in the middle of a frame too.
        for number in range(12):
            stream = await one.open_bulk(two.local_key, "deaf/1")
            with trio.move_on_after(0.0005 * number):
                await stream.send(bytes(16 * MIB))
            await stream.close()
        async with trio.open_nursery() as nursery:
            heard = trio.Event()
            nursery.start_soon(listen, heard)
            assert await one.send(two.local_key, b"still here")
            await heard.wait()
            nursery.cancel_scope.cancel()
        stream = await one.open_bulk(two.local_key, ECHO)
        await stream.send(b"ping")
        assert await stream.receive() == b"ping"
        await stream.close()

    play(scenario)


def test_a_partition_ends_streams_once_it_is_noticed() -> None:
    async def main() -> None:
        async with open_internet(seed=3) as internet, node(internet, 1) as one, node(internet, 2) as two:
            await one.dial(two.addresses[0])
            two.serve_bulk(ECHO, echo)
            stream = await one.open_bulk(two.local_key, ECHO)
            await stream.send(b"before")
            assert await stream.receive() == b"before"
            internet.partition([one.local_key], [two.local_key])
            began = trio.current_time()
            await stream.send(b"lost")
            with pytest.raises(StreamBroken):
                await stream.receive()
            assert 5 < trio.current_time() - began < 15

    run_deterministically(main)


def test_a_node_that_leaves_ends_its_streams() -> None:
    async def main() -> None:
        async with open_internet(seed=4) as internet, node(internet, 1) as one:
            async with node(internet, 2) as two:
                await one.dial(two.addresses[0])
                two.serve_bulk(ECHO, echo)
                stream = await one.open_bulk(two.local_key, ECHO)
            with pytest.raises(StreamBroken):
                await stream.receive()

    run_deterministically(main)


def test_delayed_streams_are_late_both_ways() -> None:
    async def main() -> None:
        async with (
            open_internet(seed=5) as internet,
            node(internet, 1) as one,
            node(internet, 2) as two,
            delayed(one, 400) as late_one,
            delayed(two, 400) as late_two,
        ):
            await late_one.dial(two.addresses[0])
            late_two.serve_bulk(ECHO, echo)
            stream = await late_one.open_bulk(two.local_key, ECHO)
            began = trio.current_time()
            await stream.send(b"ping")
            assert await stream.receive() == b"ping"
            assert trio.current_time() - began >= 0.8
            await stream.close()

    run_deterministically(main)


# --- libp2p alone -------------------------------------------------------------------------------


def stop_reading(of: Libp2pNetwork) -> Any:
    """Take the socket under a network's connection away from its reader, as a peer that hangs would."""
    (connection,) = of._swarm.get_connections()
    layer: Any = connection.muxed_conn.secured_conn.conn  # type: ignore[attr-defined]
    stream = layer.conn.stream

    async def never(n: int | None = None) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    stream.read = never
    return stream.stream.socket


@pytest.mark.parametrize("stuck", ["bulk", "link"])
async def test_a_link_ends_though_a_frame_is_stuck_in_its_connection(
    stuck: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mends, "_GOODBYE_S", 0.1)
    monkeypatch.setattr(links, "CLOSE_S", 0.3)
    # Nobody else may end it: not the peer either, whose pings go unanswered.
    monkeypatch.setattr(links, "SILENCE_S", 1_000)
    monkeypatch.setattr(links, "PING_EVERY_S", 2_000)
    async with network(1) as one, network(2) as two:
        await join(one, two)
        two.serve_bulk("deaf/1", never_read)
        bulk: Any = await one.open_bulk(two.local_key, "deaf/1")
        link: Any = one._links[two.local_key]
        stop_reading(two).setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        # More than both sockets hold; the window would stop it before.
        for stream in (bulk._stream, link._outbound):
            stream.muxed_stream.send_window = 1 << 40
        (connection,) = one._swarm.get_connections()
        muxed: Any = connection.muxed_conn
        async with trio.open_nursery() as nursery:

            async def flood() -> None:
                if stuck == "link":
                    for _ in range(15):
                        assert await one.send(two.local_key, bytes(MIB - 1))
                    return
                with pytest.raises(StreamBroken):
                    await bulk.send(bytes(64 * MIB))

            nursery.start_soon(flood)
            still = 0
            while still < 5:
                await trio.sleep(0.05)
                still = still + 1 if muxed._write_lock.locked() else 0
            link.end()
            await next_event(one, PeerDisconnected)
        assert one._swarm.get_connections() == []


async def test_frames_dont_wait_for_bulk() -> None:
    async with network(1) as one, network(2) as two:
        await join(one, two)

        async def swallow(stream: BulkStream) -> None:
            while True:
                await stream.receive()

        two.serve_bulk("bulk/1", swallow)
        sent = 0

        async def flood(stream: BulkStream) -> None:
            nonlocal sent
            while True:
                await stream.send(bytes(MIB))
                sent += 1

        async def answer() -> None:
            async for event in two.events:
                if isinstance(event, FrameReceived):
                    await two.send(event.peer, event.data)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood, await one.open_bulk(two.local_key, "bulk/1"))
            nursery.start_soon(answer)
            while sent < 4:
                await trio.sleep(0.005)
            worst = 0
            for number in range(10):
                before = sent
                await one.send(two.local_key, bytes([number]))
                assert (await next_event(one, FrameReceived)).data == bytes([number])
                worst = max(worst, sent - before)
            nursery.cancel_scope.cancel()
        # A queue of frames behind bulk would let a whole window of it, 4 MiB, pass first.
        assert worst < 4
