"""The parts of the directory by themselves: table, lookup, store, and what is refused."""

from __future__ import annotations

import random

import pytest

from p2p_node.core.providing import RecordReader
from p2p_node.sim.crypto import SimCrypto, SimKeys
from protocols.envelope import Signed, seal
from protocols.errors import PeerFault
from protocols.identity import peer_id
from protocols.limits import (
    BUCKET_PEERS,
    BUCKET_PEERS_PER_RANGE_MAX,
    RECORDS_PER_KEY_MAX,
    RECORDS_PER_PROVIDER_MAX,
    RECORDS_PER_RANGE_MAX,
    TABLE_PEERS_PER_RANGE_MAX,
)
from protocols.lookup import Lookup
from protocols.messages import Advert, ProviderRecord
from protocols.places import blob_key, place_of
from protocols.recordstore import RecordStore
from protocols.routing import RoutingTable

NOW = 1_700_000_000_000
HOUR = 3_600_000
OWN = SimKeys(b"own").public
PLACE = place_of(OWN)


def keys_of(number: int) -> SimKeys:
    return SimKeys(number.to_bytes(4, "big"))


def record(
    number: int, key: bytes | None = None, *, host: str = "", **changes: int
) -> Signed[ProviderRecord]:
    """A record of this peer, of its place unless a key is given; each peer has a range of its own."""
    keys = keys_of(number)
    host = host or f"{20 + number % 100}.{number >> 8 & 255}.{number & 255}.1"
    where = (f"/ip4/{host}/tcp/4001/p2p/{peer_id(keys.public)}",)
    times = {"sent_ms": NOW, "expires_ms": NOW + HOUR} | changes
    return seal(ProviderRecord(key or place_of(keys.public), addresses=where, **times), network="n", key=keys)


def test_a_full_bucket_keeps_who_was_there_and_a_flood_stays_outside() -> None:
    table = RoutingTable(OWN)
    first = [record(number) for number in range(40)]
    for one in first:
        table.hear(one)
        table.answered(one.signer, NOW)
    old = {contact.key for contact in table}
    for number in range(40, 1_500):
        table.hear(record(number))
    assert old <= {contact.key for contact in table}
    buckets = [table.bucket_of(contact.record.body.key) for contact in table]
    assert max(map(buckets.count, buckets)) == BUCKET_PEERS
    assert all(contact.answered_ms for contact in table.closest(PLACE, 2_000, proven=True))
    # One that goes makes room for one that waits.
    gone = next(contact for contact in table if table.bucket_of(contact.record.body.key) == 256)
    table.failed(gone.key)
    table.failed(gone.key)
    assert gone.key not in table
    assert [table.bucket_of(contact.record.body.key) for contact in table].count(256) == BUCKET_PEERS


def test_an_address_range_has_bounded_room_in_the_table() -> None:
    table = RoutingTable(OWN)
    for number in range(2_000):
        table.hear(record(number, host=f"20.1.1.{number % 250}"))
    assert BUCKET_PEERS_PER_RANGE_MAX < len(table) <= TABLE_PEERS_PER_RANGE_MAX
    private = RoutingTable(OWN)
    for number in range(100):
        private.hear(record(number, host=f"192.168.1.{number}"))
    assert len(private) > TABLE_PEERS_PER_RANGE_MAX


def test_the_store_is_bounded_by_key_provider_and_range() -> None:
    store = RecordStore(PLACE)
    key = blob_key(b"k")
    kept = [store.put(record(number, key)) for number in range(100)]
    assert kept == [True] * RECORDS_PER_KEY_MAX + [False] * (100 - RECORDS_PER_KEY_MAX)
    near = [store.put(record(number, blob_key(b"r"), host="20.1.1.9")) for number in range(20)]
    assert sum(near) == RECORDS_PER_RANGE_MAX
    mine = [store.put(record(7, blob_key(bytes([n, m])))) for n in range(30) for m in range(10)]
    assert sum(mine) == RECORDS_PER_PROVIDER_MAX - 2
    size = store.size_bytes
    assert not store.put(record(3, key))
    assert store.put(record(3, key, sent_ms=NOW + 1))
    assert abs(store.size_bytes - size) < 16
    store.expire(NOW + HOUR)
    assert (len(store), store.size_bytes, store.get(key, NOW)) == (0, 0, [])


def test_in_a_full_store_the_farthest_key_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocols.recordstore.RECORDS_MAX", 3)
    store = RecordStore(bytes(32))
    for first in (9, 5, 7):
        assert store.put(record(first, bytes([first]) * 32))
    assert not store.put(record(1, b"\xff" * 32))
    assert store.put(record(1, b"\x01" * 32))
    assert not store.get(b"\x09" * 32, NOW)
    assert len(store) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"expires_ms": NOW - 31_000, "sent_ms": NOW - HOUR},
        {"sent_ms": NOW + 31_000},
        {"expires_ms": NOW + 3 * HOUR},
        {"expires_ms": NOW},
    ],
    ids=["expired", "future", "lives too long", "never lives"],
)
def test_records_with_wrong_times_are_refused(changes: dict[str, int]) -> None:
    reader = RecordReader(network="n", crypto=SimCrypto())
    with pytest.raises(PeerFault):
        reader.open(record(1, **changes).raw, NOW)


def test_forged_unsigned_and_borrowed_records_are_refused_and_time_counts_each_time() -> None:
    reader = RecordReader(network="n", crypto=SimCrypto())
    good = record(1)
    assert reader.open(good.raw, NOW) is reader.open(good.raw, NOW)
    with pytest.raises(PeerFault, match="past"):
        reader.open(good.raw, NOW + 2 * HOUR)
    theirs = ProviderRecord(blob_key(b"x"), NOW, NOW + HOUR, record(2).body.addresses)
    advert = Advert(1, NOW, NOW + 1, (), "", 1, 1, 1, 1, 1, 1, 1, 1, (), ())
    for raw in (
        good.raw[:-64] + bytes(64),
        good.raw[:-1],
        b"",
        seal(theirs, network="n", key=keys_of(1)).raw,
        seal(theirs, network="other", key=keys_of(2)).raw,
        seal(advert, network="n", key=keys_of(1)).raw,
    ):
        with pytest.raises(PeerFault):
            reader.open(raw, NOW)


def test_ways_share_no_peer_and_one_that_invents_peers_is_soon_passed_over() -> None:
    luck = random.Random(1)
    honest = [record(number) for number in range(30)]
    invented = [record(number) for number in range(1_000, 1_040)]
    lookup = Lookup(blob_key(b"x"), own=OWN)
    lookup.begin([(one.signer, one) for one in honest[:6]])
    asked: list[bytes] = []
    while not lookup.is_over:
        now = lookup.next()
        asked += now
        for key in now:
            if key in {one.signer for one in invented}:
                lookup.delay(key)
                lookup.failed(key)
            elif key == honest[0].signer:
                lookup.answered(key, invented)
            else:
                lookup.answered(key, luck.sample(honest, 8))
    assert len(asked) == len(set(asked))
    assert sum(one.signer in asked for one in invented) <= 4
    assert len(lookup.closest) == BUCKET_PEERS


def test_one_liar_does_not_take_the_room_of_the_others_in_what_is_found() -> None:
    key = blob_key(b"x")
    seeds = [record(number) for number in range(3)]
    lookup = Lookup(key, own=OWN, wanted=6)
    lookup.begin([(one.signer, one) for one in seeds])
    lookup.next()
    lookup.answered(seeds[0].signer, [], [record(number, key) for number in range(100, 132)])
    assert not lookup.is_enough
    true = [record(number, key) for number in (50, 51)]
    lookup.answered(seeds[1].signer, [], true)
    assert not lookup.is_enough
    assert {one.signer for one in true} <= {one.signer for one in lookup.records[:4]}


def test_a_peer_that_waited_and_moves_in_is_there_once() -> None:
    table = RoutingTable(OWN)
    crowd = [number for number in range(200) if table.bucket_of(record(number).body.key) == 256]
    here, there = crowd[: BUCKET_PEERS_PER_RANGE_MAX + 1], crowd[BUCKET_PEERS_PER_RANGE_MAX + 1]
    for number in here:
        table.hear(record(number, host="20.0.0.1"))
    # The last had no room in its range, and moves to one that has.
    table.hear(record(here[-1], host="20.0.1.1", sent_ms=NOW + 1))
    table.answered(record(here[-1]).signer, NOW)
    table.hear(record(there, host="20.0.2.1"))
    table.failed(record(here[0]).signer)
    moved = table.get(record(here[-1]).signer)
    assert moved is not None
    assert moved.answered_ms == NOW
    assert "20.0.1.1" in moved.record.body.addresses[0]


def test_records_that_move_to_one_range_need_room_there() -> None:
    store, name = RecordStore(PLACE), blob_key(b"x")
    for number in range(2 * RECORDS_PER_RANGE_MAX):
        assert store.put(record(number, name))
    moved = [
        store.put(record(number, name, host="20.0.0.9", sent_ms=NOW + 1))
        for number in range(2 * RECORDS_PER_RANGE_MAX)
    ]
    assert sum(moved) <= RECORDS_PER_RANGE_MAX
    assert len(store) == 2 * RECORDS_PER_RANGE_MAX


def begun(peers: int) -> tuple[Lookup, list[bytes]]:
    """A search among so many peers, and the first that it asks."""
    search = Lookup(blob_key(b"x"), own=OWN)
    search.begin([(record(number).signer, record(number)) for number in range(peers)])
    return search, search.next()


def test_whoever_takes_its_time_is_not_waited_for_once_the_others_have_answered() -> None:
    search, slow = begun(BUCKET_PEERS + 3)
    for key in slow:
        search.delay(key)
    answers = 0
    while asked := search.next():
        for key in asked:
            search.answered(key, ())
            answers += 1
    # Those farther away came in for them at once.
    assert answers == BUCKET_PEERS
    assert search.is_over
    assert not set(search.closest) & set(slow)


def test_where_there_are_few_the_slow_are_waited_for_and_heard() -> None:
    search, slow = begun(6)
    for key in slow:
        search.delay(key)
    for key in search.next():
        search.answered(key, ())
    assert not search.is_over
    late = record(50, blob_key(b"x"))
    search.answered(slow[0], (), [late])
    assert search.records == [late]
    for key in slow[1:]:
        search.failed(key)
    assert search.is_over
