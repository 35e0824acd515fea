"""What a job leaves behind."""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta

from protocols import limits
from protocols.codec import Wire
from protocols.messages.fields import Body, Digest, Name, Raw, Uint, Unit
from protocols.messages.rounds import MembershipProof

__all__ = [
    "AttemptRecord",
    "PartRecord",
    "ReceiptBody",
    "SegmentRecord",
    "VerifierRecord",
    "WholeReceiptBody",
]


class VerifierRecord(Wire, frozen=True):
    """One verifier's part in one segment. Empty bytes stand for what never came."""

    claim: Raw
    membership: MembershipProof
    blind: Raw
    reveal: Raw
    voucher: Raw
    voucher_receipt: Raw


class SegmentRecord(Wire, frozen=True):
    """One commitment, how it was verified and what was paid for it."""

    commitment: Raw
    widenings: Annotated[tuple[Raw, ...], Meta(max_length=limits.WIDENING_MAX)]
    opening: Raw
    verifiers: Annotated[tuple[VerifierRecord, ...], Meta(max_length=limits.VERIFIERS_PER_SEGMENT_MAX)]
    verdict: Annotated[str, Meta(max_length=limits.NAME_BYTES_MAX)]
    fraud: Raw
    voucher: Raw
    voucher_receipt: Raw
    is_delivered: bool = True
    """Whether the blobs that its units name came, if they name any: the requester's word."""


class AttemptRecord(Wire, frozen=True):
    """One award and what came of it."""

    award: Raw
    acceptance: Raw
    basis: Raw
    """The winning bid, or the advert with the standing ask."""
    outcome: Annotated[str, Meta(max_length=limits.NAME_BYTES_MAX)]
    segments: Annotated[tuple[SegmentRecord, ...], Meta(max_length=limits.SEGMENT_CHUNKS_MAX)]


class ReceiptBody(Body, frozen=True):
    """The whole story of a job, signed by its requester."""

    KIND: ClassVar[str] = "receipt"

    offers: Annotated[tuple[Raw, ...], Meta(min_length=1, max_length=limits.ATTEMPTS_MAX)]
    closes: Annotated[tuple[Raw, ...], Meta(max_length=limits.ATTEMPTS_MAX)]
    bids: Annotated[tuple[Raw, ...], Meta(max_length=limits.BIDS_PER_JOB_MAX * limits.ATTEMPTS_MAX)]
    attempts: Annotated[tuple[AttemptRecord, ...], Meta(max_length=limits.ATTEMPTS_MAX)]
    input: Annotated[bytes, Meta(max_length=limits.INPUT_BYTES_MAX)]
    units: Annotated[tuple[Unit, ...], Meta(max_length=limits.UNITS_MAX)]
    state: Name
    finished_ms: Uint


class PartRecord(Wire, frozen=True):
    """One job that was offered for a part, and what came of it."""

    part: Annotated[int, Meta(ge=0, lt=limits.PARTS_MAX)]
    receipt: Annotated[bytes, Meta(max_length=limits.RECEIPT_BYTES_MAX)]
    """Of that job, as it is."""


class WholeReceiptBody(Body, frozen=True):
    """The whole story of a job that its requester split into parts, signed by it.

    Which part got which items follows from ``counts``; what the job of a part must have had as its input
    follows from that and ``input``.
    """

    KIND: ClassVar[str] = "whole-receipt"

    nonce: Annotated[bytes, Meta(min_length=16, max_length=16)]
    workload: Name
    model: Digest
    profile: Name
    input: Annotated[bytes, Meta(max_length=limits.INPUT_BYTES_MAX)]
    counts: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=limits.WHOLE_UNITS_MAX)], ...],
        Meta(min_length=1, max_length=limits.PARTS_MAX),
    ]
    """Items of each part, in order."""
    jobs: Annotated[tuple[PartRecord, ...], Meta(max_length=limits.PART_JOBS_MAX)]
    """By part; where several were verified, the first one's output counts."""
    state: Name
    finished_ms: Uint
