"""From rows of the store back to contracts, lanes and receipts, after a restart.

Rows that can't be read any more are left out: a damaged one must not keep the others from being found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from msgspec.structs import replace

from p2p_node.core.kept import (
    KeptContract,
    KeptDraft,
    KeptLane,
    KeptSegment,
    KeptVerdict,
    group_rows,
    segment_key,
)
from p2p_node.core.lanes import Lanes
from p2p_node.core.provider import Provider
from p2p_node.core.request import JobState
from p2p_node.core.surroundings import Surroundings
from protocols.codec import Wire, decode
from protocols.effects import Effect, Persist, Publish, Send
from protocols.envelope import Signed, open_envelope
from protocols.errors import PeerFault
from protocols.limits import RECEIPT_BYTES_MAX
from protocols.messages import (
    AttemptRecord,
    Award,
    Body,
    Cancel,
    Commitment,
    FraudProof,
    ReceiptBody,
    SegmentRecord,
    Voucher,
)

__all__ = ["STOPPED", "ClosedDraft", "close_draft", "restore_contracts", "restore_lanes"]

W = TypeVar("W", bound=Wire)
B = TypeVar("B", bound=Body)

STOPPED = "the node stopped before the job ended"
"""Why a job that was running isn't any more."""

CANCEL_MS = 60_000
"""How long an executor is told that its contract is over."""

_INTERRUPTED = "cancelled"
"""The outcome of an attempt that the requester's own end interrupted."""


def _read(value: bytes, kind: type[W]) -> W:
    return decode(value, kind, bytes_max=2 * RECEIPT_BYTES_MAX)


def _open(node: Surroundings, raw: bytes, expect: type[B]) -> Signed[B]:
    return open_envelope(
        raw, network=node.network, crypto=node.crypto, expect=expect, bytes_max=RECEIPT_BYTES_MAX
    )


def _voucher(node: Surroundings, vouchers: Mapping[bytes, bytes], key: bytes) -> Signed[Voucher] | None:
    raw = vouchers.get(key)
    return None if raw is None else _open(node, raw, Voucher)


def restore_contracts(
    node: Surroundings,
    provider: Provider,
    rows: Mapping[bytes, bytes],
    vouchers: Mapping[bytes, bytes],
    now_ms: int,
) -> list[Effect]:
    """Take up every contract that this peer executed under.

    Args:
        node: this peer.
        provider: its executing side.
        rows: of the store's contracts.
        vouchers: the newest that came, by award.
        now_ms: the time.
    """
    effects: list[Effect] = []
    for award_id, (value, values) in group_rows(rows).items():
        # Whatever can be read of it: it must not be run a second time.
        provider.remember([award_id])
        try:
            kept = _read(value, KeptContract)
            award = _open(node, kept.award, Award)
            segments = []
            for segment in (_read(value, KeptSegment) for value in values):
                segments.append((_open(node, segment.commitment, Commitment), segment))
            voucher = _voucher(node, vouchers, award_id)
            effects += provider.restore(award, kept, segments, voucher, now_ms)
        except PeerFault:
            continue
    return effects


def restore_lanes(
    node: Surroundings,
    lanes: Lanes,
    rows: Mapping[bytes, bytes],
    vouchers: Mapping[bytes, bytes],
    now_ms: int,
) -> None:
    """Take back what this peer may be paid; arguments as for `restore_contracts`."""
    found: list[tuple[int, bytes, KeptLane, Signed[Voucher] | None]] = []
    for award_id, value in rows.items():
        try:
            kept = _read(value, KeptLane)
            found.append((kept.since_ms, award_id, kept, _voucher(node, vouchers, award_id)))
        except PeerFault:
            continue
    for _, award_id, kept, voucher in sorted(found, key=lambda row: row[:2]):
        try:
            lanes.restore(award_id, kept, voucher, now_ms)
        except PeerFault:
            continue


# --- Jobs of our own -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClosedDraft:
    """How a job ended that was open when the node stopped."""

    receipt: Signed[ReceiptBody]
    reason: str
    effects: list[Effect] = field(default_factory=list)
    """The receipt written down in the draft's place, and word to the executor."""


def close_draft(
    node: Surroundings,
    job_id: bytes,
    rows: Mapping[bytes, bytes],
    now_ms: int,
    *,
    frauds: Mapping[bytes, bytes] | None = None,
) -> ClosedDraft | None:
    """End a job where the last write left it: what was verified and paid by then is in its receipt.

    Args:
        node: the job's requester.
        job_id: of the job.
        rows: of the store's drafts, this job's at least.
        now_ms: the time.
        frauds: proofs that came of the job; they are published, as they may not have been.

    Returns:
        None if its draft can't be read.
    """
    value, values = group_rows(rows)[job_id]
    try:
        kept = _read(value, KeptDraft)
        body = _open(node, kept.receipt, ReceiptBody).body
        verdicts = [_read(value, KeptVerdict) for value in values] if kept.is_running else []
        published: list[Effect] = [
            Publish("convictions", _open(node, raw, FraudProof)) for raw in (frauds or {}).values()
        ]
        attempts, cancels = _end_attempts(node, body, tuple(v.segment for v in verdicts), now_ms)
    except PeerFault:
        return None
    units = list(body.units)
    for verdict in verdicts:
        if verdict.segment.verdict != JobState.VERIFIED.value or not verdict.segment.is_delivered:
            break
        units += verdict.units
    receipt = node.sign(
        replace(body, attempts=attempts, units=tuple(units), finished_ms=now_ms),
    )
    keys = [job_id, *(segment_key(job_id, number) for number in range(len(values)))]
    effects: list[Effect] = [
        Persist("receipts", job_id, receipt.raw),
        *(Persist("drafts", key, None) for key in keys),
        *cancels,
        *published,
    ]
    return ClosedDraft(receipt, kept.reason or STOPPED, effects)


def _end_attempts(
    node: Surroundings, body: ReceiptBody, segments: tuple[SegmentRecord, ...], now_ms: int
) -> tuple[tuple[AttemptRecord, ...], list[Effect]]:
    ended: list[AttemptRecord] = []
    cancels: list[Effect] = []
    for record in body.attempts:
        if record.outcome:
            ended.append(record)
            continue
        award = _open(node, record.award, Award)
        own = segments if record.acceptance else ()
        ended.append(replace(record, outcome=_INTERRUPTED, segments=own))
        cancel = node.sign(Cancel(award.id, "requester restarted"))
        cancels.append(Send(award.body.executor, cancel, now_ms + CANCEL_MS))
    return tuple(ended), cancels
