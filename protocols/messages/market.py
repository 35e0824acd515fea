"""Offer, bids and award: how a job finds its executor."""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta

from protocols import limits
from protocols.codec import Wire
from protocols.messages.fields import (
    Body,
    Digest,
    Key,
    Name,
    NumericClass,
    Price,
    Raw,
    Small,
    Text,
    Uint,
    Unit,
)

__all__ = [
    "EQUAL_BITS",
    "Acceptance",
    "AuctionClose",
    "Award",
    "Bid",
    "BidSeal",
    "BlobRecord",
    "Cancel",
    "Closed",
    "Decline",
    "Member",
    "Offer",
    "Proposal",
    "Refusal",
    "Sealed",
    "Tolerance",
]


class BlobRecord(Wire, frozen=True):
    """A blob that a job's input names (`protocols.blobs`)."""

    digest: Digest
    size_bytes: Annotated[int, Meta(ge=0, le=limits.BLOB_BYTES_MAX)]


class Offer(Body, frozen=True):
    """A job, as everybody hears of it. Its message id is the job's id."""

    KIND: ClassVar[str] = "offer"

    nonce: Annotated[bytes, Meta(min_length=16, max_length=16)]
    mode: Annotated[str, Meta(pattern="^(auction|posted)$")]
    workload: Name
    model: Digest
    profile: Name
    input_digest: Digest
    input_units: Small
    """Units the input has already, e.g. prompt tokens: they cost time and memory."""
    units_max: Annotated[int, Meta(ge=1, le=limits.UNITS_MAX)]
    price_micros_max: Price
    """Ceiling per output unit."""
    ram_bytes_min: Uint
    rate_milli_min: Uint
    exclude: Annotated[tuple[Key, ...], Meta(max_length=64)]
    sent_ms: Uint
    bids_close_ms: Uint
    expires_ms: Uint
    """After this nothing about the job is believed."""
    blobs: Annotated[tuple[BlobRecord, ...], Meta(max_length=limits.BLOBS_PER_JOB_MAX)] = ()
    """What the input names: whoever bids must be able to hold it, and may begin to fetch it."""
    is_private: bool = False
    """What the job names and leaves is for its parties only. Then ``blobs`` tells a size and no names."""


class BidSeal(Body, frozen=True):
    """A bid's digest, sent while the window is open: no last look for anybody."""

    KIND: ClassVar[str] = "bid-seal"

    job_id: Digest
    seal: Digest


class Sealed(Wire, frozen=True):
    """One entry of the auction record."""

    bidder: Key
    seal: Digest


class AuctionClose(Body, frozen=True):
    """The seals the requester counted. A bidder that misses its own knows it was cheated."""

    KIND: ClassVar[str] = "auction-close"

    job_id: Digest
    seals: Annotated[tuple[Sealed, ...], Meta(max_length=limits.BIDS_PER_JOB_MAX)]
    closed_ms: Uint


class Bid(Body, frozen=True):
    """The opened bid: a reservation of one device at a price."""

    KIND: ClassVar[str] = "bid"

    job_id: Digest
    nonce: Digest
    price_micros: Price
    eta_ms: Uint
    rate_milli: Uint
    device: Name
    warm: bool
    slots_free: Small


class Decline(Body, frozen=True):
    """Why a peer doesn't bid, with the value that would change it."""

    KIND: ClassVar[str] = "decline"

    job_id: Digest
    reason: Name
    have: Uint
    need: Uint
    detail: Text


class Tolerance(Wire, frozen=True):
    """How far native findings of one model may be apart, as calibrated; all 0 where bits are equal."""

    agree_steps: Uint = 0
    """Between two native runs, in steps of the fingerprint."""
    convict_steps: Uint = 0
    """Between a native run and the exact one; beyond it the statement is false."""
    agree_margin_ppb: Uint = 0
    """Probability by which a unit may miss its draw before a native verifier finds it false."""
    convict_margin_ppb: Uint = 0
    """The same for the exact re-run."""


EQUAL_BITS = Tolerance()
"""Where findings must be equal, there is nothing to tolerate."""


class Award(Body, frozen=True):
    """The terms. The executor's `Acceptance` of this message's id makes it a contract."""

    KIND: ClassVar[str] = "award"

    job_id: Digest
    attempt: Annotated[int, Meta(ge=0, lt=limits.ATTEMPTS_MAX)]
    executor: Key
    basis: Digest
    """The bid that won, or in posted mode the advert with the standing ask."""
    workload: Name
    model: Digest
    profile: Name
    input_digest: Digest
    units_max: Annotated[int, Meta(ge=1, le=limits.UNITS_MAX)]
    stop_unit: Annotated[int, Meta(ge=-1, le=limits.UNIT_VALUE_MAX)]
    """The unit after which the output may end early, or -1."""
    chunk_units: Annotated[int, Meta(ge=1, le=limits.UNITS_MAX)]
    segment_chunks: Annotated[int, Meta(ge=1, le=limits.SEGMENT_CHUNKS_MAX)]
    prefix_units: Annotated[int, Meta(ge=0, le=limits.UNITS_MAX)]
    """Output units verified in an earlier attempt, from which this one goes on."""
    prefix_digest: Digest
    price_micros: Price
    verifier_fee_micros: Price
    """Paid to a drawn verifier for each chunk, whatever it finds."""
    expected_verifiers_milli: Annotated[int, Meta(ge=1, le=1_000_000)]
    samples: Annotated[int, Meta(ge=1, le=limits.SEGMENT_CHUNKS_MAX)]
    """Chunks of a segment that each verifier recomputes."""
    electorate_root: Digest
    electorate_weight: Annotated[int, Meta(ge=0, le=limits.TOTAL_WEIGHT_MAX)]
    electorate_count: Annotated[int, Meta(ge=0, le=limits.ELECTORATE_MEMBERS_MAX)]
    electorate_weight_max: Annotated[int, Meta(ge=0, le=limits.MEMBER_WEIGHT_MAX)]
    """The heaviest member: whoever isn't drawn with this weight isn't drawn at all."""
    sent_ms: Uint
    accept_by_ms: Uint
    finish_by_ms: Uint
    answer_within_ms: Annotated[int, Meta(ge=1, le=3_600_000)]
    """How long either side may take for one step of verification. Silence past it loses."""
    numeric_class: NumericClass = ""
    """The executor's class, in the homogeneous profile: only its members verify and judge."""
    tolerance: Tolerance = EQUAL_BITS
    is_private: bool = False
    """As the offer says: nothing that shows input or output is published."""


class Member(Wire, frozen=True):
    """One elector: a key known before the award, with its weight."""

    key: Key
    weight: Annotated[int, Meta(ge=1, le=limits.MEMBER_WEIGHT_MAX)]


class Proposal(Body, frozen=True):
    """An award with what the executor needs to judge and to run it."""

    KIND: ClassVar[str] = "proposal"

    award: Raw
    offer: Raw
    input: Annotated[bytes, Meta(max_length=limits.INPUT_BYTES_MAX)]
    prefix: Annotated[tuple[Unit, ...], Meta(max_length=limits.UNITS_MAX)]
    electorate: Annotated[tuple[Member, ...], Meta(max_length=limits.ELECTORATE_MEMBERS_MAX)]
    room_depth: Annotated[int, Meta(ge=0, le=limits.ROOM_DEPTH_MAX)]
    """Of the room that the job lives in, where its electors hear of commitments; 0 for the common room."""


class Acceptance(Body, frozen=True):
    """The executor's half of the contract."""

    KIND: ClassVar[str] = "acceptance"

    award_id: Digest
    device: Name
    eta_ms: Uint


class Refusal(Body, frozen=True):
    """The executor doesn't take an award, and why."""

    KIND: ClassVar[str] = "refusal"

    award_id: Digest
    reason: Name
    detail: Text


class Cancel(Body, frozen=True):
    """The requester ends a contract; verified segments stay owed."""

    KIND: ClassVar[str] = "cancel"

    award_id: Digest
    reason: Name


class Closed(Body, frozen=True):
    """The requester tells bidders that a job is decided, so that reservations end."""

    KIND: ClassVar[str] = "closed"

    job_id: Digest
    winner: Annotated[bytes, Meta(max_length=32)]
