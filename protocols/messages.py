"""What peers say: every signed body, by kind and version.

Bodies are closed records of integers, bytes and text; `protocols.envelope` signs them. Fields are
bounded here, rules between fields live with the machines that hear them. docs/protocol.md explains
each message in the order of a job's life.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta

from protocols import limits
from protocols.codec import Wire

__all__ = [
    "EQUAL_BITS",
    "KINDS",
    "Accelerator",
    "Acceptance",
    "Advert",
    "Assignment",
    "AuctionClose",
    "Award",
    "Bid",
    "BidSeal",
    "BlindVerdict",
    "Body",
    "Cancel",
    "Closed",
    "Commitment",
    "CommitmentNotice",
    "Decline",
    "Digest",
    "Dispute",
    "DisputeDeclined",
    "DrawClaim",
    "Equivocation",
    "EvidencePart",
    "EvidenceWant",
    "ExecutionFailed",
    "FraudNotice",
    "FraudProof",
    "Key",
    "MembershipProof",
    "Offer",
    "Offering",
    "OpenedValue",
    "Opening",
    "OpeningRequest",
    "OperatorFraud",
    "Output",
    "Proposal",
    "ReceiptBody",
    "Refusal",
    "Reveal",
    "Sealed",
    "SharedModel",
    "SyncSummary",
    "SyncWant",
    "Tolerance",
    "TraceChildren",
    "TraceRoot",
    "Voucher",
    "VoucherReceipt",
    "Widening",
]

Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
Uint = Annotated[int, Meta(ge=0, le=limits.INTEGER_MAX)]
Small = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Name = Annotated[str, Meta(min_length=1, max_length=limits.NAME_BYTES_MAX)]
Text = Annotated[str, Meta(max_length=limits.TEXT_BYTES_MAX)]
Price = Annotated[int, Meta(ge=0, le=limits.PRICE_MICROS_MAX)]
Unit = Annotated[int, Meta(ge=0, le=limits.UNIT_VALUE_MAX)]
Proof = Annotated[bytes, Meta(min_length=80, max_length=80)]
Raw = Annotated[bytes, Meta(max_length=limits.ENVELOPE_BYTES_MAX)]
NumericClass = Annotated[str, Meta(max_length=limits.NAME_BYTES_MAX)]
Fingerprint = Annotated[bytes, Meta(max_length=limits.FINGERPRINT_BYTES_MAX)]


class Body(Wire, frozen=True):
    """Base of every signed body."""

    KIND: ClassVar[str] = ""
    VERSION: ClassVar[int] = 1


# --- Peers and what they can do ----------------------------------------------------------------


class Accelerator(Wire, frozen=True):
    """One device, by its torch name."""

    device: Name
    name: Text
    memory_bytes: Uint


class Offering(Wire, frozen=True):
    """One model a peer runs and verifies, with its standing ask and its measured rate."""

    workload: Name
    model: Digest
    profiles: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=8)]
    price_micros: Price
    rate_milli: Uint
    """Output units per 1,000 seconds, measured on this machine."""
    warm: bool
    numeric_class: NumericClass = ""
    """The class of machines inside which our native kernels give equal bits; empty if none is claimed."""


class SharedModel(Wire, frozen=True):
    """A model whose files a peer gives to whoever asks."""

    name: Name
    """What it calls it; nothing binds a name to a model."""
    model: Digest
    manifest: Digest
    """Of the blob that lists its files."""
    manifest_bytes: Annotated[int, Meta(ge=1, le=limits.MANIFEST_BYTES_MAX)]


class Advert(Body, frozen=True):
    """What a peer says of itself; renewed before it expires."""

    KIND: ClassVar[str] = "advert"

    sequence: Uint
    sent_ms: Uint
    expires_ms: Uint
    addresses: Annotated[tuple[Text, ...], Meta(max_length=limits.ADDRESSES_PER_PEER_MAX)]
    software: Text
    slots_total: Small
    slots_free: Small
    cores: Small
    ram_bytes: Uint
    gemm_fp32_mflops: Uint
    gemm_bf16_mflops: Uint
    memory_mib_per_s: Uint
    disk_mib_per_s: Uint
    accelerators: Annotated[tuple[Accelerator, ...], Meta(max_length=limits.ACCELERATORS_PER_PEER_MAX)]
    offerings: Annotated[tuple[Offering, ...], Meta(max_length=limits.OFFERINGS_PER_PEER_MAX)]
    models: Annotated[tuple[SharedModel, ...], Meta(max_length=limits.SHARED_MODELS_PER_PEER_MAX)] = ()


# --- Offer, bids, award ------------------------------------------------------------------------


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


# --- Execution and commitment ------------------------------------------------------------------


class Output(Body, frozen=True):
    """Output units as they come. Not yet a commitment; the commitment's digest binds them."""

    KIND: ClassVar[str] = "output"

    award_id: Digest
    first_unit: Annotated[int, Meta(ge=0, le=limits.UNITS_MAX)]
    units: Annotated[tuple[Unit, ...], Meta(max_length=limits.OUTPUT_UNITS_PER_MESSAGE_MAX)]


class Progress(Body, frozen=True):
    """What the executor is at before output comes. Binds nobody; it shows that somebody is there."""

    KIND: ClassVar[str] = "progress"

    award_id: Digest
    phase: Name
    done: Uint
    total: Uint
    """In the phase's own measure, e.g. bytes; 0 is unknown."""


class ExecutionFailed(Body, frozen=True):
    """The executor gives up, with a typed reason."""

    KIND: ClassVar[str] = "execution-failed"

    award_id: Digest
    reason: Name
    detail: Text


class Commitment(Body, frozen=True):
    """The executor's word on one segment, chained to the one before."""

    KIND: ClassVar[str] = "commitment"

    award_id: Digest
    segment: Small
    previous: Annotated[bytes, Meta(max_length=32)]
    """Id of the commitment before, empty for the first."""
    first_chunk: Small
    chunks: Annotated[int, Meta(ge=1, le=limits.SEGMENT_CHUNKS_MAX)]
    root: Digest
    units_total: Annotated[int, Meta(ge=1, le=limits.UNITS_MAX)]
    """Output units up to the end of this segment."""
    units_digest: Digest
    """Over all output units from the first to ``units_total``."""
    final: bool
    profile: Name
    """The contract's: what the root is worth depends on it."""


class CommitmentNotice(Body, frozen=True):
    """A commitment as everybody hears it, with the contract it belongs to."""

    KIND: ClassVar[str] = "commitment-notice"

    award: Raw
    acceptance: Raw
    commitment: Raw


# --- Verification ------------------------------------------------------------------------------


class Widening(Body, frozen=True):
    """Too few verifiers answered: the threshold doubles."""

    KIND: ClassVar[str] = "widening"

    commitment_id: Digest
    level: Annotated[int, Meta(ge=1, le=limits.WIDENING_MAX)]


class DrawClaim(Body, frozen=True):
    """A peer shows that it was drawn as a verifier of a commitment."""

    KIND: ClassVar[str] = "draw-claim"

    commitment_id: Digest
    widening: Annotated[int, Meta(ge=0, le=limits.WIDENING_MAX)]
    proof: Proof


class MembershipProof(Wire, frozen=True):
    """A path in the electorate's Merkle-sum tree."""

    index: Annotated[int, Meta(ge=0, lt=limits.ELECTORATE_MEMBERS_MAX)]
    weight: Annotated[int, Meta(ge=1, le=limits.MEMBER_WEIGHT_MAX)]
    siblings: Annotated[
        tuple[tuple[Digest, Annotated[int, Meta(ge=0, le=limits.TOTAL_WEIGHT_MAX)]], ...],
        Meta(max_length=limits.MERKLE_DEPTH_MAX),
    ]


class Assignment(Body, frozen=True):
    """What a drawn verifier needs: inputs, never the executor's results."""

    KIND: ClassVar[str] = "assignment"

    commitment_id: Digest
    claim_id: Digest
    membership: MembershipProof
    input: Annotated[bytes, Meta(max_length=limits.INPUT_BYTES_MAX)]
    units: Annotated[tuple[Unit, ...], Meta(max_length=limits.UNITS_MAX)]


class BlindVerdict(Body, frozen=True):
    """A verifier's own digests, hidden: it can't copy what it hasn't seen, nor change it after."""

    KIND: ClassVar[str] = "blind-verdict"

    commitment_id: Digest
    claim_id: Digest
    hidden: Annotated[tuple[tuple[Small, Digest], ...], Meta(max_length=limits.SEGMENT_CHUNKS_MAX)]
    """(chunk, digest of verifier, root, chunk, result and nonce), by chunk."""
    profile: Name


class DrawEvidence(Wire, frozen=True):
    """Everything that shows one verifier was drawn and has committed to its results."""

    claim: Raw
    membership: MembershipProof
    blind: Raw


class OpeningRequest(Body, frozen=True):
    """The requester asks the executor to open the chunks that verifiers have recomputed."""

    KIND: ClassVar[str] = "opening-request"

    commitment_id: Digest
    widenings: Annotated[tuple[Raw, ...], Meta(max_length=limits.WIDENING_MAX)]
    draws: Annotated[tuple[DrawEvidence, ...], Meta(max_length=limits.VERIFIERS_PER_SEGMENT_MAX)]


class ChunkOpening(Wire, frozen=True):
    """One leaf, opened."""

    chunk: Small
    salt: Digest
    digest: Digest
    path: Annotated[tuple[Digest, ...], Meta(max_length=limits.MERKLE_DEPTH_MAX)]
    fingerprint: Fingerprint = b""
    """What the digest is of, in the native profile; empty in the others."""


class Opening(Body, frozen=True):
    """The executor's results for the drawn chunks, with their paths to the root."""

    KIND: ClassVar[str] = "opening"

    commitment_id: Digest
    chunks: Annotated[tuple[ChunkOpening, ...], Meta(max_length=limits.SEGMENT_CHUNKS_MAX)]


class Reveal(Body, frozen=True):
    """A verifier's results and the nonce that hid them."""

    KIND: ClassVar[str] = "reveal"

    commitment_id: Digest
    blind_id: Digest
    nonce: Digest
    results: Annotated[tuple[tuple[Small, Digest], ...], Meta(max_length=limits.SEGMENT_CHUNKS_MAX)]
    profile: Name
    fingerprints: Annotated[tuple[Fingerprint, ...], Meta(max_length=limits.SEGMENT_CHUNKS_MAX)] = ()
    """One for each result in the native profile, empty where its units were found false; else none."""


class FraudProof(Body, frozen=True):
    """One signed statement about one chunk, and all that is needed to recompute that chunk.

    The accused is whoever signed ``statement``: an executor's `Opening` or a verifier's `Reveal`.
    Nobody's word counts: each peer recomputes the chunk itself.
    """

    KIND: ClassVar[str] = "fraud-proof"

    award: Raw
    acceptance: Raw
    commitment: Raw
    statement: Raw
    chunk: Small
    input: Annotated[bytes, Meta(max_length=limits.FRAUD_INPUT_BYTES_MAX)]
    units: Annotated[tuple[Unit, ...], Meta(max_length=limits.FRAUD_UNITS_MAX)]


class Equivocation(Body, frozen=True):
    """Two different commitments by one executor for one segment of one contract.

    It needs no recomputation: whoever signed both has contradicted itself.
    """

    KIND: ClassVar[str] = "equivocation"

    first: Raw
    second: Raw


# --- Disputes ----------------------------------------------------------------------------------


class Dispute(Body, frozen=True):
    """The requester asks an executor and a verifier, who differ about a chunk, to trace it.

    Its message id names the dispute.
    """

    KIND: ClassVar[str] = "dispute"

    commitment_id: Digest
    chunk: Small
    opening: Raw
    reveal: Raw


class DisputeDeclined(Body, frozen=True):
    """A party can't trace the chunk, and why. Nobody is punished for it, and nobody wins by it."""

    KIND: ClassVar[str] = "dispute-declined"

    dispute_id: Digest
    reason: Name


class TraceRoot(Body, frozen=True):
    """A party's word on a chunk, value by value: the Merkle root over its trace."""

    KIND: ClassVar[str] = "trace-root"

    dispute_id: Digest
    commitment_id: Digest
    chunk: Small
    program: Digest
    values: Annotated[int, Meta(ge=1, le=limits.TRACE_VALUES_MAX)]
    root: Digest
    path: Annotated[tuple[Digest, ...], Meta(max_length=limits.MERKLE_DEPTH_MAX)]
    """Of the last value, which is the digest that the party stated for the chunk."""


class TraceChildren(Body, frozen=True):
    """One step down a trace's tree: the two children of the node at which the parties stand."""

    KIND: ClassVar[str] = "trace-children"

    dispute_id: Digest
    level: Annotated[int, Meta(ge=1, le=limits.MERKLE_DEPTH_MAX)]
    """Of the parent; leaves are level 0."""
    position: Annotated[int, Meta(ge=0, lt=limits.TRACE_VALUES_MAX)]
    left: Digest
    right: Digest


class OpenedValue(Wire, frozen=True):
    """One value of a trace."""

    index: Annotated[int, Meta(ge=0, lt=limits.TRACE_VALUES_MAX)]
    dtype: Name
    shape: Annotated[tuple[Annotated[int, Meta(ge=0, le=2**40)], ...], Meta(max_length=8)]
    data: Annotated[bytes, Meta(max_length=limits.OPERATOR_BYTES_MAX)]


TracePath = Annotated[tuple[Digest, ...], Meta(max_length=limits.MERKLE_DEPTH_MAX)]


class OperatorFraud(Body, frozen=True):
    """One false operator in a trace that somebody signed, with all that is needed to run it again.

    The accused is whoever signed ``statement`` and ``trace``. Too large for gossip: it is fetched in
    parts, or read from a file.
    """

    KIND: ClassVar[str] = "operator-fraud"

    award: Raw
    acceptance: Raw
    commitment: Raw
    statement: Raw
    trace: Raw
    input: Annotated[bytes, Meta(max_length=limits.INPUT_BYTES_MAX)]
    units: Annotated[tuple[Unit, ...], Meta(max_length=limits.UNITS_MAX)]
    index: Annotated[int, Meta(ge=-1, lt=limits.TRACE_VALUES_MAX)]
    """The false value, or -1: the program isn't the chunk's."""
    digest: Digest
    """What the accused states for that value; 32 zero bytes for -1."""
    path: TracePath
    values: Annotated[tuple[OpenedValue, ...], Meta(max_length=limits.OPERATOR_INPUTS_MAX)]
    """The operator's inputs, by index."""
    paths: Annotated[tuple[TracePath, ...], Meta(max_length=limits.OPERATOR_INPUTS_MAX)]
    """Of each of them, in the same order."""
    context: Annotated[bytes, Meta(max_length=limits.CASE_CONTEXT_BYTES_MAX)]
    """The workload's part: the model's configuration and a parameter's proof."""


class FraudNotice(Body, frozen=True):
    """Its signer holds an `OperatorFraud` and serves it to who asks."""

    KIND: ClassVar[str] = "fraud-notice"

    evidence: Digest
    """BLAKE3 of the proof's envelope, tagged."""
    bytes_total: Annotated[int, Meta(ge=1, le=limits.EVIDENCE_BYTES_MAX)]
    accused: Key
    commitment_id: Digest
    chunk: Small
    sent_ms: Uint


class EvidenceWant(Body, frozen=True):
    """Asks for one part of a fraud proof."""

    KIND: ClassVar[str] = "evidence-want"

    evidence: Digest
    part: Annotated[int, Meta(ge=0, lt=limits.EVIDENCE_PARTS_MAX)]


class EvidencePart(Body, frozen=True):
    """One part of a fraud proof; the digest of the whole is checked once all are there."""

    KIND: ClassVar[str] = "evidence-part"

    evidence: Digest
    part: Annotated[int, Meta(ge=0, lt=limits.EVIDENCE_PARTS_MAX)]
    data: Annotated[bytes, Meta(min_length=1, max_length=limits.EVIDENCE_PART_BYTES_MAX)]


# --- What is owed ------------------------------------------------------------------------------


class Voucher(Body, frozen=True):
    """The payer owes the payee ``settled_micros`` in all on this lane; each voucher replaces the last."""

    KIND: ClassVar[str] = "voucher"

    lane: Digest
    """The award's id: one lane for each contract and payee."""
    payee: Key
    sequence: Small
    settled_micros: Uint
    pending_micros: Uint
    matures_ms: Uint
    evidence: Digest
    """The commitment whose verdict made this due."""


class VoucherReceipt(Body, frozen=True):
    """The payee has the voucher and finds it right."""

    KIND: ClassVar[str] = "voucher-receipt"

    voucher_id: Digest
    settled_micros: Uint


# --- Anti-entropy ------------------------------------------------------------------------------


class SyncSummary(Body, frozen=True):
    """Ids of recent gossip, sent to a neighbour now and then: ask me for what you missed."""

    KIND: ClassVar[str] = "sync-summary"

    ids: Annotated[tuple[Digest, ...], Meta(max_length=limits.SYNC_IDS_MAX)]


class SyncWant(Body, frozen=True):
    """Ids of gossip the sender missed."""

    KIND: ClassVar[str] = "sync-want"

    ids: Annotated[tuple[Digest, ...], Meta(max_length=limits.SYNC_IDS_MAX)]


# --- Receipt -----------------------------------------------------------------------------------


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


KINDS: dict[tuple[str, int], type[Body]] = {
    (kind.KIND, kind.VERSION): kind
    for kind in (
        Advert,
        Offer,
        BidSeal,
        AuctionClose,
        Bid,
        Decline,
        Award,
        Proposal,
        Acceptance,
        Refusal,
        Cancel,
        Closed,
        Output,
        Progress,
        ExecutionFailed,
        Commitment,
        CommitmentNotice,
        Widening,
        DrawClaim,
        Assignment,
        BlindVerdict,
        OpeningRequest,
        Opening,
        Reveal,
        FraudProof,
        Equivocation,
        Dispute,
        DisputeDeclined,
        TraceRoot,
        TraceChildren,
        OperatorFraud,
        FraudNotice,
        EvidenceWant,
        EvidencePart,
        Voucher,
        VoucherReceipt,
        SyncSummary,
        SyncWant,
        ReceiptBody,
        WholeReceiptBody,
    )
}
