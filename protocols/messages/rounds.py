"""A round of verification: draw, verdicts, opening, proof of fraud."""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta

from protocols import limits
from protocols.codec import Wire
from protocols.messages.fields import Body, Digest, Fingerprint, Name, Proof, Raw, Small, Unit

__all__ = [
    "Assignment",
    "BlindVerdict",
    "ChunkOpening",
    "DrawClaim",
    "DrawEvidence",
    "Equivocation",
    "FraudProof",
    "MembershipProof",
    "Opening",
    "OpeningRequest",
    "Reveal",
    "Widening",
]


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
