"""The requester's side of one job, from the client's request to a receipt.

Every path ends in a named state. A peer that fails is left out for the rest of the job and the
runner-up goes on from the last verified unit; when the bids are used up the job is offered again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from p2p_node.core.attempt import DECEITS, EXECUTOR_FAULTS, Attempt, Outcome
from p2p_node.core.drafts import Draft
from p2p_node.core.market import is_drawn_to_bid
from p2p_node.core.request import FINAL_STATES, JobRequest, JobState
from p2p_node.core.sampling import plan_sampling
from p2p_node.core.surroundings import Surroundings
from protocols.auction import Auction, AuctionState, Candidate, price_to_pay
from protocols.digest import tagged
from protocols.effects import Effect, Notify, Persist, Publish, Send, SetTimer
from protocols.envelope import Signed
from protocols.events import Event, Heard, TimerFired
from protocols.limits import ATTEMPTS_MAX, CLOCK_SKEW_MS
from protocols.messages import AuctionClose, Bid, BlobRecord, Closed, Decline, Offer, ReceiptBody
from protocols.standing import DECEIT_FAILURES
from protocols.units import input_digest
from verification.draw_odds import OutOfReach
from verification.findings import CONVICTING_PROFILES, HOMOGENEOUS

__all__ = ["Job", "offer_of"]

REBID_MS = 1_000
"""Pause before an offer that nobody took is made again; doubles each time, up to REBID_MS_MAX."""

REBID_MS_MAX = 15_000

SEEK_MS = 2_000
"""How long an offer waits for answers about who could take it."""

ACKNOWLEDGE_MS = 2_000
"""How long the receipt waits for payees to confirm their vouchers."""

OVERSLEPT_MS = 10_000
"""Later than that after its auction's windows, a node was stopped or asleep while others answered."""

_UNCOUNTED = DECEITS | {Outcome.REFUSED}

_OUTCOME_STATES = {
    Outcome.FRAUD: JobState.VERIFICATION_FAILED,
    Outcome.WITHHELD: JobState.VERIFICATION_FAILED,
    Outcome.UNVERIFIED: JobState.VERIFICATION_FAILED,
    Outcome.UNSETTLED: JobState.VERIFICATION_FAILED,
    Outcome.INCONSISTENT: JobState.VERIFICATION_FAILED,
}


class Job:
    """Feed it events with `handle`; when `state` is final, read `units`, `receipt` and `reason`."""

    def __init__(self, node: Surroundings, request: JobRequest, *, nonce: bytes, now_ms: int) -> None:
        self.request = request
        self.state = JobState.BIDDING
        self.reason = ""
        self.created_ms = now_ms
        self.auctions: list[Auction] = []
        self.attempts: list[Attempt] = []
        self.receipt: Signed[ReceiptBody] | None = None
        self._outcome_state: JobState | None = None
        self._is_seeking = False
        self._node = node
        self._nonce = nonce
        self._offers: list[Signed[Offer]] = []
        self._candidates: list[Candidate] = []
        self._next_candidate = 0
        self._failed_peers: set[bytes] = set()
        self.id = self._make_offer(now_ms).id
        self._draft = Draft(self.id)

    # --- Views -----------------------------------------------------------------------------------

    @property
    def units(self) -> tuple[int, ...]:
        """The verified output so far."""
        return self.attempts[-1].verified if self.attempts else ()

    @property
    def parties(self) -> frozenset[bytes]:
        """Peers that execute or verify it now: what a private job names and leaves is for them alone."""
        running = [attempt for attempt in self.attempts if attempt.outcome is None]
        return frozenset(party for attempt in running for party in attempt.parties)

    @property
    def offers(self) -> list[Signed[Offer]]:
        """Every offer made, first to last."""
        return self._offers

    @property
    def is_seeking(self) -> bool:
        """Whether its offer waits for word of who could take it."""
        return self._is_seeking and not self.is_final

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in FINAL_STATES

    def declines(self) -> list[Signed[Decline]]:
        """Why peers didn't bid, over all offers."""
        return [message for auction in self.auctions for message in auction.declines.values()]

    # --- Events ----------------------------------------------------------------------------------

    def start(self, now_ms: int) -> list[Effect]:
        """Offer the job."""
        deadline = SetTimer(("job", self.id, "total"), now_ms + self.request.total_ms)
        return [deadline, *self._seek(now_ms)]

    def sought(self, now_ms: int) -> list[Effect]:
        """Those who could do it are known as well as they can be."""
        if not self._is_seeking or self.is_final:
            return []
        self._is_seeking = False
        return self._drafted(self._announce(now_ms), now_ms)

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        """React to a bidder, an executor, a verifier, a run or a timer.

        Raises:
            Rejected: the sender broke a rule.
        """
        if self.is_final:
            return []
        return self._drafted(self._react(event, now_ms), now_ms)

    def _react(self, event: Event, now_ms: int) -> list[Effect]:
        match event:
            case TimerFired(("job", _, name)):
                return self._on_timer(name, now_ms)
            case TimerFired(("bids" | "reveals", offer_id)):
                return self._advance_auction(offer_id, event, now_ms)
            case Heard(message) if (offer_id := getattr(message.body, "job_id", None)) is not None:
                return self._advance_auction(offer_id, event, now_ms)
        return self._advance_attempt(event, now_ms)

    def link_lost(self, peer: bytes, now_ms: int) -> list[Effect]:
        """The link to a peer broke; it matters if the peer is executing."""
        running = [a for a in self.attempts if a.outcome is None and a.candidate.peer == peer]
        return [effect for attempt in running for effect in attempt.link_lost(now_ms)]

    def executor_equivocated(self, peer: bytes, now_ms: int) -> list[Effect]:
        """A peer was shown to have signed two commitments for one segment, here or elsewhere."""
        effects: list[Effect] = []
        for attempt in self.attempts:
            if attempt.outcome is None and attempt.candidate.peer == peer:
                effects += attempt.contradict()
                effects += self._attempt_ended(attempt, now_ms)
        return self._drafted(effects, now_ms) if effects else []

    def cancel(self, now_ms: int, reason: str = "cancelled by the client") -> list[Effect]:
        """Stop on the client's word; what was verified stays owed."""
        if self.is_final:
            return []
        return self._drafted(self._conclude(JobState.CANCELLED, reason, now_ms), now_ms)

    # --- Offer and auction -----------------------------------------------------------------------

    def _make_offer(self, now_ms: int) -> Signed[Offer]:
        nonce = tagged("p2p-node/offer-nonce/1", self._nonce, bytes([len(self._offers)]))[:16]
        body = offer_of(
            self.request,
            nonce=nonce,
            exclude=self._failed_peers,
            sent_ms=now_ms,
            expires_ms=self.created_ms + self.request.total_ms + CLOCK_SKEW_MS,
            seek_ms=SEEK_MS if self._node.rooms.is_wide and self.request.mode == "auction" else 0,
        )
        offer = self._node.sign(body)
        self._offers.append(offer)
        return offer

    def _seek(self, now_ms: int) -> list[Effect]:
        questions = self._node.seek(self._offers[-1], now_ms)
        if not questions:
            return self._announce(now_ms)
        self._is_seeking = True
        return [*questions, SetTimer(("job", self.id, "sought"), now_ms + SEEK_MS)]

    def _announce(self, now_ms: int) -> list[Effect]:
        offer = self._offers[-1]
        rooms = self._node.rooms
        rooms.place(offer.id, rooms.depth_of(offer.body.workload, offer.body.model) or 0)
        self._node.route(offer.id, self)
        able = self._node.market.able(offer.body, now_ms, job_id=offer.id)
        drawn = frozenset(key for key in able if is_drawn_to_bid(offer.id, key, able=len(able)))
        expected = drawn - set(offer.body.exclude)
        auction = Auction(offer, appraise=self._appraise, sign=self._node.sign, expected=expected)
        self.auctions.append(auction)
        self.state = JobState.BIDDING
        offered = Notify(self.id, "offered", {"offer": offer.id, "mode": self.request.mode})
        if self.request.mode == "posted":
            self._candidates = self._node.market.posted_candidates(
                offer, ranking=self.request.ranking, now_ms=now_ms
            )
            self._next_candidate = 0
            # Everybody hears of every job, but the executor, whose proposal carries it, first.
            return [offered, *self._award_next(now_ms), Publish("jobs", offer)]
        return [Publish("jobs", offer), offered, *auction.start()]

    def _appraise(self, peer: bytes, bid: Bid) -> tuple[int, int]:
        offer = self._offers[-1].body
        return self._node.market.appraise(
            peer, bid.eta_ms, offer, ask_micros=bid.price_micros, ranking=self.request.ranking
        )

    def _advance_auction(self, offer_id: bytes, event: Event, now_ms: int) -> list[Effect]:
        auction = next((a for a in self.auctions if a.offer.id == offer_id), None)
        if auction is None or not isinstance(event, Heard | TimerFired):
            return []
        was_decided = auction.state is AuctionState.DECIDED
        effects = [
            # Each round has an offer of its own, but whoever watches knows the job by its first one.
            Notify(self.id, effect.event, effect.details) if isinstance(effect, Notify) else effect
            for effect in auction.handle(event, now_ms)
        ]
        is_current = auction is self.auctions[-1] and self.state is JobState.BIDDING
        if auction.state is AuctionState.DECIDED and not was_decided and is_current:
            # Who cheated or failed us may bid, but neither wins nor sets the price.
            found = auction.candidates
            welcome = self._node.standings.welcome_among((c.peer for c in found), now_ms)
            self._candidates = [candidate for candidate in found if candidate.peer in welcome]
            self._next_candidate = 0
            effects += self._award_next(now_ms)
        return effects

    # --- Award -----------------------------------------------------------------------------------

    def _award_next(self, now_ms: int) -> list[Effect]:
        self.state = JobState.AWARDING
        prefix = self.units
        # A refusal costs one round trip and nobody's work, so it uses up none of the client's attempts. Nor
        # does deceit: or a few strangers that bid below everybody could end any job, and be paid nothing.
        tried = sum(attempt.outcome not in _UNCOUNTED for attempt in self.attempts)
        if tried >= min(self.request.attempts_max, ATTEMPTS_MAX):
            return self._give_up(now_ms)
        while self._next_candidate < len(self._candidates) and len(self.attempts) < ATTEMPTS_MAX:
            index = self._next_candidate
            self._next_candidate += 1
            candidate = self._candidates[index]
            if candidate.peer in self._failed_peers:
                continue
            offer, numeric_class = self._offers[-1].body, ""
            if offer.profile == HOMOGENEOUS:
                numeric_class = self._node.market.numeric_class(offer, candidate.peer, now_ms)
                if not numeric_class:
                    continue  # Without a class nobody could judge its work.
            electorate = self._node.market.electorate(
                offer, candidate.peer, now_ms, job_id=self._offers[-1].id
            )
            if electorate is None:
                # Peers come and go: one that could may be known in a moment.
                return self._offer_again_or_give_up(now_ms, is_unverifiable=True)
            try:
                plan = plan_sampling(
                    self.request,
                    [member.weight for member in electorate.members],
                    check_share_ppm=self._node.standings.of(candidate.peer).check_share_ppm(),
                )
            except OutOfReach as error:
                return self._conclude(JobState.VERIFICATION_FAILED, f"verify.escape: {error}", now_ms)
            attempt = Attempt(
                self._node,
                self.request,
                self._offers[-1],
                candidate,
                electorate,
                plan=plan,
                numeric_class=numeric_class,
                price_micros=self._price(index),
                prefix=prefix,
                index=len(self.attempts),
                job_id=self.id,
                route=lambda identifier: self._node.route(identifier, self),
                now_ms=now_ms,
            )
            self.attempts.append(attempt)
            return attempt.start()
        return self._offer_again_or_give_up(now_ms)

    def _price(self, index: int) -> int:
        if self.request.mode == "posted":
            return self._candidates[index].ask_micros
        return price_to_pay(self._candidates, index, price_max=self.request.price_micros_max)

    def _offer_again_or_give_up(self, now_ms: int, *, is_unverifiable: bool = False) -> list[Effect]:
        pause_ms = min(REBID_MS << (len(self._offers) - 1), max(REBID_MS_MAX, self.request.queue_ms // 8))
        in_queue = now_ms + pause_ms < self.created_ms + self.request.queue_ms
        in_time = in_queue or bool(self.attempts)
        if len(self._offers) == 1 and not self.attempts:
            # Whoever slept through its own auction hasn't queued yet.
            in_time |= now_ms > self.created_ms + 2 * self.request.window_ms + SEEK_MS + OVERSLEPT_MS
        # Peers that could and are busy now are what the queue's time is for.
        is_queueing = in_queue and self._is_anybody_busy()
        rounds_left = min(self.request.rebids, ATTEMPTS_MAX - 1) - len(self._offers) + 1
        if (rounds_left > 0 and in_time) or (is_queueing and len(self._offers) < ATTEMPTS_MAX):
            self.state = JobState.BIDDING
            return [
                Notify(self.id, "no-bids-yet", {"offers": len(self._offers)}),
                SetTimer(("job", self.id, "rebid"), now_ms + pause_ms),
            ]
        if is_unverifiable:
            return self._conclude(
                JobState.VERIFICATION_FAILED, "no peer is known that could verify this job", now_ms
            )
        return self._give_up(now_ms)

    def _is_anybody_busy(self) -> bool:
        if any(attempt.outcome is Outcome.REFUSED for attempt in self.attempts):
            return True
        declines = self.auctions[-1].declines.values() if self.auctions else ()
        return any(decline.body.reason == "busy" for decline in declines)

    def _give_up(self, now_ms: int) -> list[Effect]:
        failed = [
            (attempt.outcome, attempt.detail)
            for attempt in self.attempts
            if attempt.outcome is not None and attempt.outcome is not Outcome.REFUSED
        ]
        if not failed:
            return self._conclude(JobState.NO_BIDS, self._why_no_bids(now_ms), now_ms)
        outcome, detail = failed[-1]
        state = _OUTCOME_STATES.get(outcome, JobState.TASK_FAILED)
        return self._conclude(state, f"{outcome.value}: {detail}" if detail else outcome.value, now_ms)

    def _why_no_bids(self, now_ms: int) -> str:
        able = self._node.market.able(self._offers[-1].body, now_ms)
        if able or (self.auctions and self.auctions[-1].seals):
            return "no peer took the job at these terms"
        model = self.request.model_name or self.request.model.hex()
        return f"nobody has model {model} for {self.request.workload} in profile {self.request.profile}"

    # --- Attempt ---------------------------------------------------------------------------------

    def _advance_attempt(self, event: Event, now_ms: int) -> list[Effect]:
        effects: list[Effect] = []
        for attempt in self.attempts:
            if not _concerns(attempt, event):
                continue
            had_outcome = attempt.outcome is not None
            effects += attempt.handle(event, now_ms)
            if attempt.contract is not None and self.state is JobState.AWARDING:
                self.state = JobState.RUNNING
            if attempt.outcome is not None and not had_outcome:
                effects += self._attempt_ended(attempt, now_ms)
        if self.state is JobState.SETTLING and all(a.payouts.is_acknowledged for a in self.attempts):
            effects += self._finish(now_ms)
        return effects

    def _attempt_ended(self, attempt: Attempt, now_ms: int) -> list[Effect]:
        return [*attempt.payouts.release_all(now_ms), *self._after_attempt(attempt, now_ms)]

    def _after_attempt(self, attempt: Attempt, now_ms: int) -> list[Effect]:
        peer, outcome = attempt.candidate.peer, attempt.outcome
        if outcome is Outcome.VERIFIED:
            self._node.standings.record_completion(
                peer,
                declared_ms=attempt.candidate.eta_ms,
                delivered_ms=now_ms - attempt.started_ms,
            )
            self._node.market.paces.observe(
                peer,
                (self.request.workload, self.request.model, self.request.profile),
                units=len(attempt.verified) - attempt.award.body.prefix_units,
                delivered_ms=now_ms - attempt.started_ms,
            )
            return self._conclude(JobState.VERIFIED, "", now_ms)
        if outcome not in (Outcome.REFUSED, Outcome.UNVERIFIED):
            # One that was only busy may take the next offer; so may one whose electors all left or kept
            # silent, under terms that pin those there are by then.
            self._failed_peers.add(peer)
        if outcome in EXECUTOR_FAULTS:
            is_deceit = outcome in DECEITS
            weight = DECEIT_FAILURES if is_deceit else 1
            self._node.standings.record_failure(peer, now_ms, weight=weight, is_mishap=not is_deceit)
        if outcome is Outcome.FRAUD and self.request.profile in CONVICTING_PROFILES:
            # We recomputed it ourselves: the gossiped proof convinces the others.
            self._node.standings.convict(peer)
        if outcome is Outcome.CANCELLED:
            return []
        if outcome is Outcome.NO_ROOM:
            # Another executor's output would be as large.
            return self._conclude(JobState.TASK_FAILED, f"{outcome.value}: {attempt.detail}", now_ms)
        return self._award_next(now_ms)

    # --- Endings ---------------------------------------------------------------------------------

    def _on_timer(self, name: str, now_ms: int) -> list[Effect]:
        if name == "total" and self.state is not JobState.SETTLING:
            return self._conclude(
                JobState.TIMED_OUT, f"no verified result within {self.request.total_ms} ms", now_ms
            )
        if name == "rebid" and self.state is JobState.BIDDING:
            # Who refused the last offer left nothing to show, and makes room for this one's attempts. Those
            # before an attempt that ran stay: its award has its number among them.
            while self.attempts and self.attempts[-1].outcome is Outcome.REFUSED:
                self.attempts.pop()
            self._make_offer(now_ms)
            return self._seek(now_ms)
        if name == "sought":
            return self.sought(now_ms)
        if name == "acknowledge" and self.state is JobState.SETTLING:
            return self._finish(now_ms)
        return []

    def _conclude(self, state: JobState, reason: str, now_ms: int) -> list[Effect]:
        if self._outcome_state is not None:
            return []
        self._outcome_state, self.reason = state, reason
        self.state = JobState.SETTLING
        effects: list[Effect] = []
        for attempt in self.attempts:
            effects += attempt.cancel(reason)
            effects += attempt.payouts.release_all(now_ms)
        winner = self.attempts[-1].candidate.peer if self.attempts else b""
        closed = self._node.sign(Closed(self._offers[-1].id, winner))
        bidders = sorted(self.auctions[-1].seals) if self.auctions else []
        effects += [Send(bidder, closed, now_ms + 10_000) for bidder in bidders]
        effects.append(Notify(self.id, "concluded", {"state": state.value, "reason": reason}))
        if all(attempt.payouts.is_acknowledged for attempt in self.attempts):
            return effects + self._finish(now_ms)
        return [*effects, SetTimer(("job", self.id, "acknowledge"), now_ms + ACKNOWLEDGE_MS)]

    def _finish(self, now_ms: int) -> list[Effect]:
        self.state = self._outcome_state or JobState.TASK_FAILED
        self.receipt = self._make_receipt(now_ms)
        return [
            Persist("receipts", self.id, self.receipt.raw),
            *self._draft.clear(),
            Notify(self.id, "finished", {"state": self.state.value, "reason": self.reason}),
        ]

    def _make_receipt(self, now_ms: int) -> Signed[ReceiptBody]:
        """The story so far; of a job that isn't decided it says what it would be if it ended now."""
        state = self._outcome_state or JobState.TASK_FAILED
        closes: list[Signed[AuctionClose]] = [a.close for a in self.auctions if a.close is not None]
        bids: list[Signed[Bid]] = [bid for a in self.auctions for _, bid in sorted(a.bids.items())]
        return self._node.sign(
            ReceiptBody(
                offers=tuple(offer.raw for offer in self._offers),
                closes=tuple(close.raw for close in closes),
                bids=tuple(bid.raw for bid in bids),
                attempts=tuple(attempt.record() for attempt in self.attempts),
                input=self.request.input,
                units=self.units,
                state=state.value,
                finished_ms=now_ms,
            )
        )

    def _drafted(self, effects: list[Effect], now_ms: int) -> list[Effect]:
        """The same, and what makes the job's story outlive us."""
        if self.is_final:
            return effects
        return effects + self._draft.changes(
            self.attempts, reason=self.reason, receipt=lambda: self._make_receipt(now_ms).raw
        )


def offer_of(
    request: JobRequest,
    *,
    nonce: bytes,
    exclude: Iterable[bytes] = (),
    sent_ms: int,
    expires_ms: int,
    seek_ms: int = 0,
) -> Offer:
    """The offer of a job.

    Args:
        request: what is asked for.
        nonce: 16 bytes that make it another offer than any before.
        exclude: peers that must not bid, beside those that the request excludes.
        sent_ms: now.
        expires_ms: when the job is over whatever happens.
        seek_ms: how long finding those who could take it may last, before they hear of it.
    """
    window_ms = request.window_ms if request.mode == "auction" else 0
    return Offer(
        nonce=nonce,
        mode=request.mode,
        workload=request.workload,
        model=request.model,
        profile=request.profile,
        input_digest=input_digest(request.input),
        input_units=request.input_units,
        units_max=request.units_max,
        price_micros_max=request.price_micros_max,
        ram_bytes_min=request.ram_bytes_min,
        rate_milli_min=request.rate_milli_min,
        exclude=tuple(sorted({*request.exclude, *exclude}))[:64],
        sent_ms=sent_ms,
        bids_close_ms=sent_ms + window_ms + seek_ms,
        expires_ms=expires_ms,
        blobs=_told(request),
        is_private=request.is_private,
    )


def _told(request: JobRequest) -> tuple[BlobRecord, ...]:
    """What everybody hears of the blobs that the input names: of a private job's only how large they are."""
    if request.is_private and request.input_blobs:
        return (BlobRecord(bytes(32), sum(blob.size_bytes for blob in request.input_blobs)),)
    return tuple(BlobRecord(blob.digest, blob.size_bytes) for blob in request.input_blobs)


def _concerns(attempt: Attempt, event: Event) -> bool:
    """Whether an event is about this attempt, by the award, commitment or voucher it names."""
    match event:
        case Heard(message):
            body = message.body
            named: Any = getattr(body, "award_id", None) or getattr(body, "commitment_id", None)
            if named is None:
                voucher_id = getattr(body, "voucher_id", b"")
                return attempt.payouts.has(voucher_id)
            return named == attempt.award.id or named in attempt.rounds
        case TimerFired(key):
            return key[1] == attempt.award.id or key[1] in attempt.rounds
    return event.key[1] in attempt.rounds
