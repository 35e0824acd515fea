"""Why a node isn't earning, in the order in which its operator should hear it."""

from __future__ import annotations

from typing import Any

import pytest

from p2p_node.activity import Activity, idle_reason
from protocols.effects import Notify


def declined(reason: str, **details: Any) -> Notify:
    return Notify(b"", "declined", {"reason": reason, "have": 0, "need": 0, "detail": "", **details})


BID = Notify(b"", "bid", {})
ENGAGED = Notify(b"", "engaged", {})
PRICE = declined("price", have=50, need=100)


@pytest.mark.parametrize(
    ("notes", "situation", "reason"),
    [
        ([], {"running": 1}, ""),
        ([], {"is_stopping": True}, "it is stopping"),
        ([], {"models": 0, "connected": 0}, "it offers no model"),
        ([], {"connected": 0}, "no peer is connected: give --bootstrap"),
        ([], {}, "no job has been offered"),
        ([BID, BID, PRICE], {}, "it bid 2 times and others won"),
        ([BID, ENGAGED], {}, "every job it took on is done"),
        ([PRICE], {}, "its price of 100 is above the ceiling, last 50: lower --price"),
        ([PRICE, declined("busy"), declined("busy")], {}, "any of 3 offers; 2 times because every slot"),
        ([declined("ram", have=1, need=2)], {}, "wants 2 bytes of memory, and it has 1"),
        ([declined("rate", have=1, need=2)], {}, "wants a rate of 2, and it has 1"),
        ([declined("context", have=1, need=2)], {}, "needs a context of 2 units, and its model has 1"),
        ([declined("standing")], {}, "the requester failed it before"),
        ([declined("profile", detail="runs exact14")], {}, "because runs exact14"),
        ([declined("paused")], {}, "because paused"),
        ([Notify(b"", "peer-advertised", {})], {}, "no job has been offered"),
    ],
)
def test_reasons(notes: list[Notify], situation: dict[str, Any], reason: str) -> None:
    activity = Activity()
    for note in notes:
        activity.hear(note)
    given = {"models": 1, "connected": 3, "running": 0} | situation
    found = idle_reason(activity, **given)
    assert reason in found if reason else found == ""


def test_the_newest_ceiling_is_told() -> None:
    activity = Activity()
    for ceiling in (80, 60, 70):
        activity.hear(declined("price", have=ceiling, need=100))
    assert "last 70" in idle_reason(activity, models=1, connected=1, running=0)
