"""The provider's side: bids on offers, keeps reservations, and takes on awarded contracts.

A bid reserves a slot first, so that a peer never promises what it can't hold. The reservation ends
with the award, with word that somebody else won, or with the window.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from p2p_node.core.engagement import Engagement, EngagementState
from p2p_node.core.kept import KeptContract, KeptSegment
from p2p_node.core.market import is_drawn_to_bid
from p2p_node.core.registry import Registry
from p2p_node.core.surroundings import Surroundings
from protocols.auction import REVEAL_MS, bid_seal
from protocols.bidding import Ability, BidPlan, Capacity, DeclineReason, consider, find_ability, fits
from protocols.blobs import Blob
from protocols.digest import tagged
from protocols.effects import CancelRun, Effect, Notify, Prefetch, Run, Send
from protocols.envelope import Signed, open_envelope
from protocols.errors import PeerFault, Rejected
from protocols.limits import (
    AGREED_SEGMENT_CHUNKS_MAX,
    CLOCK_SKEW_MS,
    INTEGER_MAX,
    OFFER_LIFETIME_MS_MAX,
    OPEN_JOBS_MAX,
)
from protocols.messages import (
    Acceptance,
    AuctionClose,
    Award,
    Bid,
    BidSeal,
    Closed,
    Commitment,
    Decline,
    Offer,
    Proposal,
    Refusal,
    Voucher,
)
from protocols.units import input_digest, units_digest
from verification.electorate import Electorate

__all__ = ["ALL_DEVICES", "Provider"]

ALL_DEVICES = "all"
"""Names every device, where devices are paused."""

MISSING_SHARE_MAX_PPM = 500_000
"""An electorate that leaves out more of the weight we see than this is refused."""


@dataclass(slots=True)
class _Reservation:
    offer: Signed[Offer]
    bid: Signed[Bid] | None
    body: Bid
    plan: BidPlan
    until_ms: int


class Provider:
    """All offers and contracts of one peer as a worker."""

    def __init__(
        self,
        node: Surroundings,
        registry: Registry,
        *,
        own_key: bytes,
        abilities: tuple[Ability, ...],
        slots_total: int,
        blob_bytes_max: int = INTEGER_MAX,
    ) -> None:
        self.abilities = abilities
        self.blob_bytes_max = blob_bytes_max
        self.slots_total = slots_total
        self.is_paused = False
        self.devices_paused: frozenset[str] = frozenset()
        self.engagements: dict[bytes, Engagement] = {}
        self._reservations: dict[bytes, _Reservation] = {}
        self._blob_bytes: dict[bytes, int] = {}
        """Of the input of each engagement."""
        self._taken: OrderedDict[bytes, None] = OrderedDict()
        self._node = node
        self._registry = registry
        self._own_key = own_key

    # --- Capacity --------------------------------------------------------------------------------

    def running(self) -> list[Engagement]:
        """Contracts that hold a slot now."""
        return [e for e in self.engagements.values() if e.state is EngagementState.RUNNING]

    def capacity(self, now_ms: int) -> Capacity:
        """What is free, with reservations counted as taken."""
        for job_id in [j for j, r in self._reservations.items() if r.until_ms < now_ms]:
            del self._reservations[job_id]
        for award_id in [a for a, e in self.engagements.items() if e.state is EngagementState.DONE]:
            del self.engagements[award_id]
            self._blob_bytes.pop(award_id, None)
        reserved = sum(_blob_bytes(reservation.offer.body) for reservation in self._reservations.values())
        taken = len(self.running()) + len(self._reservations)
        return Capacity(
            max(0, self.slots_total - taken),
            self.slots_total,
            0,
            self.is_paused,
            devices_paused=self.devices_paused,
            blob_bytes_free=max(0, self.blob_bytes_max - reserved - sum(self._blob_bytes.values())),
        )

    def pause(self, devices: frozenset[str], why: str, now_ms: int) -> list[Effect]:
        """Take on nothing more on these devices, and hand back what runs on them.

        Args:
            devices: all those that are paused from now on; `ALL_DEVICES` among them for every one.
            why: for the requesters.
            now_ms: the time.
        """
        self.is_paused, self.devices_paused = ALL_DEVICES in devices, devices - {ALL_DEVICES}
        effects: list[Effect] = []
        for job_id, reservation in list(self._reservations.items()):
            if self._is_paused_on(reservation.plan.device):
                del self._reservations[job_id]
        for engagement in self.running():
            if self._is_paused_on(engagement.acceptance.body.device):
                effects += engagement.hand_back(why, now_ms)
        return effects

    def _is_paused_on(self, device: str) -> bool:
        return self.is_paused or device in self.devices_paused

    # --- Offers ----------------------------------------------------------------------------------

    def hear_offer(self, offer: Signed[Offer], now_ms: int) -> list[Effect]:
        """Bid, or say why not."""
        body = offer.body
        if offer.signer == self._own_key or body.mode != "auction" or now_ms > body.bids_close_ms:
            return []
        if offer.id in self._reservations or len(self._reservations) >= OPEN_JOBS_MAX:
            return []
        if not self.abilities:
            return []  # Serves nothing, so it is no news that it doesn't bid.
        if not self._is_drawn(offer):
            return []
        if not self._node.standings.is_welcome(offer.signer, now_ms):
            return self._decline(offer, DeclineReason("standing", detail="the requester failed us before"))
        plan = consider(body, own_key=self._own_key, abilities=self.abilities, capacity=self.capacity(now_ms))
        if isinstance(plan, DeclineReason):
            return self._decline(offer, plan)
        chunk_units = min(ability.chunk_units for ability in self.abilities)
        if not self._node.credit.is_good(offer.signer, chunk_units * plan.price_micros):
            owed = self._node.credit.owed_micros(offer.signer)
            return self._decline(
                offer,
                DeclineReason("standing", have=owed, detail=f"the requester owes us {owed} micro-units"),
            )
        nonce = tagged("p2p-node/bid-nonce/1", self._node.secret, offer.id)
        bid = Bid(
            job_id=offer.id,
            nonce=nonce,
            price_micros=plan.price_micros,
            eta_ms=plan.eta_ms,
            rate_milli=plan.rate_milli,
            device=plan.device,
            warm=plan.warm,
            slots_free=self.capacity(now_ms).slots_free,
        )
        until_ms = body.bids_close_ms + 4 * REVEAL_MS
        self._reservations[offer.id] = _Reservation(offer, None, bid, plan, until_ms)
        seal = self._node.sign(BidSeal(offer.id, bid_seal(self._own_key, bid)))
        blobs = tuple(Blob(record.digest, record.size_bytes) for record in body.blobs)
        # Of a private job only who has it is given anything.
        is_early = bool(blobs) and not body.is_private
        early = [Run(("prefetch", offer.id), Prefetch(blobs, (offer.signer,)))] if is_early else []
        return [
            *early,
            Notify(b"", "bid", {"job": offer.id, "price_micros": plan.price_micros, "eta_ms": plan.eta_ms}),
            Send(offer.signer, seal, body.bids_close_ms),
        ]

    def _is_drawn(self, offer: Signed[Offer]) -> bool:
        # Adverts cost nothing: whoever makes a thousand could else have the lot leave out all that are real.
        if offer.signer in self._node.connected:
            return True
        room = self._node.rooms.room_of(offer.id, offer.body)
        workload, model = offer.body.workload, offer.body.model
        able = (
            self._registry.able_count(workload, model)
            if room is None
            else self._registry.count_in(workload, model, room.depth, room.prefix)
        )
        return is_drawn_to_bid(offer.id, self._own_key, able=able)

    def _decline(self, offer: Signed[Offer], why: DeclineReason) -> list[Effect]:
        message = self._node.sign(Decline(offer.id, why.reason, why.have, why.need, why.detail[:250]))
        return [
            Notify(
                b"",
                "declined",
                {
                    "job": offer.id,
                    "reason": why.reason,
                    "have": why.have,
                    "need": why.need,
                    "detail": why.detail,
                },
            ),
            Send(offer.signer, message, offer.body.bids_close_ms + REVEAL_MS),
        ]

    def hear_close(self, message: Signed[AuctionClose], now_ms: int) -> list[Effect]:
        """Open our bid, if the requester counted it."""
        reservation = self._reservations.get(message.body.job_id)
        if reservation is None or message.signer != reservation.offer.signer:
            return []
        seal = bid_seal(self._own_key, reservation.body)
        counted = any(entry.bidder == self._own_key and entry.seal == seal for entry in message.body.seals)
        if not counted:
            lost = self._drop(message.body.job_id)
            return [*lost, Notify(b"", "not-counted", {"job": message.body.job_id})]
        if reservation.bid is None:
            reservation.bid = self._node.sign(reservation.body)
        return [Send(message.signer, reservation.bid, now_ms + REVEAL_MS)]

    def hear_closed(self, message: Signed[Closed]) -> list[Effect]:
        """Free the reservation: the job is decided."""
        reservation = self._reservations.get(message.body.job_id)
        if reservation is not None and message.signer == reservation.offer.signer:
            return self._drop(message.body.job_id)
        return []

    def _drop(self, job_id: bytes) -> list[Effect]:
        """Somebody else won: what was fetched for it isn't needed."""
        reservation = self._reservations.pop(job_id)
        return [CancelRun(("prefetch", job_id))] if reservation.offer.body.blobs else []

    # --- Awards ----------------------------------------------------------------------------------

    def hear_proposal(self, message: Signed[Proposal], now_ms: int) -> list[Effect]:
        """Take the contract, or refuse it with a reason.

        Raises:
            PeerFault: a part isn't signed by the requester or isn't for us.
        """
        network, crypto = self._node.network, self._node.crypto
        award = open_envelope(message.body.award, network=network, crypto=crypto, expect=Award)
        offer = open_envelope(message.body.offer, network=network, crypto=crypto, expect=Offer)
        if award.signer != message.signer or offer.signer != message.signer:
            raise Rejected("proposal carries somebody else's award or offer")
        if award.body.executor != self._own_key:
            raise Rejected("proposal's award names another executor")
        # Once, even after it is over: a second run of one contract would be paid by the first's voucher.
        if award.id in self._taken:
            return []
        reservation = self._reservations.get(offer.id)
        try:
            ability, eta_ms = self._check_terms(award, offer, message.body, reservation, now_ms)
        except _Refused as refused:
            refusal = self._node.sign(Refusal(award.id, refused.reason, str(refused)[:250]))
            return [
                Notify(b"", "refused", {"award": award.id, "reason": refused.reason}),
                Send(message.signer, refusal, now_ms + 30_000),
            ]
        self._reservations.pop(offer.id, None)
        # Not where we heard the offer, if we did: anybody could have said it again in a room one step off.
        self._node.rooms.place(offer.id, message.body.room_depth)
        engagement = Engagement(
            self._node,
            award,
            input=message.body.input,
            prefix=message.body.prefix,
            device=ability.device,
            eta_ms=eta_ms,
        )
        self.engagements[award.id] = engagement
        self._blob_bytes[award.id] = _blob_bytes(offer.body)
        self.remember([award.id])
        return engagement.start(now_ms)

    def restore(
        self,
        award: Signed[Award],
        kept: KeptContract,
        segments: Sequence[tuple[Signed[Commitment], KeptSegment]],
        voucher: Signed[Voucher] | None,
        now_ms: int,
    ) -> list[Effect]:
        """Take up a contract of before a restart; see `Engagement.restore`."""
        acceptance = open_envelope(
            kept.acceptance, network=self._node.network, crypto=self._node.crypto, expect=Acceptance
        ).body
        engagement = Engagement(
            self._node,
            award,
            input=kept.input,
            prefix=kept.prefix,
            device=acceptance.device,
            eta_ms=acceptance.eta_ms,
        )
        self.engagements[award.id] = engagement
        self.remember([award.id])
        self._node.rooms.place(award.body.job_id, kept.room_depth)
        return engagement.restore(segments, voucher, now_ms)

    def remember(self, award_ids: Iterable[bytes]) -> None:
        """Don't run these again: a second run could commit to something else, which convicts."""
        for award_id in award_ids:
            self._taken[award_id] = None
        while len(self._taken) > OPEN_JOBS_MAX:
            self._taken.popitem(last=False)

    def _check_terms(
        self,
        award: Signed[Award],
        offer: Signed[Offer],
        proposal: Proposal,
        reservation: _Reservation | None,
        now_ms: int,
    ) -> tuple[Ability, int]:
        terms = award.body
        if not self._node.standings.is_welcome(award.signer, now_ms):
            raise _Refused("standing", "the requester failed us before")
        if not self._node.credit.is_good(award.signer, terms.chunk_units * terms.price_micros):
            owed = self._node.credit.owed_micros(award.signer)
            raise _Refused("standing", f"the requester owes us {owed} micro-units")
        if terms.accept_by_ms + CLOCK_SKEW_MS < now_ms or terms.finish_by_ms < now_ms:
            raise _Refused("expired", f"finish_by_ms={terms.finish_by_ms} has passed")
        same = ("workload", "model", "profile", "input_digest", "units_max", "is_private")
        if terms.job_id != offer.id or any(
            getattr(terms, field) != getattr(offer.body, field) for field in same
        ):
            raise _Refused("terms", "award and offer differ")
        if input_digest(proposal.input) != terms.input_digest:
            raise _Refused("input", "input doesn't match its digest")
        if units_digest(proposal.prefix) != terms.prefix_digest or len(proposal.prefix) != terms.prefix_units:
            raise _Refused("prefix", "prefix doesn't match its digest")
        if terms.prefix_units % terms.chunk_units or terms.prefix_units >= terms.units_max:
            raise _Refused("prefix", f"prefix_units={terms.prefix_units} isn't a whole number of chunks")
        # Until then our messages to the requester wait for it, acknowledged or not.
        latest_ms = max(terms.accept_by_ms, terms.finish_by_ms)
        if latest_ms > now_ms + OFFER_LIFETIME_MS_MAX + CLOCK_SKEW_MS:
            raise _Refused("terms", f"deadline {latest_ms} is too far ahead")
        if terms.segment_chunks > AGREED_SEGMENT_CHUNKS_MAX:
            raise _Refused(
                "terms", f"segment_chunks={terms.segment_chunks} exceeds {AGREED_SEGMENT_CHUNKS_MAX}"
            )
        if reservation is not None:
            plan: BidPlan | DeclineReason = reservation.plan
            if reservation.bid is None or terms.basis != reservation.bid.id:
                raise _Refused("basis", "award isn't based on our bid")
        else:
            plan = consider(
                offer.body, own_key=self._own_key, abilities=self.abilities, capacity=self.capacity(now_ms)
            )
        if isinstance(plan, DeclineReason):
            raise _Refused(plan.reason, plan.detail or f"have {plan.have}, need {plan.need}")
        if terms.price_micros < plan.price_micros:
            raise _Refused("price", f"price_micros={terms.price_micros} is below our {plan.price_micros}")
        self._check_electorate(award, proposal, now_ms)
        ability = find_ability(self.abilities, terms)
        if ability is None or not fits(ability, terms):
            raise _Refused("terms", _unfit(ability, terms))
        return ability, plan.eta_ms

    def _check_electorate(self, award: Signed[Award], proposal: Proposal, now_ms: int) -> None:
        terms = award.body
        hears = self._node.rooms.hearing(terms.job_id, terms)
        try:
            electorate = Electorate(proposal.electorate)
        except ValueError as error:
            raise _Refused("electorate", str(error)) from error
        heaviest = max(member.weight for member in electorate.members)
        pinned = (electorate.root, electorate.total_weight, electorate.count, heaviest)
        claimed = (terms.electorate_root, terms.electorate_weight, terms.electorate_count)
        if pinned != (*claimed, terms.electorate_weight_max):
            raise _Refused("electorate", "members don't match the root in the terms")
        known = {
            key: 1
            for key, offering in self._registry.able(
                terms.workload, terms.model, terms.profile, now_ms
            ).items()
            if key not in (self._own_key, award.signer)
            and hears(key)
            and self._node.standings.is_welcome(key, now_ms)
            and terms.numeric_class in ("", offering.numeric_class)
        }
        # The requester may have left out a crowd of newcomers, as we would.
        known = dict.fromkeys(self._registry.without_crowd(known, now_ms), 1)
        missing = electorate.missing_share(known)
        if missing > MISSING_SHARE_MAX_PPM:
            raise _Refused("electorate", f"leaves out {missing} ppm of the weight that we know")


def _unfit(ability: Ability | None, terms: Award) -> str:
    """Which of the terms our findings couldn't be compared under."""
    if ability is None:
        return f"we don't run it in {terms.profile}"
    if terms.chunk_units != ability.chunk_units:
        return f"chunk_units={terms.chunk_units} must be {ability.chunk_units}"
    return f"numeric_class={terms.numeric_class!r} or the tolerance isn't ours"


def _blob_bytes(offer: Offer) -> int:
    return sum(blob.size_bytes for blob in offer.blobs)


class _Refused(PeerFault):
    points = 0

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
