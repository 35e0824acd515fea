"""One search of the directory: ever closer to a key, on ways that share no peer.

Ask whom `next` names, tell what comes of it by `answered`, `failed` and `delay`, until `is_over`. A liar can
lead one way astray: the others don't listen to it. It can name peers that don't exist: they fail, and with
three of them the rest of what only such as it named is passed over. It can name many keys of its own: of one
address range a few are asked. What is found is read off all who told of it in turn, so that nobody's word
takes all the room.

Sources: P. Maymounkov and D. Mazières, Kademlia (2002), section 2.3; I. Baumgart and S. Mies, S/Kademlia
(2007), section 4.4, for disjoint ways.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from protocols.envelope import Signed
from protocols.limits import BUCKET_PEERS, BUCKET_PEERS_PER_RANGE_MAX, LOOKUP_PATHS, LOOKUP_QUESTIONS_MAX
from protocols.messages import ProviderRecord
from protocols.places import distance, place_of, ranges_of

__all__ = ["Lookup"]

T = TypeVar("T")

INVENTED_MIN = 3
"""Failures of peers that one named, and no more successes, after which the rest of them are passed over."""


class _State(Enum):
    NEW = "new"
    ASKED = "asked"
    ANSWERED = "answered"
    FAILED = "failed"


@dataclass(slots=True)
class _Candidate:
    key: bytes
    record: Signed[ProviderRecord] | None
    """None of a peer that we are linked to and know no more of."""
    hops: int
    state: _State = _State.NEW
    is_slow: bool = False
    named_by: set[bytes] = field(default_factory=set)

    @property
    def ranges(self) -> frozenset[str]:
        """The address ranges that it is in."""
        return ranges_of(self.record.body.addresses) if self.record is not None else frozenset()


class _Path:
    __slots__ = ("asking", "order", "there")

    def __init__(self) -> None:
        self.order: list[tuple[int, bytes]] = []
        """(distance, key), closest first."""
        self.there: set[bytes] = set()
        self.asking: bytes | None = None

    def add(self, key: bytes, target: bytes) -> None:
        if key not in self.there:
            self.there.add(key)
            insort(self.order, (distance(place_of(key), target), key))


class Lookup:
    """See above."""

    def __init__(
        self,
        target: bytes,
        *,
        own: bytes,
        wanted: int = 0,
        peer: bytes | None = None,
    ) -> None:
        """A search that has nobody to ask yet.

        Args:
            target: the key.
            own: our public key.
            wanted: how many providers are enough; 0 looks for the closest peers only.
            peer: whose place the target is, if we want to know where that peer is.
        """
        self.target = target
        self.hops = 0
        """Questions in a row that led to the first record, or to the closest peer."""
        self.questions = 0
        self.is_enough = False
        self._own, self._wanted, self._peer = own, wanted, peer
        self._candidates: dict[bytes, _Candidate] = {}
        self._paths = [_Path() for _ in range(LOOKUP_PATHS)]
        self._told: dict[bytes, list[Signed[ProviderRecord]]] = {}
        """Records of the target, by who told of them."""
        self._failures: Counter[bytes] = Counter()
        self._successes: Counter[bytes] = Counter()

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to ask, or enough was found.

        Who takes its time isn't waited for once as many as matter have answered.
        """
        if self.is_enough:
            return True
        asked = [candidate for candidate in self._candidates.values() if candidate.state is _State.ASKED]
        if any(not candidate.is_slow for candidate in asked) or any(map(self._choice, self._paths)):
            return False
        return not asked or len(self.closest) >= BUCKET_PEERS

    @property
    def records(self) -> list[Signed[ProviderRecord]]:
        """What was found, each provider once, from those who told of it in turn."""
        found: dict[bytes, Signed[ProviderRecord]] = {}
        for record in _in_turn(list(self._told.values())):
            known = found.setdefault(record.signer, record)
            if record.body.sent_ms > known.body.sent_ms:
                found[record.signer] = record
        return list(found.values())

    @property
    def closest(self) -> list[bytes]:
        """Peers that answered, up to `BUCKET_PEERS`: the closest of each way in turn."""
        ways = [
            [key for _, key in path.order if self._candidates[key].state is _State.ANSWERED]
            for path in self._paths
        ]
        return list(dict.fromkeys(_in_turn(ways)))[:BUCKET_PEERS]

    def record_of(self, key: bytes) -> Signed[ProviderRecord] | None:
        """Where a peer that takes part can be reached."""
        candidate = self._candidates.get(key)
        return candidate.record if candidate is not None else None

    def begin(self, seeds: Iterable[tuple[bytes, Signed[ProviderRecord] | None]]) -> None:
        """Take peers to begin with: keys and, unless we have a link to them, records of their places."""
        ordered = sorted(seeds, key=lambda seed: distance(place_of(seed[0]), self.target))
        for number, (key, record) in enumerate(ordered):
            self._add(self._paths[number % LOOKUP_PATHS], key, record, hops=1)

    def tell(self, records: Sequence[Signed[ProviderRecord]]) -> None:
        """What we keep ourselves under the key."""
        if records:
            self._told[self._own] = list(records)
            self._judge_enough()

    def next(self) -> list[bytes]:
        """Whom to ask now."""
        if self.is_enough:
            return []
        asked = []
        for path in self._paths:
            chosen = self._choice(path) if path.asking is None else None
            if chosen is not None:
                self._candidates[chosen].state = _State.ASKED
                path.asking = chosen
                self.questions += 1
                asked.append(chosen)
        return asked

    def answered(
        self,
        key: bytes,
        peers: Iterable[Signed[ProviderRecord]],
        records: Sequence[Signed[ProviderRecord]] = (),
    ) -> None:
        """A peer answered, with checked records of places and of the target."""
        candidate = self._candidates[key]
        path = self._free(key)
        candidate.state = _State.ANSWERED
        self._successes.update(candidate.named_by)
        if candidate.is_slow:
            self._failures.subtract(candidate.named_by)
        for record in peers:
            if record.signer == self._peer:
                self._told.setdefault(key, []).append(record)
            self._add(path, record.signer, record, hops=candidate.hops + 1, named_by=key)
        if records:
            self._told.setdefault(key, []).extend(records)
        if self._told and not self.hops:
            self.hops = candidate.hops
        self._judge_enough()

    def failed(self, key: bytes) -> None:
        """A peer didn't answer, or answered wrongly."""
        self._free(key)
        candidate = self._candidates[key]
        candidate.state = _State.FAILED
        if not candidate.is_slow:
            self._failures.update(candidate.named_by)

    def delay(self, key: bytes) -> None:
        """A peer takes its time: its way goes on meanwhile, its answer still counts."""
        candidate = self._candidates[key]
        if candidate.state is _State.ASKED and not candidate.is_slow:
            self._free(key)
            # Until it answers it counts as invented: else a liar's inventions would cost a timeout each.
            candidate.is_slow = True
            self._failures.update(candidate.named_by)

    def _free(self, key: bytes) -> _Path:
        own = next((path for path in self._paths if path.asking == key), None)
        if own is not None:
            own.asking = None
            return own
        return next(path for path in self._paths if key in path.there)

    def _judge_enough(self) -> None:
        if self._peer is not None:
            # It says itself where it is: nobody's word is needed.
            self.is_enough = any(record.signer == self._peer for record in self.records)
        elif self._wanted and len(self._told) > 1:
            # One that tells of many counts for a third: it may have invented them.
            share = -(-self._wanted // LOOKUP_PATHS)
            few = {record.signer for told in self._told.values() for record in told[:share]}
            self.is_enough = len(few) >= self._wanted

    def _add(
        self,
        path: _Path,
        key: bytes,
        record: Signed[ProviderRecord] | None,
        *,
        hops: int,
        named_by: bytes | None = None,
    ) -> None:
        if key == self._own:
            return
        candidate = self._candidates.setdefault(key, _Candidate(key, record, hops))
        candidate.record = candidate.record or record
        if named_by is not None:
            candidate.named_by.add(named_by)
        path.add(key, self.target)

    def _choice(self, path: _Path) -> bytes | None:
        """The next to ask on a way: the closest that nobody asked, of the `BUCKET_PEERS` closest alive."""
        if self.questions >= LOOKUP_QUESTIONS_MAX:
            return None
        ranges: Counter[str] = Counter()
        seen = 0
        for _, key in path.order:
            candidate = self._candidates[key]
            if candidate.state is _State.FAILED or self._is_invented(candidate):
                continue
            if candidate.state is _State.ASKED and candidate.is_slow:
                # Most likely it isn't there: whoever would come in its place is asked meanwhile.
                continue
            taken = candidate.ranges
            if any(ranges[name] >= BUCKET_PEERS_PER_RANGE_MAX for name in taken):
                continue
            if candidate.state is _State.NEW:
                return key
            ranges.update(taken)
            seen += 1
            if seen >= BUCKET_PEERS:
                return None
        return None

    def _is_invented(self, candidate: _Candidate) -> bool:
        if candidate.state is not _State.NEW or not candidate.named_by:
            return False
        return all(
            self._failures[key] >= max(INVENTED_MIN, self._successes[key]) for key in candidate.named_by
        )


def _in_turn(lists: Sequence[Sequence[T]]) -> Iterator[T]:
    """The first of each, then the second of each, and so on."""
    for number in range(max(map(len, lists), default=0)):
        for one in lists:
            if number < len(one):
                yield one[number]
