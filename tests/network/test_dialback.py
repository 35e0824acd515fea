"""Whether a peer can be reached, as others find out for it; on real hosts."""

from __future__ import annotations

import pytest

from p2p_node.network.libp2p import dialback, upkeep
from p2p_node.network.libp2p.network import Libp2pNetwork
from p2p_node.network.port import GossipReceived, StreamBroken
from p2p_node.network.reachability import DialledBack, Verdict, conclude, is_unreachable
from tests.network.hosts import TOPIC, eventually, free_port, join, network, next_event

ONE, TWO = b"\x01" * 32, b"\x02" * 32


@pytest.fixture(autouse=True)
def only_who_is_told_dials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "DIALLED_PEERS_MIN", 0)


async def test_a_peer_that_listens_is_reachable_and_its_links_are_left_alone() -> None:
    async with network(1) as one, network(2) as two:
        await join(one, two)
        port = int(one.addresses[0].split("/")[4])
        (found,) = await one.reachability()
        assert (found.address, found.state, found.remedy) == (f"127.0.0.1:{port}", "reachable", "")
        assert "same network" in found.reason
        assert [peer.key for peer in one.peers()] == [two.local_key]
        assert [peer.key for peer in two.peers()] == [one.local_key]
        # The dial was a connection of its own, and its end isn't the peer's.
        for sender, receiver in ((one, two), (two, one)):
            await sender.publish(TOPIC, sender.local_key)
            assert (await next_event(receiver, GossipReceived)).data == sender.local_key


async def test_a_port_that_nobody_answers_is_not_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    async with network(1) as one, network(2) as two:
        await join(one, two)
        closed = f"/ip4/127.0.0.1/tcp/{free_port()}"
        monkeypatch.setattr(Libp2pNetwork, "_direct_addresses", [closed])
        (found,) = await one.reachability()
        assert found.state == "not reachable"
        assert "forward TCP port" in found.remedy
        assert is_unreachable([found])


async def test_another_peers_port_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever answers must be the asker: a port that somebody else has doesn't count."""
    async with network(1) as one, network(2) as two, network(3) as three:
        await join(one, two)
        monkeypatch.setattr(Libp2pNetwork, "_direct_addresses", [three.addresses[0]])
        assert [found.state for found in await one.reachability()] == ["not reachable"]


async def test_one_address_is_served_seldom() -> None:
    async with network(1) as one, network(2) as two:
        await join(one, two)
        await one.reachability()
        (found,) = await one.reachability()
        assert (found.state, found.reason) == ("unknown", "peers were asked too often")
        assert not is_unreachable([found])


async def test_without_peers_nothing_is_known() -> None:
    async with network(1) as one:
        (found,) = await one.reachability()
        assert found.state == "unknown"
        assert "--bootstrap" in found.remedy


@pytest.mark.parametrize(
    "request_", [b"\0", b"\x05" + bytes(10), b"\x01\0\0", b"\x01\0\x01\0", b"\xff" * 300]
)
async def test_a_request_that_breaks_the_format_costs_its_sender(request_: bytes) -> None:
    async with network(1) as one, network(2) as two:
        await join(one, two)
        stream = await one.open_bulk(two.local_key, dialback.PROTOCOL)
        await stream.send(request_)
        with pytest.raises(StreamBroken):
            await stream.receive()
        await eventually(lambda: two.peers()[0].points > 0)


# --- What follows from the answers -----------------------------------------------------------------


def test_each_address_is_told_with_what_to_do() -> None:
    answers = [
        DialledBack(ONE, "198.51.100.7", 4150, Verdict.REACHABLE),
        DialledBack(TWO, "198.51.100.7", 4150, Verdict.UNREACHABLE),
        DialledBack(TWO, "2001:db8::7", 4151, Verdict.UNREACHABLE),
        DialledBack(TWO, "", 4152, Verdict.REFUSED),
    ]
    found = conclude(answers, [4150, 4151, 4152, 4153])
    assert [(entry.address, entry.state) for entry in found] == [
        ("198.51.100.7:4150", "reachable"),
        ("[2001:db8::7]:4151", "not reachable"),
        ("?:4152", "unknown"),
        ("?:4153", "unknown"),
    ]
    assert found[0].reason.startswith("1 of 2 peers")
    assert all(bool(entry.remedy) is (entry.state != "reachable") for entry in found)
    assert not is_unreachable(found)
    assert is_unreachable(found[1:])
    assert not is_unreachable(found[2:])
    assert not is_unreachable([])
