"""A promise counts for what was shown, not for what it says."""

from __future__ import annotations

from p2p_node.core.paces import Paces
from protocols.digest import tagged
from protocols.limits import PACES_MAX

WORK, OTHER = ("lm.generate", bytes(32), "exact14"), ("lm.generate", bytes(32), "exact21")


def test_before_anybody_has_delivered_a_promise_is_all_there_is() -> None:
    assert Paces().believable_ms(b"a", WORK, units=100, promised_ms=7) == 7


def test_a_stranger_is_believed_down_to_the_best_pace_that_was_shown() -> None:
    paces = Paces()
    paces.observe(b"a", WORK, units=100, delivered_ms=2_000)
    paces.observe(b"b", WORK, units=100, delivered_ms=1_000)
    assert paces.believable_ms(b"c", WORK, units=50, promised_ms=1) == 500
    assert paces.believable_ms(b"c", WORK, units=50, promised_ms=900) == 900
    # What was shown at other work says nothing.
    assert paces.believable_ms(b"c", OTHER, units=50, promised_ms=1) == 1


def test_who_has_delivered_counts_with_its_own_pace() -> None:
    paces = Paces()
    paces.observe(b"a", WORK, units=100, delivered_ms=2_000)
    paces.observe(b"b", WORK, units=100, delivered_ms=1_000)
    assert paces.believable_ms(b"a", WORK, units=50, promised_ms=1) == 1_000
    # And wins its way back by delivering faster.
    for _ in range(20):
        paces.observe(b"a", WORK, units=100, delivered_ms=500)
    assert paces.believable_ms(b"a", WORK, units=50, promised_ms=1) < 300


def test_the_book_is_bounded() -> None:
    paces = Paces()
    for number in range(PACES_MAX + 5):
        paces.observe(tagged("p", number.to_bytes(4, "little")), WORK, units=1, delivered_ms=number + 10)
    assert len(paces._paces) == PACES_MAX
