"""A peer's part in the directory: what it asks of strangers, tells them, and keeps for them.

A distributed hash table of our own: `protocols.routing` has the peers, `protocols.lookup` finds the way,
`protocols.recordstore` keeps what others brought. This module sends and hears the messages. It speaks to
peers that we have no link with: the runtime dials whom `addresses_of` knows, and `HangUp` ends what was
dialled for a question and serves nothing else.

Nothing here is sent again: a question that isn't answered in time is another peer's turn.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from p2p_node.core.outbox import Transmit, message_frame
from p2p_node.core.patience import Patience
from p2p_node.core.providing import OwnRecords, RecordReader, Sign
from p2p_node.core.visits import Visits
from protocols.crypto import Crypto
from protocols.effects import Effect, Notify, Penalise, SetTimer
from protocols.envelope import Signed
from protocols.errors import PeerFault, Rejected
from protocols.limits import (
    BUCKET_PEERS,
    LOOKUPS_WAITING_MAX,
    QUESTIONS_PER_PEER_MAX,
    RECORDS_PER_ANSWER_MAX,
)
from protocols.lookup import Lookup
from protocols.messages import Closest, FindClosest, ProviderRecord, StoreRecord
from protocols.places import place_of
from protocols.recordstore import RecordStore
from protocols.routing import RoutingTable

__all__ = ["DIRECTORY_KINDS", "Directory", "Search"]

DirectoryAct: TypeAlias = Effect | Transmit
DIRECTORY_KINDS = (FindClosest, Closest, StoreRecord)

ANSWER_MS = 5_000
"""How long an answer is waited for, dialling included."""

LOOKUPS_MAX = 3
"""Lookups at once: each may dial three peers, or some more while these are slow. What keeps the table in
shape waits until there is none.
"""

REFRESH_MS = 15 * 60_000
"""A bucket in which nothing was looked up for so long is refreshed."""

ADDRESSES_MAX = 4_096


@dataclass(slots=True)
class Search:
    """One search, from its beginning to its end; afterwards `found` has what there is."""

    number: int
    lookup: Lookup
    purpose: str
    """``search`` for somebody who asks, ``place`` and ``refresh`` for the table, ``provide`` for a record."""
    is_over: bool = False

    @property
    def found(self) -> list[Signed[ProviderRecord]]:
        """Records of the key, each provider once, from all who told of it in turn."""
        return self.lookup.records


@dataclass(slots=True)
class _Question:
    peer: bytes
    search: Search | None
    asked_ms: int


class Directory:
    """See above. Does nothing until `is_on`."""

    def __init__(
        self,
        *,
        own: bytes,
        network: str,
        crypto: Crypto,
        sign: Sign,
        connected: set[bytes],
        jitter: random.Random,
    ) -> None:
        """A peer that has asked nobody yet.

        Args:
            own: its public key.
            network: records for any other are refused.
            crypto: judges records.
            sign: seals a body with its key.
            connected: peers that it has a link with; kept by the caller.
            jitter: spreads work, and draws what is refreshed.
        """
        self.is_on = False
        self.own_records = OwnRecords(own, sign)
        self.table = RoutingTable(own)
        self.store = RecordStore(place_of(own))
        self.questions_asked = 0
        self._own, self._sign, self._connected, self._jitter = own, sign, connected, jitter
        self._reader = RecordReader(network=network, crypto=crypto)
        self._questions: dict[bytes, _Question] = {}
        self._number = 0
        self._searches: dict[int, Search] = {}
        self._waiting: deque[Search] = deque()
        self._refreshed: dict[int, int] = {}
        self._addresses: OrderedDict[bytes, tuple[str, ...]] = OrderedDict()
        self._visits = Visits(connected)
        self._patience = Patience()
        self._asked_by: Counter[bytes] = Counter()

    # --- Commands --------------------------------------------------------------------------------

    def search(
        self, key: bytes, now_ms: int, *, wanted: int = BUCKET_PEERS, peer: bytes | None = None
    ) -> tuple[Search, list[DirectoryAct]]:
        """Look for providers of a key; `Notify` of ``searched`` tells its number when it is over.

        Args:
            key: see `protocols.places`.
            now_ms: the clock.
            wanted: how many are enough.
            peer: whose place the key is, to find out where that peer is.
        """
        search = self._new_search(key, now_ms, "search", wanted=wanted, peer=peer)
        if not self.is_on or len(self._waiting) >= LOOKUPS_WAITING_MAX:
            search.is_over = True
            return search, [_searched(search)]
        # Somebody waits for it: it goes before what keeps the table in shape.
        self._waiting.appendleft(search)
        return search, self._go_on(now_ms)

    def provide(self, keys: Iterable[bytes], addresses: tuple[str, ...], now_ms: int) -> None:
        """Be found under these keys, and reached at these addresses, from now on; `keep_house` sees to it.

        Without addresses we ask others and aren't asked.
        """
        self.own_records.addresses = addresses
        self.own_records.provide(keys, now_ms)

    def settle(self, now_ms: int) -> None:
        """Take the table for complete: every bucket has just been refreshed."""
        self._refreshed = dict.fromkeys(range(257), now_ms)

    def addresses_of(self, peer: bytes) -> tuple[str, ...]:
        """Where a peer that we met in the directory says it can be reached."""
        contact = self.table.get(peer)
        return contact.record.body.addresses if contact is not None else self._addresses.get(peer, ())

    def is_visit(self, peer: bytes) -> bool:
        """Whether a link with this peer would be there for a question only."""
        return peer in self._visits

    def used(self, peer: bytes) -> None:
        """The link with a peer serves something else, too: it isn't ours to end."""
        self._visits.used(peer)

    # --- Events ----------------------------------------------------------------------------------

    def peer_connected(self, peer: bytes, now_ms: int) -> list[DirectoryAct]:
        """A link is up: get to know the peer, unless we came to ask it something."""
        if not self.is_on or peer in self._visits or peer in self.table:
            return []
        return self._ask(peer, place_of(self._own), None, now_ms)

    def hear(self, peer: bytes, message: Signed[Any], now_ms: int) -> list[DirectoryAct]:
        """One of `DIRECTORY_KINDS`, from a peer.

        Raises:
            PeerFault: it broke a rule.
        """
        if not self.is_on:
            return []
        # [REJECT] Questions and answers are between two: what was signed for somebody else proves nothing.
        if message.signer != peer:
            raise Rejected(f"{message.body.KIND} must come from its signer")
        match message.body:
            case FindClosest():
                return self._answer(peer, message, now_ms)
            case Closest():
                return self._take_answer(peer, message.body, now_ms)
        record = self._reader.open(message.body.record, now_ms)
        if self.table.closer_than_us(record.body.key) < 2 * BUCKET_PEERS:
            self.store.put(record)
        return []

    def timer_fired(self, key: tuple[Any, ...], now_ms: int) -> list[DirectoryAct]:
        """A question is slow, or was open for too long."""
        _, what, find_id = key
        question = self._questions.get(find_id)
        if question is None:
            return []
        if what == "slow":
            if question.search is not None:
                question.search.lookup.delay(question.peer)
            return self._go_on(now_ms)
        return self._close(find_id, question, now_ms)

    def keep_house(self, now_ms: int) -> list[DirectoryAct]:
        """Do it every ten seconds: forget, refresh one bucket, publish what is due, let links go."""
        if not self.is_on:
            return []
        self._asked_by.clear()
        self.table.expire(now_ms)
        self.store.expire(now_ms)
        acts: list[DirectoryAct] = [*self._visits.let_go(now_ms)]
        stale = self.table.stalest(now_ms, REFRESH_MS)
        if stale is not None and not self._is_asked(stale.key):
            acts += self._ask(stale.key, place_of(self._own), None, now_ms)
        if (len(self.table) or self._connected) and len(self._waiting) < LOOKUPS_WAITING_MAX // 2:
            self._refresh(now_ms)
            for key in self.own_records.take_due(now_ms, lambda most_ms: self._jitter.randint(0, most_ms)):
                self._waiting.append(self._new_search(key, now_ms, "provide"))
        return acts + self._go_on(now_ms)

    # --- Keeping the table and our records -------------------------------------------------------

    def _refresh(self, now_ms: int) -> None:
        if 0 not in self._refreshed or now_ms - self._refreshed[0] >= REFRESH_MS:
            # Our own place: those nearest to us get to know us, and we them.
            self._refreshed[0] = now_ms
            self._waiting.append(self._new_search(place_of(self._own), now_ms, "place"))
            return
        nearest = min((self.table.bucket_of(contact.record.body.key) for contact in self.table), default=257)
        for number in range(256, nearest - 1, -1):
            if now_ms - self._refreshed.get(number, -REFRESH_MS) >= REFRESH_MS:
                self._waiting.append(self._new_search(self._somewhere_in(number), now_ms, "refresh"))
                return

    def _somewhere_in(self, bucket: int) -> bytes:
        """A place at a distance of this many bits from ours."""
        away = (1 << (bucket - 1)) | self._jitter.getrandbits(bucket - 1) if bucket > 1 else 1
        return (int.from_bytes(place_of(self._own), "big") ^ away).to_bytes(32, "big")

    # --- Lookups ---------------------------------------------------------------------------------

    def _new_search(
        self, key: bytes, now_ms: int, purpose: str, *, wanted: int = 0, peer: bytes | None = None
    ) -> Search:
        self._number += 1
        self._refreshed[self.table.bucket_of(key)] = now_ms
        # Seeds are looked up when it begins.
        return Search(self._number, Lookup(key, own=self._own, wanted=wanted, peer=peer), purpose)

    def _seeds(self, search: Search, now_ms: int) -> None:
        contacts = self.table.closest(search.lookup.target, BUCKET_PEERS)
        seeds: dict[bytes, Signed[ProviderRecord] | None] = {c.key: c.record for c in contacts}
        if len(seeds) < BUCKET_PEERS:
            # Neighbours are linked to, whatever is known of them.
            seeds |= {peer: None for peer in sorted(self._connected) if peer not in seeds}
        search.lookup.begin(list(seeds.items()))
        search.lookup.tell(self.store.get(search.lookup.target, now_ms))

    def _go_on(self, now_ms: int) -> list[DirectoryAct]:
        """Ask whom the lookups want to ask; end and begin lookups."""
        acts: list[DirectoryAct] = []
        while True:
            for search in list(self._searches.values()):
                for peer in search.lookup.next():
                    record = search.lookup.record_of(peer)
                    if record is not None:
                        self._remember(record)
                    acts += self._ask(peer, search.lookup.target, search, now_ms)
                if search.lookup.is_over:
                    del self._searches[search.number]
                    acts += self._end(search, now_ms)
            if not self._waiting:
                return acts
            at_most = LOOKUPS_MAX if self._waiting[0].purpose == "search" else 1
            if len(self._searches) >= at_most:
                return acts
            search = self._waiting.popleft()
            self._seeds(search, now_ms)
            self._searches[search.number] = search

    def _end(self, search: Search, now_ms: int) -> list[DirectoryAct]:
        search.is_over = True
        if search.purpose == "search":
            for record in search.found:
                self._remember(record)
            return [_searched(search)]
        key = search.lookup.target
        if search.purpose == "provide" and key in self.own_records:
            record = self.own_records.record(key, now_ms)
            self.store.put(record)
            message = self._sign(StoreRecord(record.raw))
            return [self._send(peer, message, now_ms) for peer in search.lookup.closest]
        return []

    # --- Questions and answers -------------------------------------------------------------------

    def _ask(self, peer: bytes, key: bytes, search: Search | None, now_ms: int) -> list[DirectoryAct]:
        self.questions_asked += 1
        with_records = search is not None and search.purpose == "search"
        question = self._sign(
            FindClosest(key, self.questions_asked, with_records, self.own_records.place(now_ms))
        )
        self._questions[question.id] = _Question(peer, search, now_ms)
        return [
            self._send(peer, question, now_ms),
            SetTimer(("directory", "slow", question.id), now_ms + self._patience.wait_ms),
            SetTimer(("directory", "late", question.id), now_ms + ANSWER_MS),
        ]

    def _send(self, peer: bytes, message: Signed[Any], now_ms: int) -> Transmit:
        self._visits.sent(peer, now_ms)
        return Transmit(peer, message_frame(message.raw))

    def _is_asked(self, peer: bytes) -> bool:
        return any(question.peer == peer for question in self._questions.values())

    def _answer(self, peer: bytes, message: Signed[FindClosest], now_ms: int) -> list[DirectoryAct]:
        self._asked_by[peer] += 1
        if self._asked_by[peer] > QUESTIONS_PER_PEER_MAX:
            return []
        body = message.body
        self._meet(peer, body.sender, now_ms)
        peers = [
            contact.record.raw
            for contact in self.table.closest(body.key, BUCKET_PEERS + 1, proven=True)
            if contact.key != peer and contact.record.body.expires_ms > now_ms
        ]
        records = self.store.get(body.key, now_ms) if body.with_records else []
        if len(records) > RECORDS_PER_ANSWER_MAX:
            # Others each time: whoever came first doesn't take all the work.
            records = self._jitter.sample(records, RECORDS_PER_ANSWER_MAX)
        answer = Closest(
            message.id,
            self.own_records.place(now_ms),
            tuple(peers[:BUCKET_PEERS]),
            tuple(record.raw for record in records),
        )
        return [Transmit(peer, message_frame(self._sign(answer).raw))]

    def _take_answer(self, peer: bytes, answer: Closest, now_ms: int) -> list[DirectoryAct]:
        question = self._questions.get(answer.find_id)
        if question is None or question.peer != peer:
            return []
        key = question.search.lookup.target if question.search is not None else b""
        acts: list[DirectoryAct] = []
        try:
            self._meet(peer, answer.sender, now_ms)
            peers = [self._reader.open(raw, now_ms) for raw in answer.peers]
            records = [self._reader.open(raw, now_ms) for raw in answer.records]
            if any(record.body.key != place_of(record.signer) for record in peers):
                raise Rejected("a peer's record must be of its own place")
            if any(record.body.key != key for record in records):
                raise Rejected("records must be of the key that was asked for")
        except PeerFault as fault:
            self.table.failed(peer)
            acts = [Penalise(peer, fault.points, f"{answer.KIND}: {fault}")]
            return acts + self._close(answer.find_id, question, now_ms)
        del self._questions[answer.find_id]
        self._patience.answered(now_ms - question.asked_ms)
        self.table.answered(peer, now_ms)
        alive = [record for record in peers if record.body.expires_ms > now_ms]
        for record in alive:
            self.table.hear(record)
        if question.search is not None and not question.search.is_over:
            question.search.lookup.answered(peer, alive, records)
        return acts + self._go_on(now_ms)

    def _close(self, find_id: bytes, question: _Question, now_ms: int) -> list[DirectoryAct]:
        del self._questions[find_id]
        self.table.failed(question.peer)
        if question.search is not None and not question.search.is_over:
            question.search.lookup.failed(question.peer)
        return self._go_on(now_ms)

    # --- Records ---------------------------------------------------------------------------------

    def _meet(self, peer: bytes, raw: bytes, now_ms: int) -> None:
        """Take up the record that a peer sends of its own place."""
        if not raw:
            return
        record = self._reader.open(raw, now_ms)
        if record.signer != peer or record.body.key != place_of(peer):
            raise Rejected("a sender's record must be of its own place")
        if record.body.expires_ms > now_ms:
            self.table.hear(record)

    def _remember(self, record: Signed[ProviderRecord]) -> None:
        """Where a peer can be dialled that isn't in the table, or may not stay there."""
        self._addresses[record.signer] = record.body.addresses
        self._addresses.move_to_end(record.signer)
        if len(self._addresses) > ADDRESSES_MAX:
            self._addresses.popitem(last=False)


def _searched(search: Search) -> Notify:
    return Notify(b"", "searched", {"search": search.number, "found": len(search.found)})
