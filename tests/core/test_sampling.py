"""How much is checked: by the client's word, by a chance of escape, or by the executor's record."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from p2p_node.core.market import Market
from p2p_node.core.registry import Registry
from p2p_node.core.request import CheckPolicy
from p2p_node.core.rooms import Rooms
from p2p_node.core.sampling import plan_sampling
from p2p_node.quote import quote
from p2p_node.sim.scenario import job_request
from protocols.standing import PROVEN_CONTRACTS, PeerStanding, Standings
from protocols.weights import (
    BUCKET_MS,
    CHUNKS_PER_WEIGHT,
    INFLUENCE_SHARES,
    MATURITY_MS,
    WEIGHT_MAX,
    VestedWork,
    limited,
)
from tests.support.builders import NOW_MS, advert, changed, key, offer
from tests.support.machines import core
from verification.draw_odds import OutOfReach

ALL = 1_000_000


def request(**fields: Any) -> Any:
    return replace(job_request(0, units=256), samples=4, **fields)


# --- The executor's record ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("streak", "share_ppm"),
    [(0, ALL), (PROVEN_CONTRACTS, ALL), (11, 500_000), (12, 333_333), (13, 250_000), (500, 250_000)],
)
def test_proven_executors_are_checked_less_and_never_below_the_floor(streak: int, share_ppm: int) -> None:
    assert PeerStanding(streak=streak).check_share_ppm() == share_ppm


def test_a_failure_starts_anew() -> None:
    standings = Standings()
    for _ in range(20):
        standings.record_completion(key(1), declared_ms=1, delivered_ms=1)
    assert standings.of(key(1)).check_share_ppm() < ALL
    standings.record_failure(key(1), NOW_MS)
    assert standings.of(key(1)).check_share_ppm() == ALL


@pytest.mark.parametrize(
    ("policy", "share_ppm", "samples"),
    [
        (CheckPolicy(), 250_000, 3),  # The client said so.
        (CheckPolicy(is_adaptive=True), ALL, 4),
        (CheckPolicy(is_adaptive=True), 250_000, 1),
        (CheckPolicy(is_adaptive=True), 250_001, 2),
        (CheckPolicy(escape_ppb=300_000_000, forged_ppm=ALL, colluding_ppm=0), 250_000, 1),
        # A chance of escape is met by a proven executor too, and a new one is checked in full.
        (CheckPolicy(escape_ppb=300_000_000, forged_ppm=ALL, colluding_ppm=0), ALL, 4),
        (CheckPolicy(escape_ppb=1_000_000, forged_ppm=250_000, colluding_ppm=0), 250_000, 4),
    ],
)
def test_chunks_to_recompute(policy: CheckPolicy, share_ppm: int, samples: int) -> None:
    asked = replace(request(policy=policy), samples=3)
    plan = plan_sampling(asked, [1] * 12, check_share_ppm=share_ppm)
    assert plan.choice.samples == samples
    if policy.escape_ppb:
        assert plan.choice.escape <= policy.escape_ppb / 1e9


def test_a_short_job_has_a_short_segment() -> None:
    plan = plan_sampling(replace(request(), units_max=40), [1] * 3, check_share_ppm=ALL)
    assert (plan.segment_chunks, plan.choice.samples) == (2, 2)


def test_out_of_reach_is_said_before_anything_is_spent() -> None:
    policy = CheckPolicy(escape_ppb=1_000_000)
    with pytest.raises(OutOfReach, match="it takes 5"):
        plan_sampling(request(policy=policy), [1, 1], check_share_ppm=ALL)


# --- Vested work -------------------------------------------------------------------------------


def test_work_counts_once_it_is_old_and_up_to_a_cap() -> None:
    work = VestedWork()
    work.add(3 * CHUNKS_PER_WEIGHT, NOW_MS)
    assert work.weight(NOW_MS + MATURITY_MS - BUCKET_MS) == 1
    assert work.weight(NOW_MS + MATURITY_MS + BUCKET_MS) == 4
    work.add(10**9, NOW_MS + MATURITY_MS)
    assert work.weight(NOW_MS + 3 * MATURITY_MS) == WEIGHT_MAX


def test_work_is_remembered_in_bounded_space() -> None:
    work = VestedWork()
    for hour in range(1_000):
        work.add(1, NOW_MS + hour * BUCKET_MS)
    assert len(work.maturing) <= MATURITY_MS // BUCKET_MS + 1
    assert work.matured_chunks + sum(chunks for _, chunks in work.maturing) == 1_000


def test_a_clock_set_back_makes_no_work_older() -> None:
    work = VestedWork()
    work.add(CHUNKS_PER_WEIGHT, NOW_MS)
    work.add(CHUNKS_PER_WEIGHT, NOW_MS - 10 * MATURITY_MS)
    assert work.weight(NOW_MS) == 1


@pytest.mark.parametrize("others", [1, 3, 7, 8, 20, 100])
def test_no_key_outweighs_the_rest(others: int) -> None:
    weights = {bytes([0]): WEIGHT_MAX} | {bytes([1 + n]): 1 for n in range(others)}
    capped = limited(weights)
    assert capped.keys() == weights.keys()
    heaviest = max(capped.values())
    assert heaviest == 1 or heaviest * INFLUENCE_SHARES <= sum(capped.values())
    assert capped[bytes([0])] == (WEIGHT_MAX if others == 100 else max(1, min(WEIGHT_MAX, others // 7)))


def test_influence_is_lost_by_one_failure_and_kept_over_a_restart() -> None:
    standings, later = Standings(), NOW_MS + 2 * MATURITY_MS
    standings.record_work(key(1), 5 * CHUNKS_PER_WEIGHT, NOW_MS)
    standings.record_completion(key(1), declared_ms=10, delivered_ms=20)
    [kept] = standings.changes()
    assert (kept.table, kept.key) == ("standings", key(1)) and kept.value is not None
    assert standings.changes() == []
    restored = Standings()
    restored.restore(key(1), kept.value)
    restored.restore(key(2), b"of an older release")
    assert restored.of(key(1)) == standings.of(key(1)) and key(2) not in restored.peers
    assert restored.of(key(1)).work.weight(later) == 6
    restored.record_failure(key(1), later)
    assert restored.of(key(1)).work.weight(later + MATURITY_MS) == 1


# --- Who may be drawn --------------------------------------------------------------------------


def market(*, heard_ms: int = NOW_MS, **offering: Any) -> tuple[Market, Standings, Registry]:
    registry, standings = Registry(), Standings()
    for number in range(1, 13):
        message = advert(number)
        if offering:
            body = message.body.offerings[0]
            message = advert(number, offerings=(changed(body, **offering),))
        registry.hear(message, heard_ms)
    return Market(key(0), registry, standings, set(), Rooms(key(0), registry, tuple)), standings, registry


def test_electors_weigh_by_work_that_we_saw() -> None:
    there, standings, _ = market()
    standings.record_work(key(3), 100 * CHUNKS_PER_WEIGHT, NOW_MS - 2 * MATURITY_MS)
    electorate = there.electorate(offer().body, key(1), NOW_MS)
    assert electorate is not None
    assert (electorate.count, electorate.weight_of(key(3)), electorate.weight_of(key(4))) == (11, 1, 1)
    for number in range(2, 13):
        standings.record_work(key(number), CHUNKS_PER_WEIGHT, NOW_MS - 2 * MATURITY_MS)
    electorate = there.electorate(offer().body, key(1), NOW_MS)
    assert electorate is not None
    # Cut from the cap of 8, so that it holds no more than an eighth.
    assert electorate.weight_of(key(3)) == 2
    assert electorate.total_weight == 22


def test_keys_that_are_too_young_may_not_be_drawn() -> None:
    there, _, registry = market(heard_ms=NOW_MS - 60_000)
    there.elector_age_ms = 50_000
    registry.hear(advert(13), NOW_MS - 10_000)
    electorate = there.electorate(offer().body, key(1), NOW_MS)
    assert electorate is not None
    assert key(12) in electorate and key(13) not in electorate
    there.elector_age_ms = 70_000
    assert there.electorate(offer().body, key(1), NOW_MS) is None


def test_a_crowd_of_newcomers_is_not_drawn_in_place_of_those_known_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("p2p_node.core.registry.CROWD_SHARE", 2)
    there, _, registry = market(heard_ms=NOW_MS - 60_000)
    for number in range(13, 24):
        registry.hear(advert(number), NOW_MS)
    electorate = there.electorate(offer().body, key(1), NOW_MS)
    assert electorate is not None and electorate.count == 22, "as many again are no crowd"
    registry.hear(advert(24), NOW_MS)
    electorate = there.electorate(offer().body, key(1), NOW_MS)
    assert electorate is not None and electorate.count == 11
    assert key(12) in electorate and key(24) not in electorate
    # Where everybody is new, nobody can tell.
    there, _, _ = market()
    electorate = there.electorate(offer().body, key(1), NOW_MS)
    assert electorate is not None and electorate.count == 11


def test_a_homogeneous_job_is_verified_in_the_executors_class() -> None:
    there, _, registry = market(profiles=("homogeneous",), numeric_class="x86")
    body = changed(advert(1).body.offerings[0], profiles=("homogeneous",), numeric_class="arm")
    for number in (2, 3):
        registry.hear(advert(number, offerings=(body,), sequence=NOW_MS + 1), NOW_MS)
    job = offer(profile="homogeneous").body
    ours, theirs = there.electorate(job, key(1), NOW_MS), there.electorate(job, key(2), NOW_MS)
    assert ours is not None and theirs is not None
    assert (ours.count, [member.key for member in theirs.members]) == (9, [key(3)])
    assert (there.numeric_class(job, key(1), NOW_MS), there.numeric_class(job, key(99), NOW_MS)) == (
        "x86",
        "",
    )


# --- A quote -----------------------------------------------------------------------------------


def test_a_quote_shows_choice_and_cost_and_offers_nothing() -> None:
    node = core(0, knows=(1, 2, 3, 4, 5, 6, 7, 8), serves=False)
    policy = CheckPolicy(escape_ppb=50_000_000, forged_ppm=250_000)
    found = quote(node, request(policy=policy, mode="posted"), NOW_MS)
    assert found["reason"] == "" and node.jobs == {}
    assert (found["electors"], found["peers_able"], found["segments"], found["samples"]) == (7, 8, 2, 4)
    assert found["escape_accepted"] <= found["escape"] <= 0.05
    assert found["execution_micros"] == 100 * 256
    assert found["verification_micros"] == round(found["verifiers"] * 8 * 10)
    assert found["total_micros"] == found["execution_micros"] + found["verification_micros"]
    assert [ask["checked_share"] for ask in found["best_asks"]] == [1.0] * 5


def test_a_quote_says_what_is_out_of_reach() -> None:
    policy = CheckPolicy(escape_ppb=1_000)
    found = quote(core(0, knows=(1, 2, 3), serves=False), request(policy=policy), NOW_MS)
    assert "2 electors that all recompute everything leave 0.04; it takes 9" in found["reason"]
    assert found["needed"] == 9
    alone = quote(core(0, serves=False), request(), NOW_MS)
    assert alone["reason"].startswith("nobody known here has model ")
