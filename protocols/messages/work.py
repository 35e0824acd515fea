"""Execution and commitment."""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta

from protocols import limits
from protocols.messages.fields import Body, Digest, Name, Raw, Small, Text, Uint, Unit

__all__ = ["Commitment", "CommitmentNotice", "ExecutionFailed", "Output", "Progress"]


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
