"""Who may connect: by the key of a private network, and by the operator's lists; on real hosts."""

from __future__ import annotations

import pytest
import trio

from p2p_node.network.access import access_of
from p2p_node.network.libp2p import host, upkeep
from p2p_node.network.libp2p.network import Libp2pNetwork
from p2p_node.network.port import DialFailed, FrameReceived, NetworkEvent, PeerRefused
from protocols.identity import peer_id
from tests.network.hosts import join, network, next_event

KEY, OTHER_KEY = b"\x01" * 32, b"\x02" * 32


@pytest.fixture(autouse=True)
def nobody_dials_by_himself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "DIALLED_PEERS_MIN", 0)


async def silence(of: Libp2pNetwork) -> list[NetworkEvent]:
    """What it hears within a moment."""
    heard: list[NetworkEvent] = []
    with trio.move_on_after(0.3):
        async for event in of.events:
            heard.append(event)
    return heard


# --- The key of a private network ------------------------------------------------------------------


async def test_peers_with_the_same_key_talk() -> None:
    async with network(1, network_key=KEY) as one, network(2, network_key=KEY) as two:
        await join(one, two)
        frame = bytes(range(256)) * 4_000
        assert await one.send(two.local_key, frame)
        assert (await next_event(two, FrameReceived)).data == frame
        assert one.peers()[0].address
        assert two.peers()[0].address


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(KEY, OTHER_KEY), (KEY, None), (None, KEY)],
    ids=["another", "none there", "none here"],
)
async def test_without_the_same_key_nobody_gets_in(
    ours: bytes | None, theirs: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "UPGRADE_S", 0.3)
    async with network(1, network_key=ours) as one, network(2, network_key=theirs) as two:
        with pytest.raises(DialFailed) as caught:
            await one.dial(two.addresses[0])
        assert ("network key" in str(caught.value)) is (ours is not None)
        assert await silence(two) == []
        assert one.peers() == two.peers() == []


async def test_not_a_byte_crosses_in_the_clear() -> None:
    """A stranger who only connects must not learn even that this is libp2p."""
    async with network(1, network_key=KEY) as one:
        _, _, host_, _, port, *_ = one.addresses[0].split("/")
        async with await trio.open_tcp_stream(host_, int(port)) as stream:
            await stream.send_all(b"\x13/multistream/1.0.0\n\x07/noise\n")
            heard = b""
            with trio.move_on_after(0.3):
                while part := await stream.receive_some(4_096):
                    heard += part
            assert heard
            assert not any(word in heard for word in (b"multistream", b"noise"))


async def test_each_connection_has_another_keystream() -> None:
    openings = set()
    async with network(1, network_key=KEY) as one:
        _, _, host_, _, port, *_ = one.addresses[0].split("/")
        for _ in range(2):
            async with await trio.open_tcp_stream(host_, int(port)) as stream:
                await stream.send_all(bytes(100))
                with trio.fail_after(5):
                    openings.add(await stream.receive_some(4_096))
    assert len(openings) == 2


# --- Lists -----------------------------------------------------------------------------------------


def lists_about(two: Libp2pNetwork) -> list[dict[str, list[str]]]:
    stranger = peer_id(b"\x07" * 32)
    return [
        {"deny_peers": [peer_id(two.local_key)]},
        {"deny_peers": [peer_id(two.local_key)], "allow_peers": [peer_id(two.local_key)]},
        {"allow_peers": [stranger]},
        {"deny_addresses": ["127.0.0.0/8"]},
        {"deny_addresses": ["127.0.0.1"], "allow_addresses": ["0.0.0.0/0"]},
        {"allow_addresses": ["192.0.2.0/24", "::1"]},
    ]


@pytest.mark.parametrize("number", range(6))
async def test_who_is_kept_out_is_neither_dialled_nor_let_in(number: int) -> None:
    async with network(2) as two, network(1, access=access_of(**lists_about(two)[number])) as one:
        with pytest.raises(PeerRefused, match="kept out by our lists"):
            await one.dial(two.addresses[0])
        with pytest.raises(DialFailed):
            await two.dial(one.addresses[0])
        assert await silence(one) == []


async def test_a_name_is_kept_out_once_it_is_resolved() -> None:
    async with network(2) as two, network(1, access=access_of(deny_addresses=["127.0.0.0/8"])) as one:
        with pytest.raises(DialFailed):
            await one.dial(two.addresses[0].replace("/ip4/127.0.0.1/", "/dns4/localhost/"))
        assert one.peers() == []


async def test_who_is_allowed_gets_in() -> None:
    async with network(2) as two:
        allowed = access_of(allow_peers=[peer_id(two.local_key)], allow_addresses=["127.0.0.0/8"])
        async with network(1, access=allowed) as one:
            await join(two, one)


@pytest.mark.parametrize(
    ("host", "refused"),
    [
        ("192.0.2.7", True),
        ("::ffff:192.0.2.7", True),
        ("198.51.100.7", False),
        ("2001:db8::7", True),
        ("fe80::1%eth0", False),
        ("example.org", False),
    ],
)
def test_addresses_of_both_families(host: str, refused: bool) -> None:
    assert access_of(deny_addresses=["192.0.2.0/24", "2001:db8::/32"]).refuses_host(host) is refused
