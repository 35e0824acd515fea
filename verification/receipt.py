"""The offline check of a job's receipt: no network, no clock, no torch, nobody's word.

A receipt is its requester's account of a job, made of statements that the parties signed while it
ran. The checker reads it in the order of the job's life and names the first thing that doesn't
hold: offers, auction records, bids; then attempt by attempt the award, the acceptance, each segment
with its draws and verdict, and the payments; at last the result. It trusts the requester in
nothing: a statement that another party should have signed must be signed by it, and whatever
follows from statements is derived again. What remains is arithmetic, which `Claim`s put into a form
that anybody can recompute.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from protocols.crypto import Crypto
from protocols.envelope import Signed, open_envelope
from protocols.identity import peer_id
from protocols.limits import RECEIPT_BYTES_MAX
from protocols.messages import (
    Acceptance,
    AttemptRecord,
    Award,
    Commitment,
    Offer,
    ReceiptBody,
    SegmentRecord,
)
from protocols.units import input_digest, units_digest
from verification.evidence import Contract, check_contract, check_units
from verification.receipt_auction import Books, read_award, read_books, read_offers
from verification.receipt_payment import PaymentBook
from verification.receipt_report import (
    AttemptReport,
    Claim,
    Reader,
    ReceiptError,
    ReceiptReport,
    SegmentReport,
    VerifierReport,
    reading,
    require,
)
from verification.receipt_segment import SegmentEvidence, VerifierEvidence, claims_of, owed_to, read_segment
from verification.round import Verdict

__all__ = [
    "ATTEMPT_OUTCOMES",
    "JOB_STATES",
    "ReceiptError",
    "ReceiptReport",
    "check_receipt",
]

VERIFIED = Verdict.VERIFIED.value
REFUSED = "refused"
_ENDED_BY_VERDICT = frozenset(verdict.value for verdict in Verdict if verdict is not Verdict.VERIFIED)
_BLAMELESS = frozenset({REFUSED, Verdict.UNVERIFIED.value})
"""Outcomes after which an executor may be awarded the job again."""
_UNDELIVERED = frozenset({"output withheld", "no room for the output"})
_WITHOUT_CONTRACT = frozenset(
    {REFUSED, "unresponsive", "execution failed", "input not fetched", "handed back", "cancelled"}
)

ATTEMPT_OUTCOMES = (
    frozenset({VERIFIED, "output and commitment differ"})
    | _UNDELIVERED
    | _WITHOUT_CONTRACT
    | _ENDED_BY_VERDICT
)
"""Every way in which an attempt may end."""

JOB_STATES = frozenset(
    {"verified", "no_bids", "task_failed", "verification_failed", "timed_out", "cancelled"}
)
"""Every way in which a job may end."""


def check_receipt(raw: bytes, *, network: str, crypto: Crypto) -> ReceiptReport:
    """Check everything in a receipt but the arithmetic of the workload.

    Args:
        raw: the receipt's envelope, at most RECEIPT_BYTES_MAX bytes.
        network: the network that every statement must be for.
        crypto: judges signatures and VRF proofs.

    Returns:
        What the receipt proves, and the claims that a recomputation can settle.

    Raises:
        ReceiptError: the first thing that is wrong.
    """
    with reading("receipt"):
        receipt = open_envelope(
            raw, network=network, crypto=crypto, expect=ReceiptBody, bytes_max=RECEIPT_BYTES_MAX
        )
    return _Audit(receipt, Reader(network, crypto, receipt.signer)).run()


@dataclass(slots=True)
class _Audit:
    """One reading of one receipt, from front to back."""

    receipt: Signed[ReceiptBody]
    reader: Reader
    earnings: Counter[bytes] = field(default_factory=Counter)
    claims: list[Claim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def run(self) -> ReceiptReport:
        body = self.receipt.body
        offers = read_offers(body.offers, self.reader)
        first = offers[0].body
        require(input_digest(body.input) == first.input_digest, "input", "it isn't what the offer names")
        books = read_books(body.closes, body.bids, offers, self.reader)
        attempts = self._read_attempts(offers, books)
        self._check_end(attempts)
        return ReceiptReport(
            network=self.reader.network,
            receipt_id=self.receipt.id,
            job_id=offers[0].id,
            requester=self.receipt.signer,
            workload=first.workload,
            model=first.model,
            profile=first.profile,
            mode=first.mode,
            state=body.state,
            finished_ms=body.finished_ms,
            units=body.units,
            attempts=tuple(attempts),
            earnings=dict(self.earnings),
            claims=tuple(self.claims),
            notes=tuple(self.notes),
        )

    # --- Attempts --------------------------------------------------------------------------------

    def _read_attempts(self, offers: Sequence[Signed[Offer]], books: Books) -> list[AttemptReport]:
        reports: list[AttemptReport] = []
        offer_index = 0
        chunk_units: int | None = None
        for index, record in enumerate(self.receipt.body.attempts):
            step = f"attempt {index}"
            award, answered = read_award(
                record.award, record.basis, offers=offers, books=books, reader=self.reader, step=step
            )
            terms = award.body
            at = f"{step}: award"
            require(terms.attempt == index, at, f"attempt={terms.attempt} must be {index}")
            require(answered >= offer_index, at, "it answers an earlier offer than the attempt before")
            require(
                all(r.executor != terms.executor or r.outcome in _BLAMELESS for r in reports),
                at,
                "its executor already failed in an earlier attempt",
            )
            require(
                chunk_units in (None, terms.chunk_units),
                at,
                f"chunk_units={terms.chunk_units} isn't the {chunk_units} of the attempt before",
            )
            self._check_prefix(award, reports[-1].units_after if reports else 0, at)
            require(
                not reports or reports[-1].outcome != VERIFIED, at, "the attempt before was verified already"
            )
            offer_index, chunk_units = answered, terms.chunk_units
            reports.append(self._read_attempt(record, award, step))
        return reports

    def _check_prefix(self, award: Signed[Award], verified: int, step: str) -> None:
        """An attempt goes on exactly where verified output ended."""
        terms = award.body
        require(
            terms.prefix_units == verified,
            step,
            f"prefix_units={terms.prefix_units}, but {verified} units were verified before",
        )
        prefix = self.receipt.body.units[: terms.prefix_units]
        require(units_digest(prefix) == terms.prefix_digest, step, "its prefix isn't the receipt's output")

    def _read_attempt(self, record: AttemptRecord, award: Signed[Award], step: str) -> AttemptReport:
        require(record.outcome in ATTEMPT_OUTCOMES, f"{step}: outcome", f"{record.outcome!r} is no outcome")
        terms = award.body
        if record.acceptance == b"":
            require(
                record.outcome in _WITHOUT_CONTRACT and not record.segments,
                f"{step}: acceptance",
                f"it is missing, but the outcome is {record.outcome!r} after {len(record.segments)} segments",
            )
            before = terms.prefix_units
            return AttemptReport(
                terms.attempt, terms.executor, "", terms.price_micros, record.outcome, before, before, ()
            )
        acceptance = self.reader.open(record.acceptance, Acceptance, f"{step}: acceptance")
        with reading(f"{step}: acceptance"):
            contract = check_contract(award, acceptance)
        require(record.outcome != REFUSED, f"{step}: outcome", "refused, but here is the acceptance")
        segments, units_after, is_complete = self._read_segments(record.segments, contract, step)
        _check_outcome(record.outcome, segments, is_complete, f"{step}: outcome")
        return AttemptReport(
            terms.attempt,
            contract.executor,
            acceptance.body.device,
            terms.price_micros,
            record.outcome,
            terms.prefix_units,
            units_after,
            tuple(segments),
        )

    # --- Segments --------------------------------------------------------------------------------

    def _read_segments(
        self, records: Sequence[SegmentRecord], contract: Contract, step: str
    ) -> tuple[list[SegmentReport], int, bool]:
        """The segments, the verified output units after them, and whether they are the whole output."""
        book = PaymentBook(contract.award.id, self.reader)
        reports: list[SegmentReport] = []
        previous: Signed[Commitment] | None = None
        units_after = contract.terms.prefix_units
        units_before = units_after
        is_unbroken = is_in_line = True
        for index, record in enumerate(records):
            at = f"{step}, segment {index}"
            evidence = read_segment(
                record,
                contract=contract,
                previous=previous,
                input=self.receipt.body.input,
                reader=self.reader,
                step=at,
            )
            # Segments are paid in order: behind a gap nothing is due, whatever its own verdict, unless only
            # verifiers left it.
            is_verified = evidence.verdict == VERIFIED and record.is_delivered
            is_unbroken = is_unbroken and is_verified
            reports.append(
                self._settle_segment(
                    record,
                    evidence,
                    contract,
                    book,
                    units_before=units_before if is_in_line and is_verified else None,
                    is_kept=is_unbroken,
                    at=at,
                )
            )
            previous = evidence.commitment
            units_before = previous.body.units_total
            is_in_line = is_in_line and (is_verified or evidence.verdict == Verdict.UNVERIFIED.value)
            if is_unbroken:
                units_after = previous.body.units_total
        self.earnings.update(book.balance())
        is_complete = is_unbroken and previous is not None and previous.body.final
        return reports, units_after, is_complete

    def _settle_segment(
        self,
        record: SegmentRecord,
        evidence: SegmentEvidence,
        contract: Contract,
        book: PaymentBook,
        *,
        units_before: int | None,
        is_kept: bool,
        at: str,
    ) -> SegmentReport:
        """Check a segment's units and payments, and collect its claims.

        ``units_before`` counts the units before it; None if it isn't due. ``is_kept``: its units are among
        the receipt's.
        """
        body = evidence.commitment.body
        terms = contract.terms
        units: tuple[int, ...] | None = None
        if is_kept:
            units = self.receipt.body.units[: body.units_total]
            with reading(f"{at}: units"):
                check_units(contract, body, units)
        due = 0 if units_before is None else (body.units_total - units_before) * terms.price_micros
        is_paid = book.read(
            record.voucher,
            record.voucher_receipt,
            payee=contract.executor,
            amount_micros=due,
            evidence=evidence.commitment.id,
            is_owed=units_before is not None,
            step=f"{at}: executor's voucher",
        )
        paid = frozenset(
            verifier.peer
            for verifier, entry in zip(evidence.verifiers, record.verifiers, strict=True)
            if book.read(
                entry.voucher,
                entry.voucher_receipt,
                payee=verifier.peer,
                amount_micros=terms.verifier_fee_micros * len(verifier.chunks),
                evidence=evidence.commitment.id,
                is_owed=owed_to(evidence, verifier),
                step=f"{at}: voucher of verifier {peer_id(verifier.peer)}",
            )
        )
        self.claims += claims_of(
            evidence, contract=contract, input=self.receipt.body.input, units=units, paid=paid, step=at
        )
        self._note_unprovable(evidence, is_kept=is_kept, is_delivered=record.is_delivered, at=at)
        return SegmentReport(
            segment=body.segment,
            first_chunk=body.first_chunk,
            chunks=body.chunks,
            units_total=body.units_total,
            verdict=evidence.verdict,
            verifiers=tuple(_report_verifier(verifier, paid) for verifier in evidence.verifiers),
            is_paid=is_paid,
        )

    def _note_unprovable(
        self, evidence: SegmentEvidence, *, is_kept: bool, is_delivered: bool, at: str
    ) -> None:
        verdict = evidence.verdict
        if verdict == VERIFIED and not is_delivered:
            self.notes.append(f"{at}: that its blobs didn't come is the requester's word")
            return
        if verdict == Verdict.WITHHELD.value:
            self.notes.append(f"{at}: that the executor withheld its opening is the requester's word")
        if verdict == Verdict.FRAUD.value and evidence.accusation is None:
            self.notes.append(
                f"{at}: fraud by the requester's word: no proof fits a message, or the profile isn't exact"
            )
        if verdict == VERIFIED and not is_kept:
            self.notes.append(f"{at}: verified behind a gap, so its units were made anew and aren't here")

    # --- The end ---------------------------------------------------------------------------------

    def _check_end(self, attempts: Sequence[AttemptReport]) -> None:
        body = self.receipt.body
        require(body.state in JOB_STATES, "state", f"{body.state!r} is no final state")
        is_verified = bool(attempts) and attempts[-1].outcome == VERIFIED
        last = attempts[-1].outcome if attempts else "there was no attempt"
        require(
            (body.state == "verified") == is_verified,
            "state",
            f"{body.state!r}, but the last outcome: {last}",
        )
        refused = all(attempt.outcome == REFUSED for attempt in attempts)
        require(body.state != "no_bids" or refused, "state", "'no_bids', but an award wasn't refused")
        require(body.state != "task_failed" or not refused, "state", "'task_failed', but no task failed")
        verified = attempts[-1].units_after if attempts else 0
        require(
            len(body.units) == verified, "units", f"here are {len(body.units)}, but {verified} were verified"
        )


def _check_outcome(outcome: str, segments: Sequence[SegmentReport], is_complete: bool, step: str) -> None:
    """The recorded outcome is the one that the segments' verdicts imply."""
    bad = [segment.verdict for segment in segments if segment.verdict in _ENDED_BY_VERDICT]
    # After a segment that nobody verified the other rounds are seen through, and one may end worse.
    worse = [verdict for verdict in bad if verdict != Verdict.UNVERIFIED.value]
    require(len(worse) <= 1, step, f"the attempt goes on after the verdict {worse[:1]}")
    implied = next(iter(worse or bad), None)
    require(
        outcome == implied or (implied is None and outcome not in _ENDED_BY_VERDICT),
        step,
        f"{outcome!r}, but the segments imply {implied or 'no bad verdict'!r}",
    )
    require(
        (outcome == VERIFIED) == is_complete,
        step,
        f"{outcome!r}, but the output {'is' if is_complete else 'is not'} verified up to a final segment",
    )


def _report_verifier(verifier: VerifierEvidence, paid: frozenset[bytes]) -> VerifierReport:
    finding = "differs" if verifier.differing else "agrees"
    if verifier.results is None:
        finding = "silent"
    return VerifierReport(verifier.peer, verifier.chunks, verifier.widening, finding, verifier.peer in paid)
