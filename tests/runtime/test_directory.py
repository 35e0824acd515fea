"""The directory under a real runtime: over the simulated network, and over libp2p between hosts in a line."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import trio

from p2p_node.finding import Finder
from p2p_node.network.port import NetworkOpener
from p2p_node.network.simulated import open_internet
from protocols.effects import Notify
from protocols.places import place_of, workload_key
from tests.runtime.test_scenario import Peer, open_peer
from tests.support.deterministic_trio import run_deterministically


async def find_along_a_line(
    opener: NetworkOpener, clock: Callable[[], int], listen: list[str], *, peers: int
) -> None:
    """Each peer is told of the one before it; the first finds the last, and what only that one has."""
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        line: list[Peer] = []
        for index in range(peers):
            before = list(line[-1].core.capability.addresses) if line else []
            peer = await open_peer(
                stack, nursery, opener, clock, index=index, listen=listen, bootstrap=before
            )
            peer.core.discovery.directory.is_on = True
            line.append(peer)
            while index and not peer.core.connected:
                await trio.sleep(0.01)
        last, first = line[-1].core, line[0]
        key = workload_key("only here")
        others = [peer.core.discovery.directory for peer in line[1:-1]]
        # Housekeeping comes every ten seconds; here it is called until the records have been brought.
        while not all(one.store.get(key, clock()) for one in others):
            for peer in line:
                directory, now_ms = peer.core.discovery.directory, clock()
                keys = [place_of(peer.core.key)] + ([key] if peer is line[-1] else [])
                directory.provide(keys, peer.core.capability.addresses, now_ms)
                peer.runtime.perform(directory.keep_house(now_ms))
            await trio.sleep(0.2)
        network = first.runtime._network
        assert network is not None
        finder = Finder(first.runtime, network)

        def hear(note: Notify, now_ms: int) -> None:
            if note.event == "searched":
                finder.heard(note)

        first.runtime._on_notify = hear
        records = await finder.find(key)
        assert [record.signer for record in records] == [last.key]
        (found,) = await finder.find_peer(last.key)
        assert found.body.addresses == last.capability.addresses
        nursery.cancel_scope.cancel()


def test_over_the_simulated_network() -> None:
    async def main() -> None:
        start = trio.current_time()
        async with open_internet(seed=3) as internet:
            await find_along_a_line(
                internet.open_network,
                lambda: 1_700_000_000_000 + int((trio.current_time() - start) * 1_000),
                [],
                peers=6,
            )

    run_deterministically(main, seed=3)


def test_over_libp2p() -> None:
    from p2p_node.network.libp2p import open_network

    async def main() -> None:
        with trio.fail_after(60):
            await find_along_a_line(
                open_network, lambda: time.time_ns() // 1_000_000, ["/ip4/127.0.0.1/tcp/0"], peers=4
            )

    trio.run(main)
