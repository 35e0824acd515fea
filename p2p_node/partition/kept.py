"""What a node keeps of its jobs in parts: plans and who had which part, and each part's receipt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain

import msgspec
import structlog

from p2p_node.core.node import NodeCore
from p2p_node.core.request import JobRequest
from p2p_node.errors import UserError
from p2p_node.partition.planned import PlannedWhole
from p2p_node.partition.whole import PartJob
from p2p_node.store import Store
from protocols.effects import Persist
from protocols.envelope import open_envelope
from protocols.errors import PeerFault
from protocols.limits import RECEIPT_BYTES_MAX
from protocols.messages import PartRecord, ReceiptBody, WholeReceiptBody

__all__ = ["Keeping", "KeptWhole"]

log = structlog.get_logger(__name__)

RECEIPTS_BYTES_MAX = RECEIPT_BYTES_MAX - 2**20
"""Leaves room for the whole's input and for what stands around the receipts."""

_LOST = "lost"
"""What a part's job ended as when the node stopped under it."""


class KeptWhole(msgspec.Struct, frozen=True, kw_only=True):
    """A whole in the store."""

    name: str
    spec: bytes
    request: JobRequest
    nonce: bytes
    counts: tuple[int, ...]
    total_micros_max: int
    created_ms: int
    finished_ms: int
    deadline_ms: int
    state: str
    reason: str
    text: str
    jobs: list[PartJob]


class Keeping:
    """One node's store, as its jobs in parts use it."""

    def __init__(self, core: NodeCore, store: Store) -> None:
        self._core = core
        self._store = store

    def keep(self, planned: PlannedWhole) -> None:
        """Write down where a whole stands; it has reached the disk on return."""
        record, machine = planned.record, planned.machine
        # Once decided it stays so, also if the node stops before the last job is settled.
        state, reason = machine.outcome or (record.state, record.reason)
        kept = KeptWhole(
            name=record.name,
            spec=json.dumps(record.spec).encode(),
            request=planned.request,
            nonce=planned.nonce,
            counts=planned.counts,
            total_micros_max=planned.total_micros_max,
            created_ms=record.created_ms,
            finished_ms=record.finished_ms,
            deadline_ms=machine.deadline_ms,
            state=state,
            reason=reason,
            text=record.text,
            jobs=[job for part in machine.parts for job in part.jobs],
        )
        self._store.apply([Persist("wholes", record.id, msgspec.msgpack.encode(kept))])

    def load(self) -> Iterator[tuple[bytes, KeptWhole]]:
        """What an earlier run kept, by id; jobs that were open then are verified or lost."""
        for key, value in self._store.load("wholes").items():
            try:
                kept = msgspec.msgpack.decode(value, type=KeptWhole)
            except msgspec.DecodeError as error:
                # Of a release that asked for jobs in other words. The receipts of its parts are still there.
                log.warning("a job in parts can't be taken up again", job=key.hex()[:16], why=str(error))
                continue
            for job in kept.jobs:
                self._settle(job)
            yield key, kept

    def _settle(self, job: PartJob) -> None:
        """A job that was open when the node stopped: as its receipt says if it was written, else lost."""
        if job.state:
            return
        job.state = _LOST
        with suppress(UserError):
            body = self._receipt(job)
            job.state, job.units, job.ended_ms = body.state, len(body.units), body.finished_ms

    def units(self, job: PartJob) -> tuple[int, ...]:
        """The verified output of a part's job.

        Raises:
            UserError: its receipt is gone, or isn't one.
        """
        return self._receipt(job).units

    def units_of_whole(self, planned: PlannedWhole) -> list[int]:
        """The output of the parts that are verified, in order.

        Raises:
            UserError: as `units`.
        """
        done = (part.verified for part in planned.machine.parts)
        return list(chain.from_iterable(self.units(job) for job in done if job is not None))

    def _receipt(self, job: PartJob) -> ReceiptBody:
        """A job's receipt: it is what survives, whatever else was forgotten."""
        core, raw = self._core, self._store.get("receipts", job.job_id)
        if raw is None:
            raise UserError(f"the receipt of job {job.job_id.hex()} is gone")
        try:
            return open_envelope(
                raw, network=core.network, crypto=core.crypto, expect=ReceiptBody, bytes_max=RECEIPT_BYTES_MAX
            ).body
        except PeerFault as error:
            raise UserError(f"the receipt of job {job.job_id.hex()} doesn't hold: {error}") from error

    def receipt(self, planned: PlannedWhole) -> bytes | None:
        """The signed receipt of a whole that is over.

        Raises:
            UserError: together the receipts are larger than one may be.
        """
        if not planned.machine.is_over:
            return None
        request = planned.request
        found = [
            (number, self._store.get("receipts", job.job_id))
            for number, part in enumerate(planned.machine.parts)
            for job in part.jobs
        ]
        jobs = tuple(PartRecord(number, raw) for number, raw in found if raw is not None)
        if (size := sum(len(job.receipt) for job in jobs)) > RECEIPTS_BYTES_MAX:
            raise UserError(
                f"receipts of all parts have {size} bytes, more than {RECEIPTS_BYTES_MAX}; each has its own"
            )
        body = WholeReceiptBody(
            nonce=planned.nonce,
            workload=request.workload,
            model=request.model,
            profile=request.profile,
            input=request.input,
            counts=planned.counts,
            jobs=jobs,
            state=planned.record.state,
            finished_ms=planned.record.finished_ms,
        )
        return self._core.sign(body).raw
