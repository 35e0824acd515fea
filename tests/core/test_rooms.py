"""Rooms: where a peer and a job belong, who is asked, and that what isn't concerned isn't told."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from p2p_node.core import census as counting
from p2p_node.core.census import Census, has_won
from p2p_node.core.gossip import GossipBook, GossipReader
from p2p_node.core.registry import Registry, shard_of
from p2p_node.core.rooms import COMMON, Room, Rooms, prefix_of
from p2p_node.core.search import Searches
from p2p_node.sim.scenario import MODEL
from protocols.digest import tagged
from protocols.effects import Join, Leave
from protocols.envelope import Signed
from protocols.messages import Advert, Members, MembersWant
from protocols.rulings import Ruling
from protocols.standing import Standings
from tests.support.builders import CRYPTO, NETWORK, NOW_MS, advert, key, offer

WORKLOAD = "sim.hash"
OWN = key(0)
OFFERING = advert(1).body.offerings[0]


def stranger(number: int, **changes: Any) -> Signed[Advert]:
    """An advert that nobody checks, of a peer with the ability."""
    body = replace_body(advert(1).body, **changes)
    return Signed(b"%d" % number, tagged("id", b"%d" % number), tagged("key", b"%d" % number), body)


def replace_body(body: Advert, **changes: Any) -> Advert:
    fields = {name: getattr(body, name) for name in body.__struct_fields__}
    return Advert(**(fields | changes))


def crowd(count: int) -> Registry:
    registry = Registry(b"secret")
    for number in range(count):
        registry.meet(stranger(number).signer)
        registry.hear(stranger(number), NOW_MS)
    return registry


def rooms(registry: Registry) -> Rooms:
    return Rooms(OWN, registry, lambda: (OFFERING,))


def test_a_small_network_has_one_room() -> None:
    here = rooms(crowd(60))
    assert here.review(NOW_MS) == []
    assert here.depth_of(WORKLOAD, MODEL) == 0
    assert here.room_of(bytes(32), OFFERING) is None


def test_rooms_are_joined_before_they_are_needed() -> None:
    here = rooms(crowd(64))
    whole = Room(WORKLOAD, MODEL, 1, 0)
    assert here.review(NOW_MS) == [Join(whole.topic)]
    assert here.depth_of(WORKLOAD, MODEL) == 0
    assert here.is_in_common


@pytest.mark.parametrize(("members", "depth"), [(250, 0), (257, 2), (500, 2)])
def test_a_full_room_splits(members: int, depth: int) -> None:
    registry = crowd(members)
    here = rooms(registry)
    here.review(NOW_MS)
    assert here.depth_of(WORKLOAD, MODEL) == depth
    counts = [registry.count_in(WORKLOAD, MODEL, 2, prefix) for prefix in (0, 1)]
    assert sum(counts) == members
    assert all(share > members // 3 for share in counts)


def test_a_large_network_leaves_the_common_room() -> None:
    here = rooms(crowd(300))
    here.census.hear_claim(3_000)
    effects = here.review(NOW_MS)
    assert Leave(COMMON) in effects
    assert not here.is_in_common
    # A peer between two depths hears both.
    assert {room.depth for room in here.joined.values()} >= {1, 2}


def test_a_job_lives_where_its_id_says() -> None:
    here = rooms(crowd(300))
    here.census.hear_claim(3_000)
    here.review(NOW_MS)
    job = bytes([0x80]) + bytes(31)
    here.place(job, 3)
    room = here.room_of(job, OFFERING)
    assert room == Room(WORKLOAD, MODEL, 3, 0b10)
    hears = here.hearing(job, OFFERING)
    assert all(hears(key(n)) == (shard_of(key(n), 3) == 0b10) for n in range(8))


def test_who_claims_a_great_depth_alone_leads_nobody_there() -> None:
    here = rooms(crowd(300))
    here.census.hear_claim(3_000)
    here.review(NOW_MS)
    for depth in (16, 3, 3):
        here.learn("other", MODEL, depth, NOW_MS)
    assert here.depth_of("other", MODEL) == 3
    here.forget(NOW_MS + 3_600_000)
    assert here.depth_of("other", MODEL) is None


# --- Gossip --------------------------------------------------------------------------------------


def book(here: Rooms, registry: Registry) -> GossipBook:
    reader = GossipReader(network=NETWORK, crypto=CRYPTO)
    return GossipBook(reader=reader, registry=registry, standings=Standings(), rooms=here)


def test_what_is_in_the_wrong_room_is_rejected() -> None:
    registry = Registry()
    here = rooms(registry)
    job = offer()
    right = Room(job.body.workload, job.body.model, 2, prefix_of(job.id, 2))
    wrong = replace(right, prefix=1 - right.prefix)
    other = replace(right, workload="other")
    here.joined = {room.topic: room for room in (right, wrong, other)}
    heard = book(here, registry)
    assert heard.judge(wrong.topic, job.raw, NOW_MS)[0] is Ruling.REJECT
    assert heard.judge(other.topic, job.raw, NOW_MS)[0] is Ruling.REJECT
    assert heard.judge("room-left", job.raw, NOW_MS)[0] is Ruling.IGNORE
    assert heard.judge(right.topic, job.raw, NOW_MS)[0] is Ruling.ACCEPT
    ours = advert(1)
    home = Room(WORKLOAD, MODEL, 2, shard_of(ours.signer, 2))
    here.joined = {room.topic: room for room in (home, replace(home, prefix=1 - home.prefix))}
    topics = list(here.joined)
    assert heard.judge(topics[1], ours.raw, NOW_MS)[0] is Ruling.REJECT
    assert heard.judge(topics[0], ours.raw, NOW_MS)[0] is Ruling.ACCEPT


def test_a_neighbour_is_told_of_nothing_that_is_not_its_room() -> None:
    registry = Registry()
    here = rooms(registry)
    registry.hear(advert(1), NOW_MS)
    home = Room(WORKLOAD, MODEL, 1, 0)
    other = Room("other", MODEL, 1, 0)
    here.joined = {room.topic: room for room in (home, other)}
    assert here.shares(home.topic, key(1))
    assert not here.shares(other.topic, key(1))
    assert not here.shares(home.topic, key(2))
    assert here.shares("peers", key(2))


# --- Census --------------------------------------------------------------------------------------


def test_as_many_adverts_reach_everybody_however_large_the_network_is() -> None:
    keys = [tagged("key", b"%d" % number) for number in range(4_000)]
    won = sum(has_won(peer, NOW_MS, peers=4_000) for peer in keys)
    assert 40 <= won <= 90
    assert all(has_won(peer, NOW_MS, peers=256) for peer in keys[:50])


@pytest.mark.parametrize("truth", [1_000, 4_000])
def test_the_winners_tell_how_many_there_are(truth: int) -> None:
    census = Census()
    census.hear_claim(2_000)
    keys = [tagged("key", b"%d" % number) for number in range(truth)]
    now_ms = NOW_MS - NOW_MS % counting.MINUTE_MS
    census.review(now_ms, known=300)
    for minute in range(14):
        sent_ms = now_ms + minute * counting.MINUTE_MS
        for peer in keys:
            # Others have the right number.
            if has_won(peer, sent_ms, peers=truth):
                census.hear(peer, sent_ms)
        census.review(sent_ms + 59_000, known=300)
        census.review(sent_ms + 61_000 + counting.GRACE_MS, known=300)
    assert truth / 2 < census.peers < truth * 1.6


# --- Registry and searches -----------------------------------------------------------------------


def test_a_registry_keeps_its_eldest_and_a_sample_nobody_can_aim_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2p_node.core.registry.REGISTRY_SAMPLE_MAX", 20)

    def kept(secret: bytes) -> set[int]:
        registry = Registry(secret)
        for number in range(200):
            registry.hear(stranger(number), NOW_MS + number)
        assert len(registry) == 20
        return {number for number in range(200) if registry.get(stranger(number).signer)}

    one, other = kept(b"one"), kept(b"other")
    assert set(range(9)) <= one & other
    assert one - set(range(10)) != other - set(range(10))
    assert max(one) > 50


def test_members_of_our_rooms_come_before_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2p_node.core.registry.REGISTRY_SAMPLE_MAX", 3)
    registry = Registry()
    registry.keep_members((Room(WORKLOAD, MODEL, 1, 0),))
    for number in range(20):
        registry.hear(stranger(number), NOW_MS)
        registry.hear(stranger(100 + number, offerings=()), NOW_MS)
    assert registry.able_count(WORKLOAD, MODEL) == 20
    assert len(registry) == 23


def test_a_search_asks_for_the_depth_and_then_for_each_part_of_the_room() -> None:
    registry = crowd(40)
    here = Rooms(OWN, registry, tuple)
    here.is_wide = True
    searches = Searches(OWN, registry, here, {key(5)}, random.Random(1))
    job = offer()
    first = searches.for_job(job.id, WORKLOAD, MODEL, NOW_MS)
    assert [want for _, want in first] == [MembersWant(WORKLOAD, MODEL, 1, 0)] * 3
    here.learn(WORKLOAD, MODEL, 2, NOW_MS)
    answer = Members(WORKLOAD, MODEL, 2, ())
    asked = [question for peer, _ in first for question in searches.hear(peer, answer, NOW_MS)]
    prefix = prefix_of(job.id, 2)
    assert [(want.depth, want.prefix) for _, want in asked] == [(4, 4 * prefix + part) for part in range(4)]
    assert all(shard_of(peer, 2) == prefix for peer, _ in asked)
    assert not searches.is_done(job.id)
    for peer, _ in asked:
        searches.hear(peer, answer, NOW_MS)
    assert searches.is_done(job.id)
    # The room has just been asked for.
    again = offer(nonce=bytes([7]) * 16)
    if prefix_of(again.id, 2) == prefix:
        assert searches.for_job(again.id, WORKLOAD, MODEL, NOW_MS + 1) == []


def test_whoever_is_alone_offers_without_asking() -> None:
    registry = Registry()
    here = Rooms(OWN, registry, tuple)
    here.is_wide = True
    searches = Searches(OWN, registry, here, set(), random.Random(1))
    assert searches.for_job(bytes(32), WORKLOAD, MODEL, NOW_MS) == []
    assert searches.is_done(bytes(32))


def test_whom_the_directory_names_is_asked_where_nobody_is_known() -> None:
    registry = Registry()
    here = Rooms(OWN, registry, tuple)
    here.is_wide = True
    searches = Searches(OWN, registry, here, set(), random.Random(1))
    searches.for_job(bytes(32), WORKLOAD, MODEL, NOW_MS)
    named = [OWN, *(key(number) for number in range(1, 6))]
    assert searches.named(WORKLOAD, tagged("another"), named, NOW_MS) == []
    asked = searches.named(WORKLOAD, MODEL, named, NOW_MS)
    assert asked == [(key(number), MembersWant(WORKLOAD, MODEL, 1, 0)) for number in (1, 2, 3)]
    assert searches.has_asked(key(1))
    assert not searches.is_done(bytes(32))
    # Their answers name others, and nobody is asked twice.
    assert [peer for peer, _ in searches.named(WORKLOAD, MODEL, named, NOW_MS)] == [key(4), key(5)]
    here.learn(WORKLOAD, MODEL, 1, NOW_MS)
    registry.hear(stranger(1), NOW_MS)
    assert searches.named(WORKLOAD, MODEL, [key(6)], NOW_MS) == []
