"""Bounds by address range: what one /24 or /48 may take of us, however many keys it comes with."""

from __future__ import annotations

import pytest

from p2p_node.network.libp2p.admission import Admission, range_of
from p2p_node.network.standing import Pace
from protocols.limits import (
    CONNECTIONS_PER_RANGE_MAX,
    GRAYLIST_MS,
    HALF_OPEN_PER_ADDRESS_MAX,
    RANGE_CONNECTIONS_BURST,
    RANGE_CONNECTIONS_PER_SECOND,
    RANGE_FAULTS_MAX,
    RANGES_MAX,
)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("10.1.2.3", "10.1.2.0/24"),
        ("10.1.2.255", "10.1.2.0/24"),
        ("::ffff:10.1.2.3", "10.1.2.0/24"),
        ("2001:db8:1:2::3", "2001:db8:1::/48"),
        ("fe80::1%eth0", "fe80::/48"),
        ("127.9.9.9", "127.9.9.0/24"),
        ("127.0.0.1", None),
        ("::1", None),
        ("", None),
        ("a name", None),
    ],
)
def test_an_address_belongs_to_a_range(host: str, name: str | None) -> None:
    assert range_of(host) == name


def opened(admission: Admission, count: int, *, start: int = 0) -> list[object]:
    """As many connections from one range, each upgraded at once; those that were let in."""
    inside = []
    for number in range(start, start + count):
        connection = object()
        if admission.enter(connection, f"10.0.0.{number % 250}"):
            admission.leave(connection)
            inside.append(connection)
    return inside


def test_a_range_holds_its_share_of_connections_and_no_more() -> None:
    admission = Admission(Clock())
    inside = opened(admission, CONNECTIONS_PER_RANGE_MAX + 10)
    assert len(inside) == CONNECTIONS_PER_RANGE_MAX
    assert admission.enter(object(), "10.0.1.1"), "another range isn't concerned"
    admission.end(inside[0])
    admission.end(inside[0])
    assert len(opened(admission, 2)) == 1


def test_a_range_opens_connections_at_a_pace() -> None:
    clock = Clock()
    admission = Admission(clock)
    for connection in opened(admission, CONNECTIONS_PER_RANGE_MAX):
        admission.end(connection)
    rest = RANGE_CONNECTIONS_BURST - CONNECTIONS_PER_RANGE_MAX
    for connection in opened(admission, rest + 5):
        admission.end(connection)
    assert opened(admission, 1) == []
    clock.now_s += 2
    assert len(opened(admission, 100)) == 2 * RANGE_CONNECTIONS_PER_SECOND


def test_faults_of_many_keys_fall_back_on_their_range_for_a_while() -> None:
    clock = Clock()
    admission = Admission(clock)
    for _ in range(RANGE_FAULTS_MAX):
        connection = object()
        assert admission.enter(connection, "2001:db8::1")
        admission.end(connection)
        admission.fault("2001:db8::1")
    assert not admission.enter(object(), "2001:db8:0:ffff::2")
    assert admission.enter(object(), "2001:db8:1::1")
    clock.now_s += GRAYLIST_MS / 1_000
    assert admission.enter(object(), "2001:db8:0:ffff::2")


def test_now_and_then_a_fault_is_forgiven() -> None:
    clock = Clock()
    admission = Admission(clock)
    for _ in range(4 * RANGE_FAULTS_MAX):
        admission.fault("10.0.0.1")
        clock.now_s += GRAYLIST_MS / 1_000
    assert admission.enter(object(), "10.0.0.1")


def test_this_machine_is_bound_by_address_only() -> None:
    admission = Admission(Clock())
    for _ in range(3 * RANGE_CONNECTIONS_BURST):
        connection = object()
        assert admission.enter(connection, "127.0.0.1")
        admission.leave(connection)
    held = [object() for _ in range(HALF_OPEN_PER_ADDRESS_MAX)]
    assert all(admission.enter(connection, "127.0.0.1") for connection in held)
    assert not admission.enter(object(), "127.0.0.1")


def test_ranges_are_forgotten_in_time() -> None:
    admission = Admission(Clock())
    for number in range(RANGES_MAX + 100):
        connection = object()
        assert admission.enter(connection, f"10.{number // 256}.{number % 256}.1")
        admission.end(connection)
    assert len(admission._ranges) <= RANGES_MAX


def test_what_comes_faster_than_the_pace_waits_and_a_rest_is_credited() -> None:
    clock = Clock()
    pace = Pace(clock, per_second=10, burst=5)
    assert [round(pace.wait_s(b"a"), 3) for _ in range(8)] == [0, 0, 0, 0, 0, 0.1, 0.2, 0.3]
    assert pace.wait_s(b"b") == 0, "others aren't concerned"
    clock.now_s += 0.5
    assert round(pace.wait_s(b"a"), 3) == 0
    clock.now_s += 100
    assert [pace.wait_s(b"a") for _ in range(5)] == [0] * 5
    assert pace.wait_s(b"a") > 0
