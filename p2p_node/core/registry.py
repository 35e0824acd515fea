"""What this peer knows of the others: their newest adverts, bounded and expiring.

An advert counts from the moment it is heard until it expires; a higher sequence replaces a lower
one, so a replayed old advert changes nothing.
"""

from __future__ import annotations

import heapq
import random
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Protocol

from protocols.digest import tagged
from protocols.effects import Effect, Persist
from protocols.envelope import Signed
from protocols.errors import Rejected
from protocols.limits import (
    ADVERT_BYTES_MAX,
    ADVERT_LIFETIME_MS_MAX,
    CLOCK_SKEW_MS,
    INTEGER_MAX,
    REGISTRY_MEMBERS_MAX,
    REGISTRY_MET_MAX,
    REGISTRY_SAMPLE_MAX,
)
from protocols.messages import Advert, Offering

__all__ = ["Registry", "check_advert", "shard_of"]

VETERANS_SHARE = 2
"""One in so many places of each sort is for those that have been known longest."""


_SHARD_BITS = 16


NEWCOMER_MS = 60_000
CROWD_SHARE = 16
"""So many keys for each that isn't a newcomer are a crowd."""


@lru_cache(maxsize=16_384)
def _shard_digest(key: bytes) -> int:
    return int.from_bytes(tagged("p2p-node/shard/1", key)[:2], "big")


def shard_of(key: bytes, depth: int) -> int:
    """Where a peer belongs at this depth: the first ``depth - 1`` bits of a digest of its key."""
    return _shard_digest(key) >> (_SHARD_BITS + 1 - depth) if depth > 1 else 0


class Members(Protocol):
    """Tells who belongs to a room."""

    def has(self, advert: Signed[Advert]) -> bool:
        """Whether a peer belongs here."""
        ...


def check_advert(message: Signed[Advert], now_ms: int) -> bool:
    """Whether an advert is current.

    Returns:
        False for one that has expired: late, not wrong.

    Raises:
        Rejected: its times contradict each other or the clock, or it is too large.
    """
    advert = message.body
    if len(message.raw) > ADVERT_BYTES_MAX:
        raise Rejected(f"advert of {len(message.raw)} bytes exceeds {ADVERT_BYTES_MAX}")
    lifetime = advert.expires_ms - advert.sent_ms
    if not 0 < lifetime <= ADVERT_LIFETIME_MS_MAX:
        raise Rejected(f"advert lifetime of {lifetime} ms must be in (0, {ADVERT_LIFETIME_MS_MAX}]")
    if advert.sent_ms > now_ms + CLOCK_SKEW_MS:
        raise Rejected(f"advert sent_ms={advert.sent_ms} is in the future")
    return advert.expires_ms > now_ms


class Registry:
    """Adverts by peer key: of the members of our rooms, of whom we have met, and a sample of the rest.

    Each of the three has its bound. Half of its places are for those known longest, so that no flood of new
    keys pushes everybody out; the others are for whom a digest with our secret names, so that the sample is
    one of all peers, and nobody can make keys that get into it.
    """

    def __init__(self, secret: bytes = b"") -> None:
        """Nobody.

        Args:
            secret: known to us alone; decides who is kept of many.
        """
        self._secret = secret
        self._rooms: tuple[Members, ...] = ()
        self._met: OrderedDict[bytes, None] = OrderedDict()
        self._sorts: dict[str, dict[bytes, None]] = {"members": {}, "met": {}, "sample": {}}
        self._contested: dict[str, list[tuple[bytes, bytes]]] = {}
        """See `_contesting`; of those sorts that have been full since it was last found."""
        self._adverts: dict[bytes, Signed[Advert]] = {}
        self._first_heard_ms: dict[bytes, int] = {}
        self._by_ability: dict[tuple[str, bytes], dict[bytes, int]] = {}
        """Who has an ability, and the digest that says where each belongs."""
        self._expires_ms = INTEGER_MAX
        """No advert expires before."""

    def __len__(self) -> int:
        return len(self._adverts)

    def is_news(self, message: Signed[Advert]) -> bool:
        """Whether an advert is newer than what is known of its signer."""
        known = self._adverts.get(message.signer)
        return known is None or message.body.sequence > known.body.sequence

    def hear(self, message: Signed[Advert], now_ms: int) -> list[Effect]:
        """Keep an advert that `check_advert` accepts and that is news."""
        if not self.is_news(message):
            return []
        self._put(message)
        self._first_heard_ms.setdefault(message.signer, now_ms)
        effects = self._make_room(self._sort_of(message), now_ms)
        if message.signer not in self._adverts:
            return effects
        return [*effects, Persist("registry", message.signer, message.raw)]

    def _sort_of(self, message: Signed[Advert]) -> str:
        if any(room.has(message) for room in self._rooms):
            return "members"
        return "met" if message.signer in self._met else "sample"

    def _make_room(self, sort: str, now_ms: int) -> list[Effect]:
        places = {
            "members": REGISTRY_MEMBERS_MAX * max(1, len(self._rooms)),
            "met": REGISTRY_MET_MAX,
            "sample": REGISTRY_SAMPLE_MAX,
        }[sort]
        keys = self._sorts[sort]
        if len(keys) <= places:
            return []
        effects = self.expire(now_ms)
        while len(keys) > places:
            gone = self._contesting(sort, places)[-1][1]
            self._drop(gone)
            del self._first_heard_ms[gone]
            effects.append(Persist("registry", gone, None))
        return effects

    def _contesting(self, sort: str, places: int) -> list[tuple[bytes, bytes]]:
        """(rank, key) of a sort but for its oldest, who are safe; who goes first stands last."""
        contesting = self._contested.get(sort)
        if contesting is None:
            keys = self._sorts[sort]
            count = len(keys) - places // VETERANS_SHARE
            younger = heapq.nlargest(count, keys, key=self._first_heard_ms.__getitem__)
            contesting = self._contested[sort] = sorted((self._rank(key), key) for key in younger)
        return contesting

    def _enter(self, key: bytes, sort: str, *, is_new: bool) -> None:
        self._sorts[sort][key] = None
        if not is_new:
            self._contested.pop(sort, None)  # It may be older than some who were safe.
        elif sort in self._contested:
            insort(self._contested[sort], (self._rank(key), key))

    def _leave(self, key: bytes) -> None:
        for sort, keys in self._sorts.items():
            if key not in keys:
                continue
            del keys[key]
            contesting = self._contested.get(sort)
            if contesting is None:
                continue
            at = bisect_left(contesting, (self._rank(key), key))
            if contesting[at : at + 1] == [(self._rank(key), key)]:
                del contesting[at]
            else:
                del self._contested[sort]  # One of the oldest: another is safe in its place.

    def _rank(self, key: bytes) -> bytes:
        return tagged("p2p-node/sample-rank/1", self._secret, key)

    def keep_members(self, rooms: tuple[Members, ...]) -> None:
        """Take these for our rooms from now on."""
        if rooms == self._rooms:
            return
        self._rooms = rooms
        self._contested.clear()
        for keys in self._sorts.values():
            keys.clear()
        for key, message in self._adverts.items():
            self._sorts[self._sort_of(message)][key] = None

    def meet(self, key: bytes) -> None:
        """We have to do with this peer: its advert isn't one of many."""
        self._met[key] = None
        self._met.move_to_end(key)
        while len(self._met) > REGISTRY_MET_MAX:
            old, _ = self._met.popitem(last=False)
            self._resort(old)
        self._resort(key)

    def _resort(self, key: bytes) -> None:
        known = self._adverts.get(key)
        if known is not None:
            self._leave(key)
            self._enter(key, self._sort_of(known), is_new=False)

    def restore(self, message: Signed[Advert]) -> None:
        """Take back an advert from the store; its peer has been known since it was sent, if not longer."""
        if self.is_news(message):
            self._put(message)
            self._first_heard_ms[message.signer] = message.body.sent_ms
            self._contested.clear()

    def _put(self, message: Signed[Advert]) -> None:
        self._expires_ms = min(self._expires_ms, message.body.expires_ms)
        known = self._adverts.get(message.signer)
        if known is not None and known.body.offerings == message.body.offerings:
            self._adverts[message.signer] = message
            return
        self._drop(message.signer)
        self._adverts[message.signer] = message
        self._enter(message.signer, self._sort_of(message), is_new=known is None)
        for offering in message.body.offerings:
            able = self._by_ability.setdefault((offering.workload, offering.model), {})
            able[message.signer] = _shard_digest(message.signer)

    def _drop(self, key: bytes) -> None:
        known = self._adverts.pop(key, None)
        self._leave(key)
        for offering in known.body.offerings if known else ():
            ability = (offering.workload, offering.model)
            able = self._by_ability.get(ability, {})
            able.pop(key, None)
            if not able:
                self._by_ability.pop(ability, None)

    def expire(self, now_ms: int) -> list[Effect]:
        """Forget expired adverts."""
        if now_ms < self._expires_ms:
            return []
        gone = [key for key, message in self._adverts.items() if message.body.expires_ms <= now_ms]
        for key in gone:
            self._drop(key)
            del self._first_heard_ms[key]
        lives_ms = (message.body.expires_ms for message in self._adverts.values())
        self._expires_ms = min(lives_ms, default=INTEGER_MAX)
        return [Persist("registry", key, None) for key in gone]

    def get(self, key: bytes) -> Signed[Advert] | None:
        """The newest advert of a peer."""
        return self._adverts.get(key)

    def known_for_ms(self, key: bytes, now_ms: int) -> int:
        """How long a peer has been known without a gap; 0 for a stranger."""
        return max(0, now_ms - self._first_heard_ms.get(key, now_ms))

    def without_crowd(self, keys: Iterable[bytes], now_ms: int) -> list[bytes]:
        """The same keys, or only those known for a while, if many newcomers stand against each of them.

        Adverts cost nothing: a thousand made-up keys would else be drawn to verify in everybody's place, and
        none of them answers.
        """
        asked = list(keys)
        elders = [key for key in asked if self.known_for_ms(key, now_ms) >= NEWCOMER_MS]
        return elders if elders and len(asked) > CROWD_SHARE * len(elders) else asked

    def current(self, now_ms: int) -> Iterator[Signed[Advert]]:
        """Adverts that haven't expired, in the order of their keys."""
        for key in sorted(self._adverts):
            message = self._adverts[key]
            if message.body.expires_ms > now_ms:
                yield message

    def count_in(self, workload: str, model: bytes, depth: int, prefix: int) -> int:
        """How many are known in a room."""
        able = self._by_ability.get((workload, model), {})
        if depth <= 1:
            return len(able)
        shift = _SHARD_BITS + 1 - depth
        return sum([digest >> shift == prefix for digest in able.values()])

    def draw(
        self, workload: str, model: bytes, depth: int, prefix: int, *, count: int, luck: random.Random
    ) -> list[Signed[Advert]]:
        """Up to ``count`` adverts of peers known in a room, at random."""
        able = self._by_ability.get((workload, model), {})
        shift = _SHARD_BITS + 1 - depth if depth > 1 else _SHARD_BITS
        keys = sorted([key for key, digest in able.items() if digest >> shift == prefix])
        return [self._adverts[key] for key in (luck.sample(keys, count) if len(keys) > count else keys)]

    def able(self, workload: str, model: bytes, profile: str, now_ms: int) -> dict[bytes, Offering]:
        """Peers that advertise this model and profile, with their offering; none that is paused."""
        return {
            key: offering
            for key in sorted(self._by_ability.get((workload, model), ()))
            for offering in self._adverts[key].body.offerings
            if self._adverts[key].body.expires_ms > now_ms
            and self._adverts[key].body.slots_total
            and (offering.workload, offering.model) == (workload, model)
            and profile in offering.profiles
        }

    def able_count(self, workload: str, model: bytes) -> int:
        """How many peers are known to advertise this model, in whatever profile; quickly found."""
        return len(self._by_ability.get((workload, model), ()))
