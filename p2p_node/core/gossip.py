"""Gossip: what may be forwarded, what was seen, and what a neighbour missed.

`GossipBook.judge` is pure and quick, since every message of the network passes through it. ACCEPT
forwards and delivers; IGNORE drops without blame (late, repeated, newer than us); REJECT costs the
peer that forwarded it. Flooding loses messages now and then, so neighbours compare recent ids.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice
from typing import Any, TypeVar

from p2p_node.core.registry import Registry, check_advert
from p2p_node.core.rooms import Room, Rooms
from protocols.crypto import Crypto
from protocols.envelope import Signed, open_envelope
from protocols.errors import PeerFault, Rejected, UnknownKind
from protocols.limits import (
    BID_WINDOW_MS_MAX,
    CLOCK_SKEW_MS,
    GOSSIP_BYTES_MAX,
    OFFER_LIFETIME_MS_MAX,
    RECENT_GOSSIP_BYTES_MAX,
    RECENT_GOSSIP_MAX,
    RECENT_GOSSIP_MS,
    SEEN_MESSAGES_MAX,
    SYNC_IDS_MAX,
)
from protocols.messages import (
    Advert,
    Commitment,
    CommitmentNotice,
    Equivocation,
    FraudNotice,
    FraudProof,
    Offer,
    Widening,
)
from protocols.rulings import Ruling
from protocols.standing import Standings
from verification.equivocation import Contradiction, open_equivocation
from verification.evidence import Contract, open_notice
from verification.fraud import Accusation, open_proof

__all__ = ["TOPICS", "TOPIC_OF_KIND", "GossipBook", "GossipReader", "Judged"]

K = TypeVar("K")
V = TypeVar("V")

TOPIC_OF_KIND: dict[str, str] = {
    Advert.KIND: "peers",
    Offer.KIND: "jobs",
    CommitmentNotice.KIND: "jobs",
    Widening.KIND: "jobs",
    FraudProof.KIND: "convictions",
    Equivocation.KIND: "convictions",
    FraudNotice.KIND: "convictions",
}
TOPICS = ("peers", "jobs", "convictions")
JUDGED_MAX = 1_024
ASKED_MS = 4_000
"""For so long what one neighbour was asked for isn't asked of others. Then of everybody who has it: the first
may have told of it only to keep it from us."""


class Judged:
    """An accepted message with what was learned while judging it, so that it is opened once."""

    __slots__ = ("message", "opened")

    def __init__(self, message: Signed[Any], opened: Any) -> None:
        self.message = message
        self.opened = opened


class GossipReader:
    """What a gossip message says by itself: the same for every peer, whatever it knows already."""

    def __init__(self, *, network: str, crypto: Crypto) -> None:
        self._network = network
        self._crypto = crypto

    def envelope(self, data: bytes) -> Signed[Any]:
        """The message, if it is properly signed.

        Raises:
            PeerFault: it isn't.
        """
        return open_envelope(data, network=self._network, crypto=self._crypto, bytes_max=GOSSIP_BYTES_MAX)

    def frame(self, data: bytes) -> Signed[Any]:
        """A message from a link, if it is properly signed.

        Raises:
            PeerFault: it isn't.
        """
        return open_envelope(data, network=self._network, crypto=self._crypto)

    def notice(self, message: Signed[CommitmentNotice]) -> tuple[Contract, Signed[Commitment]]:
        """The contract and the commitment in a notice.

        Raises:
            PeerFault: a part isn't properly signed, or the parts don't belong together.
        """
        contract, commitment = open_notice(message.body, network=self._network, crypto=self._crypto)
        # [REJECT] Only the executor announces its commitment, or anybody could time the draw.
        if message.signer != contract.executor:
            raise Rejected("commitment notice isn't from the executor")
        return contract, commitment

    def accusation(self, message: Signed[FraudProof]) -> Accusation:
        """What a fraud proof claims.

        Raises:
            PeerFault: a part isn't properly signed or bound to the rest.
        """
        return open_proof(message.body, network=self._network, crypto=self._crypto)

    def contradiction(self, message: Signed[Equivocation]) -> Contradiction:
        """What two commitments for one segment show.

        Raises:
            PeerFault: they don't contradict each other.
        """
        return open_equivocation(message.body, network=self._network, crypto=self._crypto)


class GossipBook:
    """What this peer has heard by gossip, bounded."""

    def __init__(
        self, *, reader: GossipReader, registry: Registry, standings: Standings, rooms: Rooms | None = None
    ) -> None:
        self.reader = reader
        self._rooms = rooms or Rooms(b"", registry, tuple)
        self._registry = registry
        self._standings = standings
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._judged: OrderedDict[tuple[str, bytes], Judged] = OrderedDict()
        self._recent: OrderedDict[bytes, tuple[int, str, bytes]] = OrderedDict()
        self._recent_bytes = 0
        self._terms_of: OrderedDict[bytes, Contract] = OrderedDict()
        self._noticed: OrderedDict[tuple[bytes, bytes], bytes] = OrderedDict()
        self._asked: OrderedDict[bytes, int] = OrderedDict()

    # --- Judging ---------------------------------------------------------------------------------

    def judge(self, topic: str, data: bytes, now_ms: int, *, is_direct: bool = False) -> tuple[Ruling, str]:
        """Whether to forward ``data``, and why not if not.

        Args:
            topic: its short name.
            data: an envelope.
            now_ms: the time.
            is_direct: whether it came over a link, and goes no further.
        """
        try:
            judged = self._open(topic, data, now_ms, is_direct)
        except UnknownKind as unknown:
            return Ruling.IGNORE, str(unknown)
        except PeerFault as fault:
            return Ruling.REJECT, str(fault)
        if judged is None:
            return Ruling.IGNORE, "late or known"
        _remember(self._judged, (topic, data), judged, JUDGED_MAX)
        return Ruling.ACCEPT, ""

    def _open(self, topic: str, data: bytes, now_ms: int, is_direct: bool) -> Judged | None:
        if (topic, data) in self._judged:
            return self._judged[(topic, data)]
        message = self.reader.envelope(data)
        if message.id in self._seen:
            return None
        room = self._rooms.joined.get(topic)
        if room is not None:
            self._check_room(message, room)
        elif topic.startswith("room-"):
            return None  # We have left it.
        elif TOPIC_OF_KIND.get(message.body.KIND) != topic:
            raise Rejected(f"{message.body.KIND!r} doesn't belong on topic {topic!r}")
        match message.body:
            case Advert():
                is_for_all = room is None and not is_direct
                if is_for_all and not self._rooms.census.passes(message.signer, message.body.sent_ms):
                    return None
                is_current = check_advert(message, now_ms) and self._registry.is_news(message)
                if is_current:
                    return Judged(message, None)
                self.pass_over(message.id)
            case Offer() as offer:
                is_current = _check_offer(offer, now_ms)
                if is_current:
                    return Judged(message, None)
                self.pass_over(message.id)
            case CommitmentNotice():
                contract, commitment = self.reader.notice(message)
                is_over = contract.terms.finish_by_ms + CLOCK_SKEW_MS < now_ms
                return None if is_over else Judged(message, (contract, commitment))
            case Widening():
                agreed = self._terms_of.get(message.body.commitment_id)
                if agreed is None:
                    return None
                if agreed.requester != message.signer:
                    raise Rejected("widening isn't the requester's")
                return Judged(message, None)
            case FraudProof():
                accusation = self.reader.accusation(message)
                if self._standings.of(accusation.accused).convicted:
                    return None
                return Judged(message, accusation)
            case FraudNotice() as notice:
                is_current = _check_notice(message, now_ms)
                is_moot = self._standings.of(notice.accused).convicted
                # One word of each against each: notices cost nothing to make, and everybody passes them on.
                first = self._noticed.get((message.signer, notice.accused), message.id)
                # In a large network few know the accused, and the word has to pass the others.
                is_known = self._rooms.is_wide or self._registry.get(notice.accused) is not None
                is_news = is_current and is_known and not is_moot and first == message.id
                return Judged(message, None) if is_news else None
            case Equivocation():
                contradiction = self.reader.contradiction(message)
                if self._standings.of(contradiction.accused).convicted:
                    return None
                return Judged(message, contradiction)
        return None

    def _check_room(self, message: Signed[Any], room: Room) -> None:
        if isinstance(message.body, Advert):
            if not room.has(message):
                raise Rejected("advert is in a room that its signer doesn't belong to")
            return
        home = self.home(message)
        if home is None:
            if message.body.KIND != Widening.KIND:
                raise Rejected(f"{message.body.KIND!r} doesn't belong in a room")
        elif not room.holds(*home):
            raise Rejected(f"{message.body.KIND!r} is in a room that its job doesn't live in")

    def home(self, message: Signed[Any]) -> tuple[bytes, Any] | None:
        """The job that a message is about, and what names its ability; None if we can't tell.

        Raises:
            PeerFault: a part isn't properly signed.
        """
        match message.body:
            case Offer() as offer:
                return message.id, offer
            case CommitmentNotice():
                terms = self.reader.notice(message)[0].terms
                return terms.job_id, terms
            case Widening():
                agreed = self._terms_of.get(message.body.commitment_id)
                return (agreed.terms.job_id, agreed.terms) if agreed is not None else None
        return None

    # --- Keeping ---------------------------------------------------------------------------------

    def take(self, topic: str, data: bytes, now_ms: int) -> Judged | None:
        """An accepted message, once; None if it is a repeat."""
        judged = self._judged.pop((topic, data), None)
        if judged is None or judged.message.id in self._seen:
            return None
        self.keep(topic, judged.message, now_ms)
        if isinstance(judged.opened, tuple):
            contract, commitment = judged.opened
            self.know_commitment(contract, commitment.id)
        return judged

    def keep(self, topic: str, message: Signed[Any], now_ms: int) -> None:
        """Remember a message as seen, and for neighbours that missed it."""
        _remember(self._seen, message.id, None, SEEN_MESSAGES_MAX)
        if isinstance(message.body, FraudNotice):
            accusing = (message.signer, message.body.accused)
            _remember(self._noticed, accusing, self._noticed.get(accusing, message.id), RECENT_GOSSIP_MAX)
        if message.id in self._recent:
            return
        self._recent[message.id] = (now_ms, topic, message.raw)
        self._recent_bytes += len(message.raw)
        while len(self._recent) > RECENT_GOSSIP_MAX or self._recent_bytes > RECENT_GOSSIP_BYTES_MAX:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        _, (_, _, raw) = self._recent.popitem(last=False)
        self._recent_bytes -= len(raw)

    def know_commitment(self, contract: Contract, commitment_id: bytes) -> None:
        """Remember whose commitment it is, to judge widenings."""
        _remember(self._terms_of, commitment_id, contract, RECENT_GOSSIP_MAX)

    def pass_over(self, identifier: bytes) -> None:
        """What will never be news again isn't asked of one neighbour after another."""
        _remember(self._seen, identifier, None, SEEN_MESSAGES_MAX)

    # --- Anti-entropy ----------------------------------------------------------------------------

    def recent_ids(
        self,
        now_ms: int,
        *,
        within_ms: int = RECENT_GOSSIP_MS,
        shares: Callable[[str], bool] = lambda topic: True,
    ) -> tuple[bytes, ...]:
        """Newest gossip, for a neighbour to compare: what was heard within this time, oldest first.

        Args:
            now_ms: the time.
            within_ms: how far back.
            shares: whether the neighbour hears a topic.
        """
        while self._recent:
            heard_ms, _, _ = next(iter(self._recent.values()))
            if heard_ms >= now_ms - RECENT_GOSSIP_MS:
                break
            self._forget_oldest()
        ids = list(islice(reversed(self._recent), SYNC_IDS_MAX))
        recent, since_ms = self._recent, now_ms - within_ms
        # They stand in the order they were heard in: where those begin that are too old is found by halving.
        fresh = bisect_left(ids, True, key=lambda identifier: recent[identifier][0] < since_ms)
        told = ids[:fresh][::-1]
        shared = {topic for topic in {recent[identifier][1] for identifier in told} if shares(topic)}
        return tuple(identifier for identifier in told if recent[identifier][1] in shared)

    def missing(self, ids: tuple[bytes, ...], now_ms: int) -> tuple[bytes, ...]:
        """Which of a neighbour's ids are news to us, and aren't on their way from another neighbour.

        Whoever starts hears from all its neighbours at once, and they all have the same.
        """
        wanted = []
        for identifier in ids:
            if identifier in self._seen:
                continue
            first_ms = self._asked.get(identifier)
            if first_ms is None:
                _remember(self._asked, identifier, now_ms, SYNC_IDS_MAX)
            if first_ms is None or now_ms >= first_ms + ASKED_MS:
                wanted.append(identifier)
        return tuple(wanted)

    def recent(self, identifier: bytes) -> bytes | None:
        """The bytes of a recent message."""
        entry = self._recent.get(identifier)
        return entry[2] if entry else None


def _check_notice(message: Signed[FraudNotice], now_ms: int) -> bool:
    body = message.body
    if body.accused == message.signer:
        raise Rejected("a fraud notice accuses its own signer")
    if body.sent_ms > now_ms + CLOCK_SKEW_MS:
        raise Rejected(f"fraud notice sent_ms={body.sent_ms} is in the future")
    # Its signer may have forgotten the proof, or be gone.
    return body.sent_ms + OFFER_LIFETIME_MS_MAX > now_ms


def _check_offer(offer: Offer, now_ms: int) -> bool:
    if not offer.sent_ms <= offer.bids_close_ms < offer.expires_ms:
        raise Rejected("offer times must be sent_ms <= bids_close_ms < expires_ms")
    # [REJECT] A long window would hold a slot of every bidder for nothing.
    if offer.bids_close_ms - offer.sent_ms > BID_WINDOW_MS_MAX:
        raise Rejected(f"offer collects bids for more than {BID_WINDOW_MS_MAX} ms")
    if offer.expires_ms - offer.sent_ms > OFFER_LIFETIME_MS_MAX + CLOCK_SKEW_MS:
        raise Rejected(f"offer lifetime must be at most {OFFER_LIFETIME_MS_MAX} ms")
    if offer.sent_ms > now_ms + CLOCK_SKEW_MS:
        raise Rejected(f"offer sent_ms={offer.sent_ms} is in the future")
    return offer.expires_ms > now_ms


def _remember(book: OrderedDict[K, V], key: K, value: V, size_max: int) -> None:
    book[key] = value
    while len(book) > size_max:
        book.popitem(last=False)
