"""Gossip: what may be forwarded, what was seen, and what a neighbour missed.

`GossipBook.judge` is pure and quick, since every message of the network passes through it. ACCEPT
forwards and delivers; IGNORE drops without blame (late, repeated, newer than us); REJECT costs the
peer that forwarded it. Flooding loses messages now and then, so neighbours compare recent ids.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, TypeVar

from p2p_node.core.registry import Registry, check_advert
from protocols.crypto import Crypto
from protocols.envelope import Signed, open_envelope
from protocols.errors import PeerFault, Rejected, UnknownKind
from protocols.limits import (
    CLOCK_SKEW_MS,
    GOSSIP_BYTES_MAX,
    OFFER_LIFETIME_MS_MAX,
    RECENT_GOSSIP_MAX,
    RECENT_GOSSIP_MS,
    SEEN_MESSAGES_MAX,
    SYNC_IDS_MAX,
)
from protocols.messages import Advert, CommitmentNotice, FraudProof, Offer, Widening
from protocols.rulings import Ruling
from protocols.standing import Standings
from verification.evidence import Contract, open_notice
from verification.fraud import Accusation, open_proof

__all__ = ["TOPICS", "TOPIC_OF_KIND", "GossipBook", "Judged"]

K = TypeVar("K")
V = TypeVar("V")

TOPIC_OF_KIND: dict[str, str] = {
    Advert.KIND: "peers",
    Offer.KIND: "jobs",
    CommitmentNotice.KIND: "jobs",
    Widening.KIND: "jobs",
    FraudProof.KIND: "convictions",
}
TOPICS = ("peers", "jobs", "convictions")
JUDGED_MAX = 1_024


class Judged:
    """An accepted message with what was learned while judging it, so that it is opened once."""

    __slots__ = ("message", "opened")

    def __init__(self, message: Signed[Any], opened: Any) -> None:
        self.message = message
        self.opened = opened


class GossipBook:
    """What this peer has heard by gossip, bounded."""

    def __init__(self, *, network: str, crypto: Crypto, registry: Registry, standings: Standings) -> None:
        self._network = network
        self._crypto = crypto
        self._registry = registry
        self._standings = standings
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._judged: OrderedDict[bytes, Judged] = OrderedDict()
        self._recent: OrderedDict[bytes, tuple[int, str, bytes]] = OrderedDict()
        self._requester_of: OrderedDict[bytes, bytes] = OrderedDict()

    # --- Judging ---------------------------------------------------------------------------------

    def judge(self, topic: str, data: bytes, now_ms: int) -> tuple[Ruling, str]:
        """Whether to forward ``data``, and why not if not."""
        try:
            judged = self._open(topic, data, now_ms)
        except UnknownKind as unknown:
            return Ruling.IGNORE, str(unknown)
        except PeerFault as fault:
            return Ruling.REJECT, str(fault)
        if judged is None:
            return Ruling.IGNORE, "late or known"
        _remember(self._judged, data, judged, JUDGED_MAX)
        return Ruling.ACCEPT, ""

    def _open(self, topic: str, data: bytes, now_ms: int) -> Judged | None:
        if data in self._judged:
            return self._judged[data]
        message: Signed[Any] = open_envelope(
            data, network=self._network, crypto=self._crypto, bytes_max=GOSSIP_BYTES_MAX
        )
        if message.id in self._seen:
            return None
        if TOPIC_OF_KIND.get(message.body.KIND) != topic:
            raise Rejected(f"{message.body.KIND!r} doesn't belong on topic {topic!r}")
        match message.body:
            case Advert():
                is_current = check_advert(message, now_ms) and self._registry.is_news(message)
                return Judged(message, None) if is_current else None
            case Offer() as offer:
                return Judged(message, None) if _check_offer(offer, now_ms) else None
            case CommitmentNotice() as notice:
                return self._open_notice(message, notice, now_ms)
            case Widening():
                requester = self._requester_of.get(message.body.commitment_id)
                if requester is None:
                    return None
                if requester != message.signer:
                    raise Rejected("widening isn't the requester's")
                return Judged(message, None)
            case FraudProof() as proof:
                accusation: Accusation = open_proof(proof, network=self._network, crypto=self._crypto)
                if self._standings.of(accusation.accused).convicted:
                    return None
                return Judged(message, accusation)
        return None

    def _open_notice(self, message: Signed[Any], notice: CommitmentNotice, now_ms: int) -> Judged | None:
        contract, commitment = open_notice(notice, network=self._network, crypto=self._crypto)
        # [REJECT] Only the executor announces its commitment, or anybody could time the draw.
        if message.signer != contract.executor:
            raise Rejected("commitment notice isn't from the executor")
        if contract.terms.finish_by_ms + CLOCK_SKEW_MS < now_ms:
            return None
        return Judged(message, (contract, commitment))

    # --- Keeping ---------------------------------------------------------------------------------

    def take(self, topic: str, data: bytes, now_ms: int) -> Judged | None:
        """An accepted message, once; None if it is a repeat."""
        judged = self._judged.pop(data, None)
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
        _remember(self._recent, message.id, (now_ms, topic, message.raw), RECENT_GOSSIP_MAX)

    def know_commitment(self, contract: Contract, commitment_id: bytes) -> None:
        """Remember whose commitment it is, to judge widenings."""
        _remember(self._requester_of, commitment_id, contract.requester, RECENT_GOSSIP_MAX)

    # --- Anti-entropy ----------------------------------------------------------------------------

    def recent_ids(self, now_ms: int) -> tuple[bytes, ...]:
        """Newest gossip, for a neighbour to compare."""
        while self._recent:
            oldest = next(iter(self._recent))
            if self._recent[oldest][0] >= now_ms - RECENT_GOSSIP_MS:
                break
            del self._recent[oldest]
        return tuple(list(self._recent)[-SYNC_IDS_MAX:])

    def missing(self, ids: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """Which of a neighbour's ids are news to us."""
        return tuple(identifier for identifier in ids if identifier not in self._seen)

    def recent(self, identifier: bytes) -> bytes | None:
        """The bytes of a recent message."""
        entry = self._recent.get(identifier)
        return entry[2] if entry else None


def _check_offer(offer: Offer, now_ms: int) -> bool:
    if not offer.sent_ms <= offer.bids_close_ms < offer.expires_ms:
        raise Rejected("offer times must be sent_ms <= bids_close_ms < expires_ms")
    if offer.expires_ms - offer.sent_ms > OFFER_LIFETIME_MS_MAX + CLOCK_SKEW_MS:
        raise Rejected(f"offer lifetime must be at most {OFFER_LIFETIME_MS_MAX} ms")
    if offer.sent_ms > now_ms + CLOCK_SKEW_MS:
        raise Rejected(f"offer sent_ms={offer.sent_ms} is in the future")
    return offer.expires_ms > now_ms


def _remember(book: OrderedDict[K, V], key: K, value: V, size_max: int) -> None:
    book[key] = value
    while len(book) > size_max:
        book.popitem(last=False)
