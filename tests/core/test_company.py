"""Links made for company end again, once they are too many and idle."""

from __future__ import annotations

from p2p_node.core.company import GREETED_IDLE_MS, GREETED_MAX, GREETING_MS, Company
from p2p_node.sim.scenario import MODEL
from protocols.effects import HangUp
from protocols.messages import MembersWant, SyncSummary
from tests.support.builders import NOW_MS, signed

LATER_MS = NOW_MS + GREETED_IDLE_MS
QUESTION = signed(1, MembersWant("sim.hash", MODEL, 1, 0))
SUMMARY = signed(1, SyncSummary(()))


def peer(number: int) -> bytes:
    return bytes([number]) * 32


def company(count: int) -> Company:
    connected = {peer(number) for number in range(count)}
    greeted = Company(connected)
    for number in range(count):
        greeted.greeted(peer(number), NOW_MS)
    return greeted


def ended(greeted: Company, now_ms: int, *, near: frozenset[bytes] = frozenset()) -> list[bytes]:
    hung_up = greeted.review(now_ms, keep=GREETED_MAX, is_near=near.__contains__)
    assert all(isinstance(act, HangUp) for act in hung_up)
    return [act.peer for act in hung_up]


def test_the_oldest_idle_links_end_beyond_a_number() -> None:
    greeted = company(GREETED_MAX + 3)
    assert ended(greeted, LATER_MS - 1) == []
    assert ended(greeted, LATER_MS) == [peer(0), peer(1), peer(2)]
    assert ended(greeted, LATER_MS) == []
    assert len(greeted) == GREETED_MAX


def test_links_to_our_rooms_are_kept_before_others() -> None:
    greeted = company(GREETED_MAX + 1)
    near = frozenset(peer(number) for number in range(GREETED_MAX))
    assert ended(greeted, LATER_MS, near=near) == [peer(GREETED_MAX)]


def test_a_link_that_serves_something_goes_on() -> None:
    greeted = company(GREETED_MAX + 2)
    greeted.used(peer(0), QUESTION, NOW_MS + 1)
    # Every link brings comparisons with it, whatever it is there for.
    greeted.used(peer(1), SUMMARY, NOW_MS + 1)
    assert ended(greeted, LATER_MS) == [peer(1), peer(2)]


def test_only_links_of_our_making_are_ended() -> None:
    connected = {peer(number) for number in range(40)}
    greeted = Company(connected)
    greeted.greeted(peer(41), NOW_MS)
    assert ended(greeted, LATER_MS) == []
    assert len(greeted) == 0, "nobody came of that greeting"
    greeted.greeted(peer(42), NOW_MS)
    ended(greeted, NOW_MS + GREETING_MS - 1)
    assert len(greeted) == 1
