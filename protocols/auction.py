"""The requester's side of one auction, from offer to a ranking of bids.

Sealed bids, second-score, reverse. While the window is open only seals arrive, so neither a bidder
nor the requester's friend can look at the others' prices first. The window closes early when everybody
known to offer the work has answered. Then the requester signs the list of seals it counted and every
bidder opens its own. Scores are integers in micro-units, lower is
better, and ties break by the bid's id, never by arrival.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from protocols.codec import encode
from protocols.digest import tagged
from protocols.effects import Effect, Notify, Send, SetTimer
from protocols.envelope import Signed
from protocols.errors import Rejected
from protocols.events import Heard, TimerFired
from protocols.limits import BIDS_PER_JOB_MAX, DECLINES_PER_JOB_MAX
from protocols.messages import AuctionClose, Bid, BidSeal, Body, Decline, Offer, Sealed

__all__ = ["Auction", "AuctionState", "Candidate", "Ranking", "bid_seal", "score_micros"]

REVEAL_MS = 1_500
"""Bidders open within this time after the close; more than a round trip across the world."""

STRANGERS_REVEAL_MS = 200
"""How much longer than all others those may take of whom nothing is known: seals cost nothing."""


class AuctionState(enum.Enum):
    """Where an auction stands."""

    COLLECTING_SEALS = "collecting seals"
    COLLECTING_BIDS = "collecting bids"
    DECIDED = "decided"


@dataclass(frozen=True, slots=True)
class Ranking:
    """What the requester values, in micro-units of price per output unit."""

    latency_micros_per_s: int = 1
    reputation_micros: int = 20
    """Price advantage of a spotless peer over an unknown one."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One peer that could run the job, with the score that ranks it."""

    peer: bytes
    basis: Signed[Any]
    ask_micros: int
    penalty_micros: int
    eta_ms: int

    @property
    def score_micros(self) -> int:
        """Price plus what the peer's slowness and standing cost the requester."""
        return self.ask_micros + self.penalty_micros


def bid_seal(bidder: bytes, bid: Bid) -> bytes:
    """The digest that commits ``bidder`` to ``bid``; the bid's nonce hides it."""
    return tagged("p2p-node/bid-seal/1", bidder, encode(bid))


def score_micros(*, eta_ms: int, reputation_ppm: int, ranking: Ranking) -> int:
    """The penalty added to a price: what latency and an unproven peer cost.

    Args:
        eta_ms: time to the whole result, already corrected by what the peer delivered before.
        reputation_ppm: 0 for unknown or bad, 1,000,000 for spotless.
        ranking: the requester's weights.
    """
    latency = ranking.latency_micros_per_s * eta_ms // 1_000
    return latency + ranking.reputation_micros * (1_000_000 - reputation_ppm) // 1_000_000


def price_to_pay(candidates: list[Candidate], index: int, *, price_max: int) -> int:
    """Second-score price of ``candidates[index]``: the best score after it, less its own penalty.

    A truthful ask is then the best ask. A lone bidder is paid its ask: there is no second score,
    and the ceiling is the requester's private limit rather than anybody's cost.
    """
    winner = candidates[index]
    if index + 1 == len(candidates):
        return winner.ask_micros
    second = candidates[index + 1].score_micros - winner.penalty_micros
    return max(winner.ask_micros, min(second, price_max))


class Auction:
    """Feed it events with `handle`; when `state` is DECIDED, read `candidates`."""

    def __init__(
        self,
        offer: Signed[Offer],
        *,
        appraise: Callable[[bytes, Bid], tuple[int, int]],
        sign: Callable[[Body], Signed[Any]],
        expected: frozenset[bytes] = frozenset(),
    ) -> None:
        """Start collecting.

        Args:
            offer: the published offer.
            appraise: (peer, bid) to (penalty in micro-units, corrected eta in ms).
            sign: seals a body with the requester's key.
            expected: peers known to offer the work; once all have answered, and one with a seal, the window
                closes. Empty keeps it open to its end.
        """
        self.offer = offer
        self.state = AuctionState.COLLECTING_SEALS
        self.seals: dict[bytes, bytes] = {}
        self.bids: dict[bytes, Signed[Bid]] = {}
        self.declines: dict[bytes, Signed[Decline]] = {}
        self.candidates: list[Candidate] = []
        self.close: Signed[AuctionClose] | None = None
        self._appraise = appraise
        self._sign = sign
        self._expected = expected

    def start(self) -> list[Effect]:
        """The first timer."""
        return [SetTimer(("bids", self.offer.id), self.offer.body.bids_close_ms)]

    def handle(self, event: Heard | TimerFired, now_ms: int) -> list[Effect]:
        """React to a seal, a bid, a decline or the end of a window.

        Raises:
            Rejected: the sender broke a rule of the auction.
        """
        match event:
            case Heard(message) if isinstance(message.body, BidSeal):
                return self._hear_seal(message, now_ms)
            case Heard(message) if isinstance(message.body, Bid):
                return self._hear_bid(message, now_ms)
            case Heard(message) if isinstance(message.body, Decline):
                return self._hear_decline(message, now_ms)
            case TimerFired((name, _)) if name == "bids":
                return self._close(now_ms)
            case TimerFired((name, _)) if name == "reveals":
                return self._decide()
        return []

    def _hear_seal(self, message: Signed[BidSeal], now_ms: int) -> list[Effect]:
        if self.state is not AuctionState.COLLECTING_SEALS:
            return []  # Honest lateness: the network is slow, not the peer bad.
        known = self.seals.get(message.signer)
        if known is not None and known != message.body.seal:
            # A second, different seal is an attempt to keep two prices open.
            raise Rejected("a bidder sealed two different bids for one offer")
        if known is None and len(self.seals) >= BIDS_PER_JOB_MAX and not self._make_room(message.signer):
            return []
        self.seals[message.signer] = message.body.seal
        return self._close_if_all_answered(now_ms)

    def _make_room(self, bidder: bytes) -> bool:
        """In a full book, let a key of which nothing is known give way to a peer that is known to be able.

        Keys are free: a flood of them, quicker than any bidder, would otherwise be all the bidders there are.
        """
        if bidder not in self._expected:
            return False
        stranger = next((key for key in self.seals if key not in self._expected), None)
        if stranger is None:
            return False
        del self.seals[stranger]
        return True

    def _close_if_all_answered(self, now_ms: int) -> list[Effect]:
        # Without a seal we wait on: whoever takes the job then is somebody we haven't heard of.
        if (
            not self._expected
            or not self.seals
            or not self._expected <= self.seals.keys() | self.declines.keys()
        ):
            return []
        return self._close(now_ms)

    def _close(self, now_ms: int) -> list[Effect]:
        if self.state is not AuctionState.COLLECTING_SEALS:
            return []
        if not self.seals:
            return self._decide()
        self.state = AuctionState.COLLECTING_BIDS
        entries = tuple(Sealed(bidder, seal) for bidder, seal in sorted(self.seals.items()))
        self.close = self._sign(AuctionClose(self.offer.id, entries, now_ms))
        until = now_ms + REVEAL_MS
        effects: list[Effect] = [Send(bidder, self.close, until) for bidder in sorted(self.seals)]
        effects.append(SetTimer(("reveals", self.offer.id), until))
        return effects

    def _hear_bid(self, message: Signed[Bid], now_ms: int) -> list[Effect]:
        if self.state is not AuctionState.COLLECTING_BIDS:
            return []
        bid = message.body
        # [REJECT] The opened bid must be the one that was sealed.
        if self.seals.get(message.signer) != bid_seal(message.signer, bid):
            raise Rejected("bid doesn't match the seal its sender gave")
        # [REJECT] Above the ceiling that the offer named.
        if bid.price_micros > self.offer.body.price_micros_max:
            raise Rejected(
                f"bid price_micros={bid.price_micros} exceeds the offer's ceiling "
                f"{self.offer.body.price_micros_max}"
            )
        self.bids[message.signer] = message
        effects: list[Effect] = [
            Notify(
                self.offer.id,
                "bid",
                {
                    "peer": message.signer,
                    "price_micros": bid.price_micros,
                    "eta_ms": bid.eta_ms,
                    "device": bid.device,
                    "rate_milli": bid.rate_milli,
                    "warm": bid.warm,
                },
            )
        ]
        if len(self.bids) == len(self.seals):
            effects += self._decide()
        elif message.signer in self._expected and not self._expected & (self.seals.keys() - self.bids.keys()):
            effects.append(SetTimer(("reveals", self.offer.id), now_ms + STRANGERS_REVEAL_MS))
        return effects

    def _hear_decline(self, message: Signed[Decline], now_ms: int) -> list[Effect]:
        if len(self.declines) < DECLINES_PER_JOB_MAX:
            self.declines[message.signer] = message
        return self._close_if_all_answered(now_ms)

    def _decide(self) -> list[Effect]:
        if self.state is AuctionState.DECIDED:
            return []
        self.state = AuctionState.DECIDED
        for bidder, message in self.bids.items():
            penalty, eta_ms = self._appraise(bidder, message.body)
            self.candidates.append(Candidate(bidder, message, message.body.price_micros, penalty, eta_ms))
        # Arrival order differs between peers; the bid's id doesn't.
        self.candidates.sort(key=lambda candidate: (candidate.score_micros, candidate.basis.id))
        return []
