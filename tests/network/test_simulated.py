"""The simulated network keeps the port's promises, and does the same thing every time."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from p2p_node.network.port import (
    DialFailed,
    FrameReceived,
    GossipReceived,
    NetworkMismatch,
    PeerConnected,
    PeerDisconnected,
    PeerKey,
    PeerRefused,
)
from p2p_node.network.simulated import Conditions, SimulatedInternet, SimulatedNetwork, open_internet
from protocols.limits import GRAYLIST_MS, GRAYLIST_POINTS
from protocols.rulings import Ruling
from tests.network.books import MemoryBook
from tests.support.deterministic_trio import run_deterministically

TOPIC = "/p2p-node/test/jobs/1"


@asynccontextmanager
async def node(
    internet: SimulatedInternet,
    number: int,
    *,
    bootstrap: list[str] | None = None,
    rule: Callable[[str, bytes, PeerKey], Ruling] = lambda topic, data, forwarder: Ruling.ACCEPT,
    network_name: str = "test",
) -> AsyncIterator[SimulatedNetwork]:
    async with internet.open_network(
        seed=bytes([number]) * 32,
        listen=[],
        topics=[TOPIC],
        rule=rule,
        network_name=network_name,
        bootstrap=bootstrap or [],
        address_book=MemoryBook(),
        mdns=False,
        jitter=random.Random(number),
        clock=lambda: int(trio.current_time() * 1_000),
    ) as network:
        yield network


def drained(network: SimulatedNetwork) -> list[object]:
    events: list[object] = []
    while True:
        try:
            events.append(network.events.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            return events


def test_frames_arrive_in_order_from_whom_they_say() -> None:
    async def main() -> None:
        async with open_internet(seed=1) as internet, node(internet, 1) as one, node(internet, 2) as two:
            assert await one.dial(two.addresses[0]) == two.local_key
            for number in range(20):
                assert await one.send(two.local_key, bytes([number]))
            await trio.sleep(1)
            connected, *frames = drained(two)
            assert connected == PeerConnected(one.local_key, one.addresses[0])
            assert frames == [FrameReceived(one.local_key, bytes([number])) for number in range(20)]

    run_deterministically(main)


def test_gossip_reaches_everyone_once_but_not_its_author() -> None:
    async def main() -> None:
        async with open_internet(seed=2) as internet, AsyncExitStack() as stack:
            first = await stack.enter_async_context(node(internet, 1))
            others = [
                await stack.enter_async_context(node(internet, number, bootstrap=first.addresses))
                for number in range(2, 12)
            ]
            await trio.sleep(10)
            for network in [first, *others]:
                drained(network)
            await first.publish(TOPIC, b"offer")
            await trio.sleep(2)
            assert drained(first) == []
            for network in others:
                (heard,) = drained(network)
                assert isinstance(heard, GossipReceived) and heard.data == b"offer"

    run_deterministically(main)


def test_only_those_on_a_topic_hear_it() -> None:
    async def main() -> None:
        async with open_internet(seed=2) as internet, node(internet, 1) as one, node(internet, 2) as two:
            await one.dial(two.addresses[0])
            await one.join("room")
            await one.publish("room", b"nobody hears")
            await trio.sleep(1)
            await two.join("room")
            await one.publish("room", b"heard")
            await trio.sleep(1)
            assert [e.data for e in drained(two) if isinstance(e, GossipReceived)] == [b"heard"]
            await two.leave("room")
            with pytest.raises(ValueError, match="room"):
                await two.publish("room", b"")

    run_deterministically(main)


@pytest.mark.parametrize(
    ("ruling", "delivered", "points"), [(Ruling.ACCEPT, 1, 0), (Ruling.IGNORE, 0, 0), (Ruling.REJECT, 0, 10)]
)
def test_the_rule_decides(ruling: Ruling, delivered: int, points: int) -> None:
    async def main() -> None:
        async with (
            open_internet(seed=3) as internet,
            node(internet, 1) as one,
            node(internet, 2, rule=lambda topic, data, forwarder: ruling) as two,
        ):
            await one.dial(two.addresses[0])
            await one.publish(TOPIC, b"offer")
            await trio.sleep(1)
            assert sum(isinstance(event, GossipReceived) for event in drained(two)) == delivered
            assert [status.points for status in two.peers()] == [points]

    run_deterministically(main)


def test_a_partition_cuts_and_heals() -> None:
    async def main() -> None:
        async with (
            open_internet(seed=4) as internet,
            node(internet, 1) as one,
            node(internet, 2, bootstrap=one.addresses) as two,
        ):
            await trio.sleep(1)
            drained(two)
            internet.partition([one.local_key], [two.local_key])
            await one.send(two.local_key, b"lost")
            await trio.sleep(10)
            assert drained(two) == [PeerDisconnected(one.local_key)]
            internet.heal()
            await trio.sleep(60)
            assert [type(event) for event in drained(two)] == [PeerConnected]

    run_deterministically(main)


def test_a_refused_peer_is_let_back_in_when_its_time_is_over() -> None:
    async def main() -> None:
        async with open_internet(seed=5) as internet, node(internet, 1) as one, node(internet, 2) as two:
            await one.dial(two.addresses[0])
            two.penalise(one.local_key, GRAYLIST_POINTS, "test")
            await trio.sleep(1)
            assert two.peers() == [] and one.peers() == []
            with pytest.raises(PeerRefused):
                await two.dial(one.addresses[0])
            with pytest.raises(DialFailed):
                await one.dial(two.addresses[0])
            await trio.sleep(GRAYLIST_MS / 1_000)
            assert await one.dial(two.addresses[0]) == two.local_key

    run_deterministically(main)


def test_another_network_is_refused() -> None:
    async def main() -> None:
        async with (
            open_internet(seed=6) as internet,
            node(internet, 1) as one,
            node(internet, 2, network_name="other") as two,
        ):
            with pytest.raises(NetworkMismatch):
                await one.dial(two.addresses[0])

    run_deterministically(main)


def test_a_node_that_leaves_is_missed() -> None:
    async def main() -> None:
        async with open_internet(seed=7) as internet, node(internet, 1) as one:
            async with node(internet, 2) as two:
                await one.dial(two.addresses[0])
                gone = two.local_key
            await trio.sleep(1)
            assert drained(one)[-1] == PeerDisconnected(gone)
            assert not await one.send(gone, b"frame")

    run_deterministically(main)


def story(seed: int) -> list[tuple[float, bytes, object]]:
    """Everything eight nodes hear under bad weather, in order."""
    heard: list[tuple[float, bytes, object]] = []

    async def listen(network: SimulatedNetwork) -> None:
        async for event in network.events:
            heard.append((trio.current_time(), network.local_key, event))

    async def main() -> None:
        weather = Conditions(delay_ms_min=0, delay_ms_max=50, loss=0.1, duplication=0.1)
        async with open_internet(seed=seed, conditions=weather) as internet, AsyncExitStack() as stack:
            nursery = await stack.enter_async_context(trio.open_nursery())
            nodes: list[SimulatedNetwork] = []
            for number in range(1, 9):
                bootstrap = nodes[0].addresses if nodes else []
                nodes.append(await stack.enter_async_context(node(internet, number, bootstrap=bootstrap)))
                nursery.start_soon(listen, nodes[-1])
            await trio.sleep(5)
            for network in nodes:
                await network.publish(TOPIC, network.local_key)
                for status in network.peers():
                    await network.send(status.key, b"to " + status.key)
            await trio.sleep(5)
            nursery.cancel_scope.cancel()

    run_deterministically(main, seed=seed)
    return heard


def test_one_seed_tells_one_story() -> None:
    assert story(1) == story(1)
    assert story(1) != story(2)


def test_losses_and_duplicates_happen() -> None:
    async def main() -> None:
        weather = Conditions(loss=0.2, duplication=0.2)
        async with (
            open_internet(seed=8, conditions=weather) as internet,
            node(internet, 1) as one,
            node(internet, 2) as two,
        ):
            await one.dial(two.addresses[0])
            for number in range(200):
                await one.send(two.local_key, bytes([number]))
            await trio.sleep(5)
            frames = [event.data for event in drained(two) if isinstance(event, FrameReceived)]
            assert len(set(frames)) < 200
            assert len(frames) > len(set(frames))
            assert frames == sorted(frames)

    run_deterministically(main)
