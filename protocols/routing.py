"""Which peers a peer remembers for the directory: many that are near it, few that are far.

The table has a bucket for each length of the prefix that another's place has in common with ours, of at most
`BUCKET_PEERS` peers. A full bucket takes nobody new while its old ones answer: who has been there long is
likely to stay, and a flood of new keys pushes nobody out. Peers of one address range have bounded room, in
each bucket and in the table. Nobody is named to others before it has answered us.

Source: P. Maymounkov and D. Mazières, Kademlia (2002), sections 2.2 and 2.4; the bounds by range as in
L. Wang and J. Kangasharju, Real-World Sybil Attacks in BitTorrent Mainline DHT (2012).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from protocols.envelope import Signed
from protocols.limits import (
    BUCKET_PEERS,
    BUCKET_PEERS_PER_RANGE_MAX,
    BUCKET_WAITING_MAX,
    TABLE_PEERS_PER_RANGE_MAX,
)
from protocols.messages import ProviderRecord
from protocols.places import place_of, ranges_of

__all__ = ["Contact", "RoutingTable"]

FAILURES_MAX = 2
"""Questions in a row that a peer which once answered may leave open."""


@dataclass(slots=True)
class Contact:
    """One peer of the table."""

    record: Signed[ProviderRecord]
    """Of its place."""
    place: int
    answered_ms: int = 0
    """When it last answered us; 0 if it never did."""
    failures: int = 0

    @property
    def key(self) -> bytes:
        """Its public key."""
        return self.record.signer


class RoutingTable:
    """The peers that one peer remembers. Say what happens to them; ask who is closest."""

    def __init__(self, own: bytes) -> None:
        """An empty table of the peer with this public key."""
        self._own = own
        self._place = int.from_bytes(place_of(own), "big")
        self._buckets: dict[int, dict[bytes, Contact]] = {}
        """By length of a distance in bits; in each, who was silent longest comes first."""
        self._waiting: dict[int, dict[bytes, Signed[ProviderRecord]]] = {}
        self._ranges: Counter[str] = Counter()

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))

    def __contains__(self, key: bytes) -> bool:
        return key in self._buckets.get(self.bucket_of(place_of(key)), {})

    def __iter__(self) -> Iterator[Contact]:
        for bucket in self._buckets.values():
            yield from bucket.values()

    def bucket_of(self, place: bytes) -> int:
        """The bucket of a place or key: the length of its distance from us, in bits."""
        return (int.from_bytes(place, "big") ^ self._place).bit_length()

    def get(self, key: bytes) -> Contact | None:
        """A peer of the table."""
        return self._buckets.get(self.bucket_of(place_of(key)), {}).get(key)

    def hear(self, record: Signed[ProviderRecord]) -> None:
        """Take up a peer by the checked record of its place, if there is room; or renew what we have."""
        key = record.signer
        number = self.bucket_of(record.body.key)
        if key == self._own:
            return
        bucket = self._buckets.setdefault(number, {})
        known = bucket.get(key)
        if known is not None:
            if record.body.sent_ms > known.record.body.sent_ms and self._renew(bucket, known, record):
                known.record = record
            return
        waiting = self._waiting.setdefault(number, {})
        waiting.pop(key, None)
        if len(bucket) < BUCKET_PEERS and self._has_room(bucket, record):
            self._insert(bucket, record)
            return
        waiting[key] = record
        if len(waiting) > BUCKET_WAITING_MAX:
            del waiting[next(iter(waiting))]

    def answered(self, key: bytes, now_ms: int) -> None:
        """A peer answered us."""
        number = self.bucket_of(place_of(key))
        bucket = self._buckets.get(number, {})
        contact = bucket.pop(key, None)
        if contact is not None:
            contact.answered_ms, contact.failures = now_ms, 0
            bucket[key] = contact

    def failed(self, key: bytes) -> None:
        """A peer didn't answer: one that never did is forgotten at once."""
        contact = self.get(key)
        if contact is None:
            return
        contact.failures += 1
        if not contact.answered_ms or contact.failures >= FAILURES_MAX:
            self._remove(contact)

    def expire(self, now_ms: int) -> None:
        """Forget peers whose records have expired: nobody could be told of them."""
        for contact in [contact for contact in self if contact.record.body.expires_ms <= now_ms]:
            self._remove(contact)
        for waiting in self._waiting.values():
            for key in [key for key, record in waiting.items() if record.body.expires_ms <= now_ms]:
                del waiting[key]

    def closest(self, target: bytes, count: int, *, proven: bool = False) -> list[Contact]:
        """Up to ``count`` peers, closest to a key first; ``proven`` leaves out who never answered."""
        goal = int.from_bytes(target, "big")
        there = [contact for contact in self if contact.answered_ms or not proven]
        return sorted(there, key=lambda contact: contact.place ^ goal)[:count]

    def closer_than_us(self, target: bytes) -> int:
        """How many proven peers are closer to a key than we are."""
        goal = int.from_bytes(target, "big")
        own = goal ^ self._place
        return sum(contact.place ^ goal < own for contact in self if contact.answered_ms)

    def stalest(self, now_ms: int, silent_ms: int) -> Contact | None:
        """The peer that was silent longest, of a bucket in which another waits for its place."""
        for number, waiting in self._waiting.items():
            bucket = self._buckets.get(number)
            if not waiting or not bucket:
                continue
            contact = next(iter(bucket.values()))
            if contact.answered_ms + silent_ms <= now_ms:
                return contact
        return None

    def _insert(self, bucket: dict[bytes, Contact], record: Signed[ProviderRecord]) -> None:
        place = int.from_bytes(record.body.key, "big")
        bucket[record.signer] = Contact(record, place)
        self._ranges.update(ranges_of(record.body.addresses))

    def _remove(self, contact: Contact) -> None:
        number = self.bucket_of(contact.record.body.key)
        bucket, waiting = self._buckets[number], self._waiting.get(number, {})
        del bucket[contact.key]
        self._ranges.subtract(ranges_of(contact.record.body.addresses))
        self._ranges += Counter()
        for key in reversed(waiting):
            if self._has_room(bucket, waiting[key]):
                self._insert(bucket, waiting.pop(key))
                break

    def _renew(self, bucket: dict[bytes, Contact], known: Contact, record: Signed[ProviderRecord]) -> bool:
        """Whether a peer that moves has room where it goes to; then it is counted there."""
        old, new = ranges_of(known.record.body.addresses), ranges_of(record.body.addresses)
        if old == new:
            return True
        others = {key: contact for key, contact in bucket.items() if contact is not known}
        if not self._has_room(others, record):
            return False
        self._ranges.subtract(old)
        self._ranges += Counter()
        self._ranges.update(new)
        return True

    def _has_room(self, bucket: dict[bytes, Contact], record: Signed[ProviderRecord]) -> bool:
        ranges = ranges_of(record.body.addresses)
        if not ranges:
            return True
        if any(self._ranges[name] >= TABLE_PEERS_PER_RANGE_MAX for name in ranges):
            return False
        taken = Counter(
            name for contact in bucket.values() for name in ranges_of(contact.record.body.addresses)
        )
        return all(taken[name] < BUCKET_PEERS_PER_RANGE_MAX for name in ranges)
