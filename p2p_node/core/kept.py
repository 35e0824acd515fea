"""What the machines of one peer write down, so that a crash at any moment loses nothing that anybody owes.

An executor keeps each contract and each segment that it committed to, until it is paid or the requester's
time is over. A payee keeps what it may be paid. A requester keeps a draft of the receipt of each job that
isn't over. Rows are named by an award's or a job's id, those of segments by their number behind it.
"""

from __future__ import annotations

from collections.abc import Mapping

from protocols.codec import Wire
from protocols.digest import DIGEST_BYTES
from protocols.messages import SegmentRecord

__all__ = ["KeptContract", "KeptDraft", "KeptLane", "KeptSegment", "KeptVerdict", "group_rows", "segment_key"]

SEGMENT_BYTES = 4


class KeptContract(Wire, frozen=True):
    """An executor's contract: both signatures, and what it was given to compute."""

    award: bytes
    acceptance: bytes
    input: bytes
    prefix: tuple[int, ...]
    room_depth: int


class KeptSegment(Wire, frozen=True):
    """A segment that an executor committed to: what it takes to deliver and open it once more."""

    commitment: bytes
    findings: tuple[bytes, ...]
    units: tuple[int, ...]


class KeptLane(Wire, frozen=True):
    """What a payee may be paid under one contract, as an executor or for verifying."""

    payer: bytes
    delivered_micros: int
    is_fee: bool
    since_ms: int


class KeptDraft(Wire, frozen=True):
    """A job's receipt as it would be if the job ended now, up to its newest attempt's first segment."""

    receipt: bytes
    reason: str
    is_running: bool
    """Whether the newest attempt goes on: then its segments follow in rows of their own."""


class KeptVerdict(Wire, frozen=True):
    """One segment of the newest attempt, with its own output units."""

    segment: SegmentRecord
    units: tuple[int, ...]


def segment_key(identifier: bytes, segment: int) -> bytes:
    """The row of one segment of an award or a job."""
    return identifier + segment.to_bytes(SEGMENT_BYTES, "big")


def group_rows(rows: Mapping[bytes, bytes]) -> dict[bytes, tuple[bytes, list[bytes]]]:
    """Rows by what they are about: each award or job with its own row, and its segments in order.

    Segments behind a gap, or without the row they belong to, are of no use and are left out.
    """
    found: dict[bytes, tuple[bytes, list[bytes]]] = {}
    for key in rows:
        if len(key) != DIGEST_BYTES:
            continue
        segments: list[bytes] = []
        while (value := rows.get(segment_key(key, len(segments)))) is not None:
            segments.append(value)
        found[key] = (rows[key], segments)
    return found
