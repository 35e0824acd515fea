"""Peers that nobody can reach, reached through a third: real hosts on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio

from p2p_node.network.libp2p import circuits, upkeep
from p2p_node.network.libp2p.circuitwire import HOP, STOP
from p2p_node.network.libp2p.network import Libp2pNetwork
from p2p_node.network.port import BulkStream, DialFailed, FrameReceived, GossipReceived, PeerDisconnected
from p2p_node.network.relaypolicy import RelayPolicy
from protocols.identity import peer_id
from tests.network.hosts import TOPIC, Attacker, eventually, meshed, network, next_event, raw_host

VOLUNTEER = RelayPolicy(volunteer=True)


@pytest.fixture(autouse=True)
def only_who_is_told_dials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "DIALLED_PEERS_MIN", 0)
    monkeypatch.setattr(circuits, "ROUND_S", 0.05)


def hidden(number: int, **changes: Any) -> Any:
    """A peer that listens nowhere and wants to be reached."""
    return network(number, listen=[], is_unreachable=lambda: True, **changes)


@asynccontextmanager
async def behind(
    policy: RelayPolicy = VOLUNTEER, **changes: Any
) -> AsyncIterator[tuple[Libp2pNetwork, Libp2pNetwork, Libp2pNetwork]]:
    """A relay, and two peers behind it of which the second has its reservation."""
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(network(1, relay=policy, **changes))
        one = await stack.enter_async_context(network(2, listen=[], **changes))
        two = await stack.enter_async_context(hidden(3, **changes))
        for peer in (one, two):
            await peer.dial(relay.addresses[0])
        await eventually(lambda: bool(two.addresses))
        yield relay, one, two


@pytest.mark.parametrize("key", [None, b"\x05" * 32], ids=["public", "private"])
async def test_two_peers_that_listen_nowhere_talk(key: bytes | None) -> None:
    async with behind(network_key=key) as (relay, one, two):
        (address,) = two.addresses
        assert address == f"{relay.addresses[0]}/p2p-circuit/p2p/{peer_id(two.local_key)}"
        assert await one.dial(address) == two.local_key
        frame = bytes(range(256)) * 4_000
        for sender, receiver in ((one, two), (two, one)):
            assert await sender.send(receiver.local_key, frame)
            assert await next_event(receiver, FrameReceived) == FrameReceived(sender.local_key, frame)
        # Over the circuit itself, too, gossip flows.
        await meshed(one, two)
        await one.publish(TOPIC, b"news")
        assert (await next_event(two, GossipReceived)).data == b"news"


async def test_bulk_passes_at_the_volunteers_pace() -> None:
    policy = RelayPolicy(volunteer=True, bytes_per_s=8 << 20)
    async with behind(policy) as (_, one, two):
        received = 0

        async def take(stream: BulkStream) -> None:
            nonlocal received
            while received < 3 << 20:
                received += len(await stream.receive())
            await stream.send(b"done")

        two.serve_bulk("x/1", take)
        await one.dial(two.addresses[0])
        stream = await one.open_bulk(two.local_key, "x/1")
        began = trio.current_time()
        for _ in range(3):
            await stream.send(bytes(1 << 20))
        assert await stream.receive() == b"done"
        # At least what the rate asks for, less the slack; however slow the machine is.
        assert trio.current_time() - began > 0.1


async def test_when_the_relay_goes_the_circuit_and_the_address_go() -> None:
    async with behind() as (relay, one, two):
        await one.dial(two.addresses[0])
        await relay.close()
        assert (await next_event(one, PeerDisconnected)).peer in (relay.local_key, two.local_key)
        await eventually(lambda: not two.addresses)
        await eventually(lambda: not one.peers())


async def test_who_does_not_volunteer_relays_nothing() -> None:
    async with network(1) as relay, network(2, listen=[]) as one, hidden(3) as two:
        for peer in (one, two):
            await peer.dial(relay.addresses[0])
        await trio.sleep(0.3)
        assert two.addresses == []
        made_up = f"{relay.addresses[0]}/p2p-circuit/p2p/{peer_id(two.local_key)}"
        with pytest.raises(DialFailed, match="not supported"):
            await one.dial(made_up)


async def test_nobody_is_reached_who_has_not_reserved() -> None:
    """A volunteer is no way into a peer that doesn't want it."""
    async with network(1, relay=VOLUNTEER) as relay, network(2) as one, network(3) as two:
        for peer in (one, two):
            await peer.dial(relay.addresses[0])
        with pytest.raises(DialFailed, match="NO_RESERVATION"):
            await one.dial(f"{relay.addresses[0]}/p2p-circuit/p2p/{peer_id(two.local_key)}")


async def test_reservations_and_circuits_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = RelayPolicy(volunteer=True, max_reservations=1, max_circuits=1)
    async with behind(policy) as (relay, one, two), hidden(4) as late, network(5, listen=[]) as third:
        for peer in (late, third):
            await peer.dial(relay.addresses[0])
        await trio.sleep(0.2)
        assert late.addresses == []
        assert relay.relay is not None
        assert relay.relay.reserved == {two.local_key}
        await one.dial(two.addresses[0])
        with pytest.raises(DialFailed, match="RESOURCE_LIMIT_EXCEEDED"):
            await third.dial(two.addresses[0])
        # Places come back.
        await one.close()
        await eventually(lambda: relay.relay is not None and relay.relay.circuits == 0)
        await third.dial(two.addresses[0])


async def test_a_circuit_ends_with_its_time() -> None:
    async with behind(RelayPolicy(volunteer=True, circuit_s=1)) as (_, one, two):
        await one.dial(two.addresses[0])
        assert (await next_event(one, PeerDisconnected)).peer == two.local_key


async def test_a_relay_that_poses_as_the_peer_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async with behind() as (relay, one, two):
        stranger = peer_id(b"\x09" * 32)
        assert relay.relay is not None
        # It brings whoever asks for the stranger to the peer that it has.
        relay.relay._reserved[b"\x09" * 32] = relay.relay._reserved[two.local_key]
        with pytest.raises(DialFailed):
            await one.dial(f"{relay.addresses[0]}/p2p-circuit/p2p/{stranger}")
        assert [peer.key for peer in one.peers()] == [relay.local_key]


async def test_junk_instead_of_messages_ends_that_stream_only() -> None:
    async with behind() as (relay, one, two), raw_host(9) as (host, swarm):
        attacker = Attacker(host, swarm, relay)
        await attacker.link()
        for junk in (b"\xff" * 64, b"\x05abc", b"\x03\x08\x07\x08", b""):
            for protocol in (HOP, STOP):
                stream = await attacker.stream(protocol)
                await stream.write(junk or b"\0")
        await one.dial(two.addresses[0])
