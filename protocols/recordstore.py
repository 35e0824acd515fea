"""Records that a peer keeps for others: who has what is near it in the directory.

Bounded by key, by provider, by address range within a key, and in all. Whoever came first stays until its
record expires: a flood of new keys drives nobody out, except that of all kept records the one farthest
from our place makes room for a nearer one, since others keep that, too.

Source: P. Maymounkov and D. Mazières, Kademlia (2002), section 2.5.
"""

from __future__ import annotations

from collections import Counter

from protocols.envelope import Signed
from protocols.limits import (
    RECORDS_BYTES_MAX,
    RECORDS_MAX,
    RECORDS_PER_KEY_MAX,
    RECORDS_PER_PROVIDER_MAX,
    RECORDS_PER_RANGE_MAX,
)
from protocols.messages import ProviderRecord
from protocols.places import distance, ranges_of

__all__ = ["RecordStore"]


class RecordStore:
    """Checked records, by key and provider."""

    def __init__(self, place: bytes) -> None:
        """An empty store of a peer at this place."""
        self._place = place
        self._keys: dict[bytes, dict[bytes, Signed[ProviderRecord]]] = {}
        self._of_provider: Counter[bytes] = Counter()
        self._count = 0
        self.size_bytes = 0

    def __len__(self) -> int:
        return self._count

    def put(self, record: Signed[ProviderRecord]) -> bool:
        """Keep a record, if it is news and there is room."""
        body = record.body
        there = self._keys.get(body.key, {})
        known = there.get(record.signer)
        if known is not None and body.sent_ms <= known.body.sent_ms:
            return False
        # Who moves needs room where it goes to: else one range could gather all, a record at a time.
        if not self._has_room(record, there, known):
            return False
        if known is not None:
            self._drop(known)
        if not self._make_room(record):
            return False
        self._keys.setdefault(body.key, {})[record.signer] = record
        self._of_provider[record.signer] += 1
        self._count += 1
        self.size_bytes += len(record.raw)
        return True

    def get(self, key: bytes, now_ms: int) -> list[Signed[ProviderRecord]]:
        """The records of a key that haven't expired, oldest place first."""
        return [record for record in self._keys.get(key, {}).values() if record.body.expires_ms > now_ms]

    def expire(self, now_ms: int) -> None:
        """Forget expired records."""
        gone = [
            record
            for there in self._keys.values()
            for record in there.values()
            if record.body.expires_ms <= now_ms
        ]
        for record in gone:
            self._drop(record)

    def _has_room(
        self,
        record: Signed[ProviderRecord],
        there: dict[bytes, Signed[ProviderRecord]],
        known: Signed[ProviderRecord] | None,
    ) -> bool:
        if known is None and (
            len(there) >= RECORDS_PER_KEY_MAX or self._of_provider[record.signer] >= RECORDS_PER_PROVIDER_MAX
        ):
            return False
        ranges = ranges_of(record.body.addresses)
        if not ranges:
            return True
        others = [one for one in there.values() if one is not known]
        taken = Counter(name for one in others for name in ranges_of(one.body.addresses))
        return all(taken[name] < RECORDS_PER_RANGE_MAX for name in ranges)

    def _make_room(self, record: Signed[ProviderRecord]) -> bool:
        while self._count >= RECORDS_MAX or self.size_bytes + len(record.raw) > RECORDS_BYTES_MAX:
            farthest = max(self._keys, key=lambda key: distance(key, self._place))
            if distance(farthest, self._place) <= distance(record.body.key, self._place):
                return False
            for known in list(self._keys[farthest].values()):
                self._drop(known)
        return True

    def _drop(self, record: Signed[ProviderRecord]) -> None:
        there = self._keys[record.body.key]
        del there[record.signer]
        if not there:
            del self._keys[record.body.key]
        self._of_provider[record.signer] -= 1
        if not self._of_provider[record.signer]:
            del self._of_provider[record.signer]
        self._count -= 1
        self.size_bytes -= len(record.raw)
