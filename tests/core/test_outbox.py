"""Direct messages arrive at least once, or are given up; nobody's silence fills the box."""

from __future__ import annotations

import pytest

from p2p_node.core.outbox import Outbox, Transmit, message_frame
from protocols.effects import Persist, Send, SetTimer
from protocols.limits import OUTBOX_MESSAGES_MAX, OUTBOX_MESSAGES_PER_PEER_MAX
from protocols.messages import Cancel, VoucherReceipt
from tests.support.builders import NOW_MS, key, signed

PEER = key(9)


def cancel(number: int = 0, peer: bytes = PEER, until_ms: int = NOW_MS + 60_000) -> Send:
    return Send(peer, signed(0, Cancel(number.to_bytes(32, "big"), "over")), until_ms)


def receipt(number: int = 0, until_ms: int = NOW_MS + 60_000) -> Send:
    return Send(PEER, signed(0, VoucherReceipt(number.to_bytes(32, "big"), 5)), until_ms)


def test_a_message_is_sent_and_a_retry_is_set() -> None:
    effect = cancel()
    assert Outbox().send(effect, NOW_MS) == [
        SetTimer(("outbox", PEER, effect.message.id), NOW_MS + 500),
        Transmit(PEER, message_frame(effect.message.raw)),
    ]


def test_retries_come_at_growing_intervals_until_it_is_too_late() -> None:
    box, effect = Outbox(), cancel(until_ms=NOW_MS + 30_000)
    box.send(effect, NOW_MS)
    now_ms, gaps = NOW_MS + 500, []
    while True:
        acts = box.retry(PEER, effect.message.id, now_ms)
        if not acts:
            break
        transmit, timer = acts
        assert transmit == Transmit(PEER, message_frame(effect.message.raw))
        assert isinstance(timer, SetTimer)
        gaps.append(timer.at_ms - now_ms)
        now_ms = timer.at_ms
    assert gaps[:5] == [1_000, 2_000, 4_000, 5_000, 5_000]
    assert now_ms >= NOW_MS + 30_000 and len(box) == 0


def test_an_acknowledgement_ends_it() -> None:
    box, effect = Outbox(), cancel()
    box.send(effect, NOW_MS)
    assert box.acknowledged(key(8), effect.message.id) == []
    assert len(box) == 1
    assert box.acknowledged(PEER, effect.message.id) == []
    assert len(box) == 0
    assert box.retry(PEER, effect.message.id, NOW_MS + 500) == []


def test_the_same_message_waits_once() -> None:
    box, effect = Outbox(), cancel()
    box.send(effect, NOW_MS)
    assert box.send(effect, NOW_MS) == []


def test_what_is_worth_money_is_written_down_first_and_struck_out_last() -> None:
    box, effect = Outbox(), receipt()
    first = box.send(effect, NOW_MS)[0]
    assert isinstance(first, Persist) and first.value is not None
    assert (first.table, first.key) == ("outbox", PEER + effect.message.id)
    assert box.acknowledged(PEER, effect.message.id) == [Persist("outbox", first.key, None)]


def test_a_restart_goes_on_delivering() -> None:
    effect = receipt()
    [stored] = [act for act in Outbox().send(effect, NOW_MS) if isinstance(act, Persist)]
    assert stored.value is not None
    box = Outbox()
    assert box.restore(stored.key, stored.value, NOW_MS + 1_000) == [
        SetTimer(("outbox", PEER, effect.message.id), NOW_MS + 1_500)
    ]
    assert Transmit(PEER, message_frame(effect.message.raw)) in box.retry(
        PEER, effect.message.id, NOW_MS + 1_500
    )


def test_a_restart_drops_what_is_too_late() -> None:
    [stored] = [act for act in Outbox().send(receipt(), NOW_MS) if isinstance(act, Persist)]
    assert stored.value is not None
    box = Outbox()
    assert box.restore(stored.key, stored.value, NOW_MS + 60_001) == [Persist("outbox", stored.key, None)]
    assert len(box) == 0


def test_a_peer_that_comes_back_gets_what_waits_for_it() -> None:
    box, mine, other = Outbox(), cancel(1), cancel(2, peer=key(8))
    box.send(mine, NOW_MS)
    box.send(other, NOW_MS)
    assert box.flush(PEER) == [Transmit(PEER, message_frame(mine.message.raw))]


@pytest.mark.parametrize("build", [cancel, receipt])
def test_one_silent_peer_cannot_fill_the_box(build: object) -> None:
    box = Outbox()
    assert callable(build)
    for number in range(OUTBOX_MESSAGES_PER_PEER_MAX):
        box.send(build(number), NOW_MS)
    last = build(OUTBOX_MESSAGES_PER_PEER_MAX)
    assert box.send(last, NOW_MS) == [Transmit(PEER, message_frame(last.message.raw))]
    assert len(box) == OUTBOX_MESSAGES_PER_PEER_MAX
    assert len(box.send(cancel(0, peer=key(8)), NOW_MS)) == 2
    box.acknowledged(PEER, build(0).message.id)
    assert len(box.send(last, NOW_MS)) > 1


def test_many_silent_peers_leave_room_for_money() -> None:
    box = Outbox()
    for number in range(OUTBOX_MESSAGES_MAX):
        box.send(cancel(number, peer=key(10 + number % 8)), NOW_MS)
    assert len(box.send(cancel(0, peer=key(30)), NOW_MS)) == 1
    assert len(box.send(receipt(), NOW_MS)) == 3
