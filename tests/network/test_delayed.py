"""The delayed network delivers everything, late and in order."""

from __future__ import annotations

import pytest
import trio

from p2p_node.network.delayed import delayed
from p2p_node.network.port import FrameReceived, GossipReceived, PeerConnected
from p2p_node.network.simulated import Conditions, open_internet
from tests.network.test_simulated import TOPIC, drained, node
from tests.support.deterministic_trio import run_deterministically

LATENCY_MS = 80


def test_frames_and_gossip_arrive_after_the_latency_and_in_order() -> None:
    async def main() -> None:
        quick = Conditions(delay_ms_min=0, delay_ms_max=0)
        async with (
            open_internet(seed=1, conditions=quick) as internet,
            node(internet, 1) as one,
            node(internet, 2) as two,
            delayed(one, LATENCY_MS) as late,
        ):
            await late.dial(two.addresses[0])
            await trio.sleep(1)
            assert drained(two) == [PeerConnected(one.local_key, one.addresses[0])]
            for number in range(5):
                assert await late.send(two.local_key, bytes([number]))
            await late.publish(TOPIC, b"news")
            await trio.sleep(LATENCY_MS / 1_000 - 0.001)
            assert drained(two) == []
            await trio.sleep(0.002)
            *frames, news = drained(two)
            assert frames == [FrameReceived(one.local_key, bytes([number])) for number in range(5)]
            assert news == GossipReceived(TOPIC, b"news", one.local_key)

    run_deterministically(main)


def test_a_stranger_is_not_sent_to() -> None:
    async def main() -> None:
        async with (
            open_internet(seed=1) as internet,
            node(internet, 1) as one,
            delayed(one, LATENCY_MS) as late,
        ):
            assert not await late.send(bytes(32), b"frame")

    run_deterministically(main)


def test_a_latency_below_1_ms_is_refused() -> None:
    async def main() -> None:
        async with open_internet(seed=1) as internet, node(internet, 1) as one:
            with pytest.raises(ValueError, match="latency_ms=0 must be at least 1"):
                async with delayed(one, 0):
                    pass

    run_deterministically(main)
