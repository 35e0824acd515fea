"""Who could do a job, who could verify it, and what choosing a peer costs, by what this node knows."""

from __future__ import annotations

from p2p_node.core.paces import Paces, Work
from p2p_node.core.registry import Registry
from p2p_node.core.rooms import Rooms
from protocols.auction import Candidate, Ranking, score_micros
from protocols.digest import tagged
from protocols.envelope import Signed
from protocols.limits import ELECTORATE_MEMBERS_MAX
from protocols.messages import Member, Offer
from protocols.standing import Standings
from protocols.weights import limited
from verification.electorate import Electorate
from verification.findings import HOMOGENEOUS

__all__ = ["BIDDERS_EXPECTED", "Market", "is_drawn_to_bid"]

BIDDERS_EXPECTED = 48
"""Peers that answer an offer where more are able to: the requester answers each bid with a list of all."""


BUSY_MICROS = 1_000
"""Penalty of a peer whose advert shows no free slot: it is tried last."""


def is_drawn_to_bid(offer_id: bytes, peer: bytes, *, able: int) -> bool:
    """Whether a lot lets a peer answer an offer: of many about `BIDDERS_EXPECTED` do, each time others.

    Args:
        offer_id: of the offer.
        peer: who would bid.
        able: how many are able to, as far as one knows.
    """
    lot = int.from_bytes(tagged("p2p-node/bid-lot/1", offer_id, peer)[:8], "little")
    return lot * able < BIDDERS_EXPECTED << 64


class Market:
    """One node's view of the others, as a requester's machines ask for it."""

    def __init__(
        self,
        own_key: bytes,
        registry: Registry,
        standings: Standings,
        connected: set[bytes],
        rooms: Rooms,
    ) -> None:
        self._rooms = rooms
        self._own_key = own_key
        self._registry = registry
        self._standings = standings
        self._connected = connected
        self.paces = Paces()
        self.elector_age_ms = 0
        """How long a key must have been known before it may verify our jobs."""

    def appraise(
        self, peer: bytes, eta_ms: int, offer: Offer, *, ask_micros: int, ranking: Ranking
    ) -> tuple[int, int]:
        """What a peer's slowness and standing cost, in micro-units, and its corrected eta in ms."""
        work: Work = (offer.workload, offer.model, offer.profile)
        standing = self._standings.of(peer)
        # Delivered over declared time: promising less than one delivers doesn't win.
        declared = eta_ms * standing.latency_factor_ppm // 1_000_000
        corrected = self.paces.believable_ms(peer, work, units=offer.units_max, promised_ms=declared)
        penalty = score_micros(eta_ms=corrected, reputation_ppm=standing.reputation_ppm, ranking=ranking)
        return penalty + standing.risk_micros(ask_micros), corrected

    def able(self, offer: Offer, now_ms: int, *, job_id: bytes = b"") -> set[bytes]:
        """Other peers that advertise an offer's model in its profile, at whatever price.

        Args:
            offer: the offer.
            now_ms: the time.
            job_id: only those that hear of this job; empty for everybody.
        """
        able = self._registry.able(offer.workload, offer.model, offer.profile, now_ms)
        hears = self._rooms.hearing(job_id, offer)
        return {key for key in able if key != self._own_key and hears(key)}

    def posted_candidates(self, offer: Signed[Offer], *, ranking: Ranking, now_ms: int) -> list[Candidate]:
        """Peers whose standing ask fits an offer, best first."""
        body, candidates = offer.body, []
        able = self._registry.able(body.workload, body.model, body.profile, now_ms)
        hears = self._rooms.hearing(offer.id, body)
        welcome = self._standings.welcome_among((peer for peer in able if peer != self._own_key), now_ms)
        for peer, offering in able.items():
            advert = self._registry.get(peer)
            fits = (
                advert is not None
                and hears(peer)
                and peer != self._own_key
                and peer not in body.exclude
                and offering.price_micros <= body.price_micros_max
                and offering.rate_milli >= body.rate_milli_min
                and peer in welcome
            )
            if not fits or advert is None:
                continue
            declared_ms = 1_000_000 * body.units_max // max(1, offering.rate_milli)
            ask = offering.price_micros
            penalty, eta_ms = self.appraise(peer, declared_ms, body, ask_micros=ask, ranking=ranking)
            busy = 0 if advert.body.slots_free else BUSY_MICROS
            candidates.append(Candidate(peer, advert, ask, penalty + busy, eta_ms))
        # A connected peer saves a dial.
        candidates.sort(key=lambda c: (c.score_micros, c.peer not in self._connected, c.basis.id))
        return candidates

    def numeric_class(self, offer: Offer, peer: bytes, now_ms: int) -> str:
        """The class in which a peer offers a homogeneous job; empty if it names none."""
        able = self._registry.able(offer.workload, offer.model, offer.profile, now_ms)
        return able[peer].numeric_class if peer in able else ""

    def electorate(
        self, offer: Offer, executor: bytes, now_ms: int, *, job_id: bytes = b""
    ) -> Electorate | None:
        """Everybody known who could verify an offer's job but for the two parties; None if nobody.

        Of a job that has an id only those that hear of its commitments.

        Keys that turn up after the award don't count, nor do those younger than `elector_age_ms`: an
        executor can't make itself verifiers once it knows what it would have them overlook. A homogeneous
        job is verified inside the executor's class, since bits are equal nowhere else. Where newcomers are a
        crowd only the others count.
        """
        numeric_class = self.numeric_class(offer, executor, now_ms) if offer.profile == HOMOGENEOUS else ""
        able = self._registry.able(offer.workload, offer.model, offer.profile, now_ms)
        hears = self._rooms.hearing(job_id, offer)
        keys = [
            key
            for key, offering in able.items()
            if key not in (self._own_key, executor)
            and hears(key)
            and numeric_class in ("", offering.numeric_class)
            and self._registry.known_for_ms(key, now_ms) >= self.elector_age_ms
        ]
        welcome = self._standings.welcome_among(keys, now_ms)
        keys = self._registry.without_crowd((key for key in keys if key in welcome), now_ms)
        if len(keys) > ELECTORATE_MEMBERS_MAX:
            # Anybody can fill a registry with keys: proven peers first, the rest by a lot they can't aim at.
            keys.sort(
                key=lambda key: (
                    -self._standings.of(key).reputation_ppm,
                    tagged("p2p-node/electorate-lot/1", offer.nonce, key),
                )
            )
        weights = {key: self._standings.of(key).work.weight(now_ms) for key in keys[:ELECTORATE_MEMBERS_MAX]}
        members = [Member(key, weight) for key, weight in limited(weights).items()]
        return Electorate(members) if members else None
