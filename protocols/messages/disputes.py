"""Disputes: a trace narrowed down to one operator."""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta

from protocols import limits
from protocols.codec import Wire
from protocols.messages.fields import Body, Digest, Key, Name, Raw, Small, Uint, Unit

__all__ = [
    "Dispute",
    "DisputeDeclined",
    "EvidencePart",
    "EvidenceWant",
    "FraudNotice",
    "OpenedValue",
    "OperatorFraud",
    "TraceChildren",
    "TracePath",
    "TraceRoot",
]


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
