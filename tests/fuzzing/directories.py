"""The directory's machines as targets: a fuzzer's bytes say what comes in which order, and who lies how."""

from __future__ import annotations

from collections import Counter
from functools import cache

from p2p_node.core.outbox import message_frame
from p2p_node.core.providing import OPENED_MAX
from p2p_node.sim.crypto import SimKeys
from p2p_node.sim.directories import NETWORK, DirectoryPeer, DirectoryWorld
from protocols.envelope import Signed, seal
from protocols.limits import (
    BUCKET_PEERS,
    BUCKET_PEERS_PER_RANGE_MAX,
    BUCKET_WAITING_MAX,
    LOOKUP_PATHS,
    LOOKUP_QUESTIONS_MAX,
    LOOKUPS_WAITING_MAX,
    RECORDS_PER_KEY_MAX,
    RECORDS_PER_PROVIDER_MAX,
    RECORDS_PER_RANGE_MAX,
    TABLE_PEERS_PER_RANGE_MAX,
)
from protocols.lookup import Lookup
from protocols.messages import Closest, FindClosest, ProviderRecord, StoreRecord
from protocols.places import blob_key, ranges_of
from protocols.recordstore import RecordStore
from protocols.routing import RoutingTable
from tests.fuzzing.luck import SteeredLuck
from tests.protocols.test_directory import HOUR, NOW, OWN, PLACE
from tests.protocols.test_directory import record as signed_record
from tests.support.mutants import altered

__all__ = ["directory", "lookup", "recordstore", "routing"]

PEERS = 96
STEPS_MAX = 400
KEYS = [blob_key(bytes([number])) for number in range(4)]
_record = cache(signed_record)


def _drawn(luck: SteeredLuck, key: bytes | None = None) -> Signed[ProviderRecord]:
    """A record of one of `PEERS`, now of this address range and now of that."""
    when = luck.randrange(4)
    return _record(
        luck.randrange(PEERS),
        key,
        host=f"20.0.{luck.randrange(5)}.1",
        sent_ms=NOW + when,
        expires_ms=NOW + HOUR * (1 + when % 2),
    )


def routing(data: bytes) -> None:
    """Any order of what can happen to a table: its bounds hold, and its book of ranges."""
    luck, table, now_ms = SteeredLuck(data), RoutingTable(OWN), NOW
    for _ in range(STEPS_MAX):
        if luck.is_spent:
            break
        record = _drawn(luck)
        match luck.randrange(8):
            case 0:
                table.failed(record.signer)
            case 1:
                table.expire(now_ms := now_ms + luck.randrange(HOUR))
            case 2 | 3:
                table.answered(record.signer, now_ms)
            case _:
                table.hear(record)
    contacts = list(table)
    buckets = Counter(table.bucket_of(contact.record.body.key) for contact in contacts)
    ranges = Counter(name for contact in contacts for name in ranges_of(contact.record.body.addresses))
    assert max(buckets.values(), default=0) <= BUCKET_PEERS
    assert max(ranges.values(), default=0) <= TABLE_PEERS_PER_RANGE_MAX
    assert table._ranges == ranges
    for number, waiting in table._waiting.items():
        assert len(waiting) <= BUCKET_WAITING_MAX
        assert not waiting.keys() & table._buckets[number].keys()
    for bucket in table._buckets.values():
        there = Counter(name for c in bucket.values() for name in ranges_of(c.record.body.addresses))
        assert max(there.values(), default=0) <= BUCKET_PEERS_PER_RANGE_MAX


def recordstore(data: bytes) -> None:
    """Any order of records: the bounds hold, and the books of what is there."""
    luck, store, now_ms = SteeredLuck(data), RecordStore(PLACE), NOW
    for _ in range(STEPS_MAX):
        if luck.is_spent:
            break
        if luck.randrange(16) == 0:
            store.expire(now_ms := now_ms + luck.randrange(HOUR))
        record = _drawn(luck, luck.choice(KEYS[:2]))
        before = {one.signer for one in store.get(record.body.key, now_ms)}
        store.put(record)
        # What comes never costs another its place while there is room.
        assert before <= {one.signer for one in store.get(record.body.key, now_ms)} | {record.signer}
    records = [one for there in store._keys.values() for one in there.values()]
    assert (len(store), store.size_bytes) == (len(records), sum(len(one.raw) for one in records))
    assert max(Counter(one.signer for one in records).values(), default=0) <= RECORDS_PER_PROVIDER_MAX
    for there in store._keys.values():
        ranges = Counter(name for one in there.values() for name in ranges_of(one.body.addresses))
        assert len(there) <= RECORDS_PER_KEY_MAX
        assert max(ranges.values(), default=0) <= RECORDS_PER_RANGE_MAX


def lookup(data: bytes) -> None:
    """Whoever is asked answers, fails or takes its time, and names whom it likes: every search ends."""
    luck = SteeredLuck(data)
    search = Lookup(KEYS[0], own=OWN, wanted=luck.randrange(6))
    search.begin([(record.signer, record) for record in (_drawn(luck) for _ in range(luck.randrange(24)))])
    asked: list[bytes] = []
    asking: list[bytes] = []
    delayed: set[bytes] = set()
    while True:
        new = search.next()
        assert not set(new) & set(asked)
        assert OWN not in new
        asked += new
        asking += new
        assert len([key for key in asking if key not in delayed]) <= LOOKUP_PATHS
        if search.is_over:
            break
        key = asking[luck.randrange(len(asking))]
        way = luck.randrange(4)
        if way == 0 and key not in delayed:
            delayed.add(key)
            search.delay(key)
            continue
        asking.remove(key)
        if way == 1:
            search.failed(key)
            continue
        peers = [_drawn(luck) for _ in range(luck.randrange(BUCKET_PEERS))]
        search.answered(key, peers, [_drawn(luck, KEYS[0]) for _ in range(luck.randrange(4))])
    assert search.is_over
    assert len(asked) == search.questions <= LOOKUP_QUESTIONS_MAX
    found = [record.signer for record in search.records]
    assert len(found) == len(set(found))
    assert len(search.closest) <= BUCKET_PEERS


def directory(data: bytes) -> None:
    """Nine peers, of which one says what ``data`` makes of its messages: none that is honest is charged."""
    luck, world = SteeredLuck(data), DirectoryWorld(7)
    peers = [world.add(neighbours=min(number, 3)) for number in range(9)]
    traitor, honest = peers[0], peers[1:]
    world.provide(honest[0], KEYS[0])
    search = world.search(honest[1], KEYS[0], wanted=2)
    for _ in range(STEPS_MAX // 4):
        if luck.is_spent:
            break
        victim = luck.choice(honest)
        message = _said(luck, world, traitor, victim)
        raw = seal(message, network=NETWORK, key=traitor.keys).raw
        world.deliver(traitor, victim, message_frame(raw))
        world.run(luck.choice((0, 50, 2_000, 12_000)))
    world.run(30_000, until=lambda: search.is_over)
    assert search.is_over
    for peer in honest:
        assert {charge.peer for charge in peer.charged} <= {traitor.key}
        assert len(peer.directory._questions) <= LOOKUP_QUESTIONS_MAX
        assert len(peer.directory._waiting) <= LOOKUPS_WAITING_MAX
        assert len(peer.directory._reader._opened) <= OPENED_MAX
        # Nobody can say of an honest peer that it is elsewhere.
        for other in honest:
            assert peer.directory.addresses_of(other.key) in ((), (other.address,))


def _said(
    luck: SteeredLuck, world: DirectoryWorld, traitor: DirectoryPeer, victim: DirectoryPeer
) -> FindClosest | Closest | StoreRecord:
    records = [peer.place_record(world.now_ms).raw for peer in luck.sample(world.peers, luck.randrange(4))]
    body = ProviderRecord(
        luck.choice(KEYS), world.now_ms, world.now_ms + luck.randrange(HOUR), (traitor.address,)
    )
    keys: SimKeys = traitor.keys
    record = seal(altered(luck, body) if luck.randrange(2) else body, network=NETWORK, key=keys).raw
    questions = [*victim.directory._questions, bytes(32)]
    own = luck.choice((traitor.place_record(world.now_ms).raw, b""))
    message = luck.choice(
        (
            FindClosest(luck.choice(KEYS), luck.randrange(2**32), luck.randrange(2) == 0, own),
            Closest(luck.choice(questions), own, tuple(records), (record,) * luck.randrange(3)),
            StoreRecord(record),
        )
    )
    return altered(luck, message) if luck.randrange(2) else message  # type: ignore[no-any-return]
