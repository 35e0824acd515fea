"""A verifier's side of one commitment: claim the draw, recompute, hide, reveal.

A peer learns from its own VRF whether it was drawn, so nobody chose it and nobody knew it before.
It is given inputs only. Its digests are committed to before the executor's are opened, which makes
copying impossible rather than unprofitable.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

from protocols.crypto import Crypto, KeyPair
from protocols.digest import tagged
from protocols.effects import Effect, Notify, Recompute, Run, Send, SetTimer
from protocols.envelope import Signed
from protocols.errors import Rejected
from protocols.events import Event, Heard, RunFailed, RunRecomputed, TimerFired
from protocols.limits import WIDENING_MAX
from protocols.messages import Assignment, BlindVerdict, Commitment, DrawClaim, Opening, Reveal, Widening
from protocols.units import input_digest
from verification.commitment import blind_digest
from verification.evidence import Contract, check_draw, check_opening, check_units, check_widening
from verification.findings import NATIVE, agree, digest_of, numerics, stated
from verification.sortition import alpha, is_drawn

__all__ = ["Duty", "DutyState", "draw_level"]


class DutyState(enum.Enum):
    """Where a duty stands."""

    WAITING = "drawn only if the draw widens"
    CLAIMED = "claimed"
    RECOMPUTING = "recomputing"
    HIDDEN = "verdict hidden"
    DONE = "done"


def draw_level(beta: bytes, contract: Contract) -> int | None:
    """The lowest widening at which the heaviest elector with this VRF output is drawn, or None."""
    terms = contract.terms
    if not terms.electorate_weight_max <= terms.electorate_weight or terms.electorate_weight_max < 1:
        return None
    for level in range(WIDENING_MAX + 1):
        if is_drawn(
            beta,
            weight=terms.electorate_weight_max,
            total_weight=terms.electorate_weight,
            expected_milli=terms.expected_verifiers_milli,
            widening=level,
        ):
            return level
    return None


class Duty:
    """One commitment that this peer is, or may become, a verifier of."""

    def __init__(
        self,
        contract: Contract,
        commitment: Signed[Commitment],
        *,
        level: int,
        proof: bytes,
        keys: KeyPair,
        secret: bytes,
        network: str,
        crypto: Crypto,
        sign: Callable[[Any], Signed[Any]],
    ) -> None:
        self.contract = contract
        self.commitment = commitment
        self.state = DutyState.WAITING
        self._level = level
        self._proof = proof
        self._keys = keys
        self._network = network
        self._crypto = crypto
        self._sign = sign
        # Derived, so that a restarted verifier opens the same verdict instead of contradicting itself.
        self._nonce = tagged("p2p-node/blind-nonce/1", secret, commitment.id)
        self._claim: Signed[DrawClaim] | None = None
        self._blind: Signed[BlindVerdict] | None = None
        self._results: tuple[tuple[int, bytes], ...] = ()

    def start(self, now_ms: int) -> list[Effect]:
        """Claim the draw if it holds without widening."""
        expiry = SetTimer(("duty", self.commitment.id), now_ms + 8 * self._answer_ms)
        return [expiry, *(self._make_claim(now_ms) if self._level == 0 else [])]

    @property
    def _answer_ms(self) -> int:
        return self.contract.terms.answer_within_ms

    @property
    def fee_micros(self) -> int:
        """What the requester owes for this duty's chunks."""
        return self.contract.terms.verifier_fee_micros * len(self._results)

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        """React to the requester, the executor's opening or our own recomputation.

        Raises:
            Rejected: the sender broke a rule.
        """
        match event:
            case Heard(message) if isinstance(message.body, Widening):
                granted = check_widening(self.contract, self.commitment, message)
                if self.state is DutyState.WAITING and granted >= self._level:
                    return self._make_claim(now_ms)
            case Heard(message) if isinstance(message.body, Assignment):
                return self._hear_assignment(message)
            case Heard(message) if isinstance(message.body, Opening):
                return self._hear_opening(message, now_ms)
            case RunRecomputed(digests=digests):
                return self._hide(digests, now_ms)
            case RunFailed() | TimerFired():
                self.state = DutyState.DONE
        return []

    def _make_claim(self, now_ms: int) -> list[Effect]:
        self.state = DutyState.CLAIMED
        self._claim = self._sign(DrawClaim(self.commitment.id, self._level, self._proof))
        return [
            Notify(b"", "drawn", {"commitment": self.commitment.id, "requester": self.contract.requester}),
            Send(self.contract.requester, self._claim, now_ms + self._answer_ms),
        ]

    def _hear_assignment(self, message: Signed[Assignment]) -> list[Effect]:
        if self.state is not DutyState.CLAIMED or self._claim is None:
            return []
        body = message.body
        if message.signer != self.contract.requester or body.claim_id != self._claim.id:
            raise Rejected("assignment isn't the requester's answer to our claim")
        terms = self.contract.terms
        if input_digest(body.input) != terms.input_digest:
            raise Rejected("assignment's input isn't the contract's")
        check_units(self.contract, self.commitment.body, body.units)
        chunks = check_draw(
            self.contract,
            self.commitment,
            self._claim,
            body.membership,
            network=self._network,
            crypto=self._crypto,
            # By its own weight it may be drawn later than it claimed, by a widening not heard of yet.
            level=WIDENING_MAX,
        )
        self.state = DutyState.RECOMPUTING
        task = Recompute(
            terms.workload,
            terms.model,
            numerics(terms),
            body.input,
            body.units,
            chunks,
            sources=(self.contract.requester, self.contract.executor),
            private_to=self.contract.requester if terms.is_private else b"",
        )
        return [Run(("verify", self.commitment.id), task)]

    def _hide(self, digests: tuple[tuple[int, bytes], ...], now_ms: int) -> list[Effect]:
        if self.state is not DutyState.RECOMPUTING or self._claim is None:
            return []
        self._results = tuple(sorted(digests))
        hidden = tuple(
            (
                chunk,
                blind_digest(
                    verifier=self._keys.public,
                    root=self.commitment.body.root,
                    chunk=chunk,
                    digest=digest_of(self.contract.terms.profile, finding),
                    nonce=self._nonce,
                ),
            )
            for chunk, finding in self._results
        )
        self.state = DutyState.HIDDEN
        self._blind = self._sign(
            BlindVerdict(self.commitment.id, self._claim.id, hidden, self.contract.terms.profile)
        )
        return [Send(self.contract.requester, self._blind, now_ms + self._answer_ms)]

    def _hear_opening(self, message: Signed[Opening], now_ms: int) -> list[Effect]:
        if self.state is not DutyState.HIDDEN or self._blind is None:
            return []
        opened = check_opening(self.contract, self.commitment, message)
        if not {chunk for chunk, _ in self._results} <= opened.keys():
            raise Rejected("opening leaves out a chunk that we recomputed")
        self.state = DutyState.DONE
        terms = self.contract.terms
        found = [(chunk, *stated(terms.profile, finding)) for chunk, finding in self._results]
        reveal = self._sign(
            Reveal(
                self.commitment.id,
                self._blind.id,
                self._nonce,
                tuple((chunk, digest) for chunk, digest, _ in found),
                terms.profile,
                tuple(print_ for _, _, print_ in found) if terms.profile == NATIVE else (),
            )
        )
        agrees = all(agree(terms, opened[chunk], finding) for chunk, finding in self._results)
        return [
            Notify(b"", "verified", {"commitment": self.commitment.id, "agrees": agrees}),
            Send(self.contract.requester, reveal, now_ms + self._answer_ms),
        ]


def draw_proof(keys: KeyPair, network: str, commitment_id: bytes) -> bytes:
    """Our VRF proof for one commitment."""
    return keys.vrf_prove(alpha(network, commitment_id))
