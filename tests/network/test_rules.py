"""The pure parts of the adapter: standing, allowances, admission, dialling, addresses, mDNS records."""

from __future__ import annotations

import random
import socket
import subprocess
import sys

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from p2p_node.network import interfaces
from p2p_node.network.dialplan import BACKOFF_LASTING_MAX_MS, FAILURES_MAX, BadAddress, DialPlan, peer_of
from p2p_node.network.interfaces import reachable_addresses
from p2p_node.network.libp2p import mdns
from p2p_node.network.libp2p.admission import Admission
from p2p_node.network.libp2p.mdns import from_text, to_text
from p2p_node.network.libp2p.varint import VarintSplitter
from p2p_node.network.standing import RateLimits, Standings
from protocols.errors import Malformed, Oversized
from protocols.identity import peer_id
from protocols.limits import (
    ADDRESSES_KNOWN_MAX,
    GRAYLIST_MS,
    GRAYLIST_POINTS,
    HALF_OPEN_MAX,
    HALF_OPEN_PER_ADDRESS_MAX,
    STANDING_HALF_LIFE_MS,
    STANDINGS_MAX,
)

LOCAL = bytes(32)


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def address(number: int, port: int = 4001) -> str:
    return f"/ip4/10.0.0.1/tcp/{port}/p2p/{peer_id(key(number))}"


class Clock:
    def __init__(self) -> None:
        self.ms = 1_000_000

    def __call__(self) -> int:
        return self.ms


# --- Standing -----------------------------------------------------------------------------------


def test_points_halve_with_time() -> None:
    clock = Clock()
    standings = Standings(clock)
    assert not standings.penalise(key(1), 40)
    clock.ms += STANDING_HALF_LIFE_MS
    assert standings.points(key(1)) == 20
    assert standings.points(key(2)) == 0


def test_enough_points_refuse_the_peer_until_its_time_is_over() -> None:
    clock = Clock()
    standings = Standings(clock)
    assert not standings.penalise(key(1), GRAYLIST_POINTS - 1)
    assert standings.penalise(key(1), 1)
    assert standings.refused(key(1))
    assert not standings.refused(key(2))
    clock.ms += GRAYLIST_MS - 1
    assert standings.refused(key(1))
    clock.ms += 1
    assert not standings.refused(key(1))
    assert standings.points(key(1)) == 0


def test_points_are_never_given_back() -> None:
    with pytest.raises(ValueError, match="points=-1"):
        Standings(Clock()).penalise(key(1), -1)


def test_a_flood_of_strangers_pushes_out_the_mildest() -> None:
    standings = Standings(Clock())
    standings.penalise(key(0), GRAYLIST_POINTS)
    standings.penalise(key(1), 50)
    for number in range(2, STANDINGS_MAX + 2):
        standings.penalise(key(number), 1)
    assert standings.refused(key(0))
    assert standings.points(key(1)) == 50


def test_an_allowance_refills() -> None:
    clock = Clock()
    rates = RateLimits(clock, per_second=10, burst=20)
    assert rates.take(key(1), 20)
    assert not rates.take(key(1), 1)
    assert rates.take(key(2), 1)
    clock.ms += 500
    assert rates.take(key(1), 5)
    assert not rates.take(key(1), 1)
    clock.ms += 60_000
    assert not rates.take(key(1), 21)
    assert rates.take(key(1), 20)


def test_admission_is_bounded_per_address_and_in_all() -> None:
    admission = Admission(lambda: 0.0)
    connections = [object() for _ in range(HALF_OPEN_MAX + 1)]
    for connection in connections[:HALF_OPEN_PER_ADDRESS_MAX]:
        assert admission.enter(connection, "10.0.0.1")
    assert not admission.enter(connections[-1], "10.0.0.1")
    admission.leave(connections[0])
    admission.leave(connections[0])
    assert admission.enter(connections[-1], "10.0.0.1")
    for number, connection in enumerate(connections[HALF_OPEN_PER_ADDRESS_MAX:-1]):
        assert admission.enter(connection, f"10.0.1.{number}")
    assert not admission.enter(connections[0], "10.0.2.1")
    assert admission.half_open == HALF_OPEN_MAX


# --- Dialling -----------------------------------------------------------------------------------


def plan(seed: int = 1) -> DialPlan:
    return DialPlan(LOCAL, random.Random(seed))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/ip4/10.0.0.1/tcp/1",
        f"/ip4/10.0.0.1/udp/1/p2p/{peer_id(key(1))}",
        f"/ip4/10.0.0.1/tcp/0/p2p/{peer_id(key(1))}",
        f"/ip4/10.0.0.1/tcp/65536/p2p/{peer_id(key(1))}",
        f"/ip4/10.0.0.1/tcp/x/p2p/{peer_id(key(1))}",
        f"/ip4/10.0.0.1/tcp/1/p2p/{peer_id(key(1))}x",
        f"/unix/10.0.0.1/tcp/1/p2p/{peer_id(key(1))}",
        f"/dns/{'x' * 300}/tcp/1/p2p/{peer_id(key(1))}",
    ],
)
def test_what_cannot_be_dialled_is_no_candidate(text: str) -> None:
    with pytest.raises(BadAddress):
        peer_of(text)
    assert not plan().consider(text)


def test_an_address_names_its_peer() -> None:
    assert peer_of(address(7)) == key(7)


def test_due_candidates_are_distinct_unconnected_peers() -> None:
    dials = plan()
    for number in range(1, 10):
        dials.add(address(number))
        dials.add(address(number, port=5_000))
    chosen = dials.next(20, {key(1), key(2)}, 0)
    assert sorted(map(peer_of, chosen)) == [key(number) for number in range(3, 10)]
    assert len(dials.next(3, set(), 0)) == 3


def test_we_are_no_candidate_of_ours() -> None:
    dials = plan()
    dials.add(f"/ip4/10.0.0.1/tcp/1/p2p/{peer_id(LOCAL)}")
    assert len(dials) == 0


def test_failures_wait_twice_as_long_each_time_and_success_forgives() -> None:
    dials = plan()
    dials.add(address(1))
    now, waits = 0, []
    for _ in range(6):
        dials.failed(address(1), now)
        wait = next(ms for ms in range(0, 10**6, 10) if dials.next(1, set(), now + ms))
        waits.append(wait)
        now += wait
    assert all(
        500 * 2 ** (n + 1) * 0.5 <= wait <= 500 * 2 ** (n + 1) * 1.5 + 10 for n, wait in enumerate(waits)
    )
    dials.succeeded(address(1))
    assert dials.next(1, set(), now) == [address(1)]


def test_the_operators_peers_wait_no_longer_than_a_few_seconds() -> None:
    dials = plan()
    dials.add(address(1), lasting=True)
    for _ in range(30):
        dials.failed(address(1), 0)
    assert dials.next(1, set(), int(1.5 * BACKOFF_LASTING_MAX_MS)) == [address(1)]


def test_what_keeps_failing_is_given_up_unless_the_operator_named_it() -> None:
    dials = plan()
    dials.add(address(1))
    dials.add(address(2), lasting=True)
    given_up = [dials.failed(address(1), 0) for _ in range(FAILURES_MAX)]
    assert given_up == [False] * (FAILURES_MAX - 1) + [True]
    assert not any(dials.failed(address(2), 0) for _ in range(50))
    assert len(dials) == 1


def test_candidates_are_bounded_and_the_operators_and_the_proven_stay() -> None:
    dials = plan()
    dials.add(address(1), lasting=True)
    dials.add(address(2))
    dials.succeeded(address(2))
    for number in range(3, ADDRESSES_KNOWN_MAX + 50):
        dials.add(address(number))
    assert len(dials) == ADDRESSES_KNOWN_MAX
    assert {address(1), address(2)} <= set(dials.next(ADDRESSES_KNOWN_MAX, set(), 0))


def test_one_seed_draws_one_order() -> None:
    def drawn(seed: int) -> list[str]:
        dials = plan(seed)
        for number in range(1, 50):
            dials.add(address(number))
        return dials.next(10, set(), 0)

    assert drawn(1) == drawn(1) != drawn(2)


# --- Addresses ----------------------------------------------------------------------------------


def test_everywhere_is_this_machines_addresses_loopback_last(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = {
        socket.AF_INET: ["127.0.0.1", "10.0.0.7"],
        socket.AF_INET6: ["::1", "fe80::1%eth0", "2001:db8::7"],
    }
    entries = [
        type("Entry", (), {"family": family, "address": host})()
        for family, all_ in hosts.items()
        for host in all_
    ]
    monkeypatch.setattr(interfaces.psutil, "net_if_addrs", lambda: {"eth0": entries})
    assert reachable_addresses(
        ["/ip4/0.0.0.0/tcp/1/p2p/x", "/ip6/::/tcp/1/p2p/x", "/ip4/1.2.3.4/tcp/1/p2p/x"]
    ) == [
        "/ip4/10.0.0.7/tcp/1/p2p/x",
        "/ip4/127.0.0.1/tcp/1/p2p/x",
        "/ip6/2001:db8::7/tcp/1/p2p/x",
        "/ip6/::1/tcp/1/p2p/x",
        "/ip4/1.2.3.4/tcp/1/p2p/x",
    ]


def test_addresses_travel_in_a_text_record() -> None:
    addresses = [address(1), address(2)]
    assert from_text(to_text([*addresses, "x" * 300])) == addresses


@given(record=st.binary(max_size=600))
def test_any_text_record_can_be_read(record: bytes) -> None:
    assert all(isinstance(text, str) for text in from_text(record))


async def test_without_multicast_discovery_gives_up_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_multicast() -> None:
        raise OSError("no multicast here")

    monkeypatch.setattr(mdns, "Zeroconf", no_multicast)
    found: list[str] = []
    with trio.fail_after(5):
        await mdns.advertise_and_browse([address(1)], found.append)
    assert found == []


def test_the_port_and_its_pure_parts_do_not_import_libp2p() -> None:
    modules = "port", "frames", "standing", "dialplan", "interfaces", "simulated"
    imports = "; ".join(f"import p2p_node.network.{module}" for module in modules)
    subprocess.run(
        [sys.executable, "-c", f"{imports}; import sys; assert 'libp2p' not in sys.modules"], check=True
    )


# --- Length prefixes ----------------------------------------------------------------------------


@given(pieces=st.lists(st.binary(max_size=400), max_size=8), cut=st.integers(1, 40))
def test_pieces_come_out_as_they_went_in(pieces: list[bytes], cut: int) -> None:
    stream = b"".join(prefix(len(piece)) + piece for piece in pieces)
    splitter = VarintSplitter(400)
    assert [
        piece for at in range(0, len(stream), cut) for piece in splitter.feed(stream[at : at + cut])
    ] == pieces


def prefix(size: int) -> bytes:
    encoded = b""
    while size >= 0x80:
        encoded += bytes([size & 0x7F | 0x80])
        size >>= 7
    return encoded + bytes([size])


@pytest.mark.parametrize(("stream", "error"), [(prefix(401), Oversized), (b"\xff" * 5, Malformed)])
def test_a_length_that_cannot_be_is_refused(stream: bytes, error: type[Malformed]) -> None:
    with pytest.raises(error):
        VarintSplitter(400).feed(stream)
