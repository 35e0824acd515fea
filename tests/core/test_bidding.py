"""Whether to bid, and the smallest change that would have got one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from p2p_node.sim.scenario import MODEL, sim_capability
from protocols.bidding import BidPlan, Capacity, DeclineReason, consider
from protocols.limits import RESERVATION_MS_MAX
from protocols.messages import BlobRecord
from tests.support.builders import NOW_MS, key, offer

FREE = Capacity(slots_free=1, slots_total=2, busy_for_ms=0)
ABILITIES = sim_capability(price_micros=100, rate_milli=200_000).abilities


def decide(capacity: Capacity = FREE, **fields: Any) -> BidPlan | DeclineReason:
    job = msgspec.structs.replace(offer().body, **fields)
    return consider(job, own_key=key(1), abilities=ABILITIES, capacity=capacity)


def test_a_plan_names_price_time_and_device() -> None:
    # 64 units at 200 a second, after what runs already.
    plan = decide(Capacity(slots_free=1, slots_total=2, busy_for_ms=50))
    assert plan == BidPlan(price_micros=100, eta_ms=370, rate_milli=200_000, device="cpu", warm=True)


@pytest.mark.parametrize(
    ("fields", "reason", "have", "need"),
    [
        ({"exclude": (key(1),)}, "excluded", 0, 0),
        ({"workload": "other"}, "workload", 0, 1),
        ({"model": bytes(32)}, "model", 0, 1),
        ({"profile": "native"}, "profile", 0, 0),
        ({"input_units": 4_096}, "context", 4_096, 4_160),
        ({"ram_bytes_min": 2 << 30}, "ram", 1 << 30, 2 << 30),
        ({"rate_milli_min": 200_001}, "rate", 200_000, 200_001),
        ({"price_micros_max": 99}, "price", 99, 100),
        (
            {"bids_close_ms": NOW_MS + RESERVATION_MS_MAX + 1},
            "window",
            RESERVATION_MS_MAX,
            RESERVATION_MS_MAX + 1,
        ),
    ],
)
def test_reasons_say_what_there_is_and_what_it_takes(
    fields: dict[str, Any], reason: str, have: int, need: int
) -> None:
    decline = decide(**fields)
    assert isinstance(decline, DeclineReason)
    assert (decline.reason, decline.have, decline.need) == (reason, have, need)


def test_nobody_bids_on_files_that_it_cant_hold() -> None:
    files = (BlobRecord(bytes(32), 600), BlobRecord(bytes(32), 401))
    roomy, tight = (Capacity(1, 2, 0, blob_bytes_free=room) for room in (1_001, 1_000))
    assert isinstance(decide(roomy, blobs=files), BidPlan)
    assert decide(tight, blobs=files) == DeclineReason("storage", have=1_000, need=1_001)


@pytest.mark.parametrize(
    ("capacity", "reason"),
    [(Capacity(0, 2, 0), "busy"), (Capacity(1, 2, 0, is_paused=True), "paused")],
)
def test_what_is_not_free_is_not_promised(capacity: Capacity, reason: str) -> None:
    decline = decide(capacity)
    assert isinstance(decline, DeclineReason) and decline.reason == reason


def test_bounds_are_inclusive() -> None:
    exact = {
        "input_units": 4_032,
        "ram_bytes_min": 1 << 30,
        "rate_milli_min": 200_000,
        "price_micros_max": 100,
    }
    assert isinstance(decide(**exact), BidPlan)


def test_a_zero_rate_divides_nothing() -> None:
    slow = sim_capability(rate_milli=0).abilities
    plan = consider(offer().body, own_key=key(1), abilities=slow, capacity=FREE)
    assert isinstance(plan, BidPlan) and plan.eta_ms == 64_000_000
    assert slow[0].offering.model == MODEL
