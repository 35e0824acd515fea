"""The requester's side of verifying one commitment: draws, blind verdicts, opening, reveals, verdict.

The requester only relays: it can't choose who verifies, can't make a digest up, and can frame
nobody, because what convicts is a recomputation that everybody repeats. Verifiers work while the
draw window is still open; the executor is asked to open once, when all verdicts are in.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from protocols.crypto import Crypto
from protocols.effects import Effect, Notify, Publish, Recompute, Run, Send, SetTimer
from protocols.envelope import Signed
from protocols.errors import Rejected
from protocols.events import DisputeEnded, Event, Heard, RunFailed, RunRecomputed, TimerFired
from protocols.limits import DISPUTES_PER_SEGMENT_MAX, VERIFIERS_PER_SEGMENT_MAX, WIDENING_MAX
from protocols.messages import (
    Assignment,
    BlindVerdict,
    Commitment,
    DrawClaim,
    DrawEvidence,
    FraudProof,
    MembershipProof,
    Opening,
    OpeningRequest,
    Reveal,
    Widening,
)
from verification.electorate import Electorate
from verification.evidence import Contract, NotDrawn, check_blind, check_draw, check_opening, check_reveal
from verification.findings import EXACT_PROFILES, agree, is_false, judging_numerics
from verification.fraud import build_proof

__all__ = ["Round", "RoundState", "Verdict", "VerifierEntry"]

WIDER_WINDOW_FACTOR = 4
"""How much longer each widening waits than the draw before it, at most as long as any answer may take.

Where nobody answered, the links or the verifiers' machines may only be slow. The first claim ends the wait
within one draw window.
"""


class RoundState(enum.Enum):
    """Where a round stands."""

    DRAWING = "drawing verifiers"
    AWAITING_BLIND = "awaiting blind verdicts"
    AWAITING_OPENING = "awaiting the opening"
    AWAITING_REVEALS = "awaiting reveals"
    SETTLING = "recomputing what is disputed"
    DONE = "done"


class Verdict(enum.Enum):
    """What a round found."""

    VERIFIED = "verified"
    FRAUD = "fraud"
    WITHHELD = "opening withheld"
    UNVERIFIED = "no verifier answered"
    UNSETTLED = "a dispute couldn't be recomputed"


@dataclass(slots=True)
class VerifierEntry:
    """One drawn verifier's part."""

    claim: Signed[DrawClaim]
    membership: MembershipProof
    chunks: tuple[int, ...]
    blind: Signed[BlindVerdict] | None = None
    reveal: Signed[Reveal] | None = None
    results: dict[int, bytes] = field(default_factory=dict)
    false_verdict: bool = False

    @property
    def is_payable(self) -> bool:
        """Whether it did its work; what it found doesn't matter, unless it is proved false."""
        return self.reveal is not None and not self.false_verdict


class Round:
    """Feed it events with `handle`; when `state` is DONE, read `verdict`, `proofs`, `entries`."""

    def __init__(
        self,
        contract: Contract,
        commitment: Signed[Commitment],
        *,
        electorate: Electorate,
        input: bytes,
        units: Sequence[int],
        draw_window_ms: int,
        job_id: bytes,
        network: str,
        crypto: Crypto,
        sign: Callable[[Any], Signed[Any]],
    ) -> None:
        """Prepare a round over a commitment that `verification.evidence` has already accepted.

        Args:
            contract: the co-signed terms.
            commitment: what is to be verified.
            electorate: the list that the terms pin.
            input: the job's input.
            units: all output units up to the commitment's ``units_total``.
            draw_window_ms: how long to wait for verifiers to claim their draw.
            job_id: subject of notifications.
            network: part of the VRF's input.
            crypto: judges VRF proofs.
            sign: seals with the requester's key.
        """
        self.contract = contract
        self.commitment = commitment
        self.state = RoundState.DRAWING
        self.verdict: Verdict | None = None
        self.level = 0
        self.widenings: list[Signed[Widening]] = []
        self.entries: dict[bytes, VerifierEntry] = {}
        self.opening: Signed[Opening] | None = None
        self.proofs: list[FraudProof] = []
        self.executor_is_guilty = False
        self.guilty_chunk: int | None = None
        self._ended: dict[bytes, DisputeEnded] = {}
        self._is_recomputable = True
        self._light_claims: dict[bytes, Signed[DrawClaim]] = {}
        self._opened: dict[int, bytes] = {}
        self._electorate = electorate
        self._input = input
        self._units = tuple(units)
        self._draw_window_ms = draw_window_ms
        self._job_id = job_id
        self._network = network
        self._crypto = crypto
        self._sign = sign

    @property
    def input(self) -> bytes:
        """The job's input."""
        return self._input

    @property
    def units(self) -> tuple[int, ...]:
        """All output units up to the commitment's end; none once the round is over."""
        return self._units

    @property
    def _answer_ms(self) -> int:
        return self.contract.terms.answer_within_ms

    @property
    def _window_ms(self) -> int:
        """How long this level of the draw waits for a first claim."""
        longest_ms = max(self._draw_window_ms, self._answer_ms)
        wider = int(WIDER_WINDOW_FACTOR**self.level)
        return min(self._draw_window_ms * wider, longest_ms)

    def start(self, now_ms: int) -> list[Effect]:
        """Open the draw window."""
        return [self._timer("draw", now_ms + self._draw_window_ms)]

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        """React to a verifier, the executor, a recomputation or a timer.

        Raises:
            Rejected: the sender broke a rule.
        """
        match event:
            case Heard(message) if isinstance(message.body, DrawClaim):
                return self._hear_claim(message, now_ms)
            case Heard(message) if isinstance(message.body, BlindVerdict):
                return self._hear_blind(message, now_ms)
            case Heard(message) if isinstance(message.body, Opening):
                return self._hear_opening(message, now_ms)
            case Heard(message) if isinstance(message.body, Reveal):
                return self._hear_reveal(message, now_ms)
            case TimerFired((_, _, name, level)):
                return self._on_timer(name, level, now_ms)
            case RunRecomputed(digests=digests):
                return self._settle(dict(digests))
            case RunFailed() if self.state is RoundState.SETTLING:
                self._is_recomputable = False
                return self._settle_by_disputes()
            case DisputeEnded(verifier=verifier) if self.state is RoundState.SETTLING:
                self._ended[verifier] = event
                return [] if self._is_recomputable else self._settle_by_disputes()
        return []

    # --- Drawing ---------------------------------------------------------------------------------

    def _hear_claim(self, message: Signed[DrawClaim], now_ms: int) -> list[Effect]:
        if self.state not in (RoundState.DRAWING, RoundState.AWAITING_BLIND):
            return []  # Too late to count; lateness isn't a fault.
        if message.signer in self.entries or len(self.entries) >= VERIFIERS_PER_SEGMENT_MAX:
            return []
        if message.signer not in self._electorate:
            # It may have joined after the award, when the list was already fixed.
            return []
        membership = self._electorate.prove(message.signer)
        try:
            chunks = check_draw(
                self.contract,
                self.commitment,
                message,
                membership,
                network=self._network,
                crypto=self._crypto,
                level=self.level,
            )
        except NotDrawn:
            if membership.weight == self.contract.terms.electorate_weight_max:
                raise
            # Electors know the heaviest weight and not their own: it may be drawn if the draw widens.
            self._light_claims[message.signer] = message
            return []
        self.entries[message.signer] = VerifierEntry(message, membership, chunks)
        assignment = self._sign(
            Assignment(self.commitment.id, message.id, membership, self._input, self._units)
        )
        effects: list[Effect] = [
            Notify(
                self._job_id,
                "verifier-drawn",
                {"peer": message.signer, "chunks": chunks, "segment": self.commitment.body.segment},
            ),
            Send(message.signer, assignment, now_ms + self._answer_ms),
        ]
        if len(self.entries) == self._electorate.count:
            effects += self._end_of_draw(now_ms)
        elif self.level and self.state is RoundState.DRAWING:
            effects.append(self._timer("draw", now_ms + self._draw_window_ms))
        return effects

    def _end_of_draw(self, now_ms: int) -> list[Effect]:
        if self.state is not RoundState.DRAWING:
            return []
        if not self.entries:
            return self._widen(now_ms)
        self.state = RoundState.AWAITING_BLIND
        if self._all_blind():
            return self._request_opening(now_ms)
        return [self._timer("blind", now_ms + self._answer_ms)]

    def _widen(self, now_ms: int) -> list[Effect]:
        if self.level == WIDENING_MAX:
            return self._finish(Verdict.UNVERIFIED)
        self.level += 1
        self.state = RoundState.DRAWING
        widening = self._sign(Widening(self.commitment.id, self.level))
        self.widenings.append(widening)
        effects: list[Effect] = [
            Publish("jobs", widening),
            Notify(self._job_id, "widened", {"level": self.level}),
            self._timer("draw", now_ms + self._window_ms),
        ]
        light, self._light_claims = self._light_claims, {}
        for claim in light.values():
            effects += self._hear_claim(claim, now_ms)
        return effects

    # --- Blind verdicts --------------------------------------------------------------------------

    def _hear_blind(self, message: Signed[BlindVerdict], now_ms: int) -> list[Effect]:
        entry = self.entries.get(message.signer)
        if entry is None or self.state not in (RoundState.DRAWING, RoundState.AWAITING_BLIND):
            return []
        if entry.blind is not None:
            if entry.blind.id != message.id:
                raise Rejected("a verifier sent two different blind verdicts")
            return []
        check_blind(self.commitment, entry.claim, message, entry.chunks)
        entry.blind = message
        effects: list[Effect] = [Notify(self._job_id, "blind-verdict", {"peer": message.signer})]
        if self.state is RoundState.AWAITING_BLIND and self._all_blind():
            effects += self._request_opening(now_ms)
        return effects

    def _all_blind(self) -> bool:
        return all(entry.blind is not None for entry in self.entries.values())

    def _request_opening(self, now_ms: int) -> list[Effect]:
        draws = tuple(
            DrawEvidence(entry.claim.raw, entry.membership, entry.blind.raw)
            for entry in self.entries.values()
            if entry.blind is not None
        )
        if not draws:
            return self._widen(now_ms)
        self.state = RoundState.AWAITING_OPENING
        request = self._sign(OpeningRequest(self.commitment.id, tuple(w.raw for w in self.widenings), draws))
        until = now_ms + self._answer_ms
        return [Send(self.contract.executor, request, until), self._timer("opening", until)]

    # --- Opening and reveals ---------------------------------------------------------------------

    def _hear_opening(self, message: Signed[Opening], now_ms: int) -> list[Effect]:
        if self.state is not RoundState.AWAITING_OPENING:
            return []
        opened = dict(check_opening(self.contract, self.commitment, message))
        blinded = {key: entry for key, entry in self.entries.items() if entry.blind is not None}
        wanted = {chunk for entry in blinded.values() for chunk in entry.chunks}
        if wanted != opened.keys():
            raise Rejected(f"opening must be of chunks {sorted(wanted)}, it is of {sorted(opened)}")
        self.opening = message
        self._opened = opened
        self.state = RoundState.AWAITING_REVEALS
        until = now_ms + self._answer_ms
        effects: list[Effect] = [Send(verifier, message, until) for verifier in blinded]
        effects.append(self._timer("reveals", until))
        return effects

    def _hear_reveal(self, message: Signed[Reveal], now_ms: int) -> list[Effect]:
        entry = self.entries.get(message.signer)
        if self.state is not RoundState.AWAITING_REVEALS or entry is None or entry.blind is None:
            return []
        if entry.reveal is not None:
            return []
        entry.results = dict(check_reveal(self.commitment, entry.blind, message))
        entry.reveal = message
        differing = self._differing(entry)
        effects: list[Effect] = [
            Notify(
                self._job_id,
                "verdict",
                {"peer": message.signer, "agrees": not differing, "chunks": tuple(differing)},
            )
        ]
        if all(e.reveal is not None for e in self.entries.values() if e.blind is not None):
            effects += self._judge(now_ms)
        return effects

    def _judge(self, now_ms: int) -> list[Effect]:
        if self.state is not RoundState.AWAITING_REVEALS:
            return []
        revealed = [entry for entry in self.entries.values() if entry.reveal is not None]
        if not revealed:
            # The opening is out, so a wider draw could copy: this segment can't be verified now.
            return self._finish(Verdict.UNVERIFIED)
        disputed = self._disputed_chunks()
        if not disputed:
            return self._finish(Verdict.VERIFIED)
        self.state = RoundState.SETTLING
        terms = self.contract.terms
        task = Recompute(
            terms.workload,
            terms.model,
            judging_numerics(terms),
            self._input,
            self._units,
            tuple(disputed),
            sources=(self.contract.executor, *self.entries),
            private_to=self.contract.requester if terms.is_private else b"",
        )
        return [
            Notify(self._job_id, "disputed", {"chunks": tuple(disputed)}),
            Run(("settle", self.commitment.id), task),
        ]

    def _disputed_chunks(self) -> list[int]:
        return sorted({chunk for entry in self.entries.values() for chunk in self._differing(entry)})

    def _differing(self, entry: VerifierEntry) -> list[int]:
        """Chunks of which a verifier's finding doesn't agree with the executor's."""
        terms = self.contract.terms
        return [c for c, finding in entry.results.items() if not agree(terms, finding, self._opened[c])]

    # --- Settling a dispute ----------------------------------------------------------------------

    def _settle(self, truth: dict[int, bytes]) -> list[Effect]:
        if self.state is not RoundState.SETTLING or self.opening is None:
            return []
        disputed = self._disputed_chunks()
        # Nobody is accused on half the truth.
        if not truth.keys() >= set(disputed):
            return self._finish(Verdict.UNSETTLED)
        terms = self.contract.terms
        for chunk in disputed:
            if is_false(terms, self._opened[chunk], truth[chunk]) and self.guilty_chunk is None:
                self.guilty_chunk = chunk
                self._accuse(self.opening, chunk)
        for entry in self.entries.values():
            wrong = [c for c, f in entry.results.items() if c in truth and is_false(terms, f, truth[c])]
            if wrong and entry.reveal is not None:
                entry.false_verdict = True
                self._accuse(entry.reveal, wrong[0])
            elif self.guilty_chunk is None and self._differing(entry):
                # Not proved false, but it found fault where there was none.
                entry.false_verdict = True
        if self.guilty_chunk is not None:
            self.executor_is_guilty = True
            return self._finish(Verdict.FRAUD)
        honest = [e for e in self.entries.values() if e.is_payable]
        return self._finish(Verdict.VERIFIED if honest else Verdict.UNVERIFIED)

    def quarrels(self) -> dict[bytes, tuple[int, Signed[Reveal]]]:
        """By verifier: the first chunk of which it and the executor differ, and its reveal.

        No more than a segment may have disputes.
        """
        found = {
            key: (differing[0], entry.reveal)
            for key, entry in self.entries.items()
            if entry.reveal is not None and (differing := self._differing(entry))
        }
        return dict(list(found.items())[:DISPUTES_PER_SEGMENT_MAX])

    def _settle_by_disputes(self) -> list[Effect]:
        """Without the model only the parties' own contradictions tell who is right."""
        quarrels = self.quarrels()
        terms = self.contract.terms
        if terms.profile not in EXACT_PROFILES or terms.is_private or self.opening is None:
            return self._finish(Verdict.UNSETTLED)
        for ended in self._ended.values():
            if ended.loser == self.contract.executor and ended.is_proved:
                self.guilty_chunk = ended.chunk
                self.executor_is_guilty = True
                self._accuse(self.opening, ended.chunk)
                return self._finish(Verdict.FRAUD)
        if not quarrels.keys() <= self._ended.keys():
            return []  # Each dispute has a deadline.
        for key, entry in self.entries.items():
            if not self._differing(entry):
                continue
            ended_for = self._ended.get(key)
            if ended_for is None or ended_for.loser != key:
                return self._finish(Verdict.UNSETTLED)
            entry.false_verdict = True
            if ended_for.is_proved and entry.reveal is not None:
                self._accuse(entry.reveal, ended_for.chunk)
        honest = any(entry.is_payable for entry in self.entries.values())
        return self._finish(Verdict.VERIFIED if honest else Verdict.UNVERIFIED)

    def _accuse(self, statement: Signed[Any], chunk: int) -> None:
        proof = build_proof(
            self.contract, self.commitment, statement, chunk=chunk, input=self._input, units=self._units
        )
        if proof is not None:
            self.proofs.append(proof)

    # --- Timers ----------------------------------------------------------------------------------

    def _on_timer(self, name: str, level: int, now_ms: int) -> list[Effect]:
        if level != self.level:
            return []  # Set before a widening.
        if name == "draw":
            return self._end_of_draw(now_ms)
        if name == "blind" and self.state is RoundState.AWAITING_BLIND:
            return self._request_opening(now_ms)
        if name == "opening" and self.state is RoundState.AWAITING_OPENING:
            return self._finish(Verdict.WITHHELD)
        if name == "reveals":
            return self._judge(now_ms)
        return []

    def _timer(self, name: str, at_ms: int) -> SetTimer:
        return SetTimer(("round", self.commitment.id, name, self.level), at_ms)

    def _finish(self, verdict: Verdict) -> list[Effect]:
        self.state = RoundState.DONE
        self.verdict = verdict
        # A long job has many rounds, and each holds all units up to its end.
        self._units = ()
        return []
