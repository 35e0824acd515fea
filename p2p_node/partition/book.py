"""Jobs in parts as the client's node keeps them: plans, offers one part after another, and remembers.

What was verified is kept by its receipt, and which job was for which part is written down before the job is
offered: so a restart costs what was being worked on, and nothing that was done.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
import trio

from p2p_node.core.request import JobRequest, JobState
from p2p_node.core.requester import Job, offer_of
from p2p_node.errors import UserError
from p2p_node.partition.plan import pace_of, parts_of, plan_counts, slots
from p2p_node.partition.whole import (
    CancelJob,
    Event,
    Finish,
    JobAdvanced,
    JobAwarded,
    JobCommitted,
    JobEnded,
    OfferPart,
    PartJob,
    PartPlan,
    Tick,
    Whole,
)
from p2p_node.quote import quote
from p2p_node.runtime import Runtime
from p2p_node.store import Store
from protocols.auction import Candidate
from protocols.effects import Notify, Persist
from protocols.envelope import open_envelope
from protocols.errors import PeerFault
from protocols.limits import RECEIPT_BYTES_MAX
from protocols.messages import PartRecord, ReceiptBody, WholeReceiptBody
from verification.receipt_parts import whole_id
from workloads.registry import KINDS
from workloads.split import Part, Split

if TYPE_CHECKING:
    from p2p_node.jobs import JobBook, JobRecord

__all__ = ["PlannedWhole", "Wholes"]

log = structlog.get_logger(__name__)

TICK_S = 0.25
PROGRESS_MS = 1_000
"""How often a whole says how far it is."""

RECEIPTS_BYTES_MAX = RECEIPT_BYTES_MAX - 2**20
"""Leaves room for the whole's input and for what stands around the receipts."""

_VERIFIED = JobState.VERIFIED.value
_LOST = "lost"
"""What a part's job ended as when the node stopped under it."""


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
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


@dataclass(slots=True, kw_only=True)
class PlannedWhole:
    """A job in parts: what was asked, how it was split, and where it stands."""

    record: JobRecord
    request: JobRequest
    """Of the whole, which may be larger than a job may be."""
    nonce: bytes
    counts: tuple[int, ...]
    parts: list[Part]
    split: Split
    total_micros_max: int
    machine: Whole
    told_units: int = 0
    told_ms: int = 0
    text_parts: int = 0
    """Parts, from the first, whose text has been told."""
    job_ids: set[bytes] = field(default_factory=set)

    def label(self, number: int) -> str:
        """A part's items, for people."""
        return self.split.label(sum(self.counts[:number]), self.counts[number])

    def rows(self) -> list[dict[str, Any]]:
        """Each part, as a list shows it."""
        rows = []
        for number, part in enumerate(self.machine.parts):
            job = part.verified or (part.jobs[-1] if part.jobs else None)
            rows.append(
                {
                    "part": number,
                    "items": self.label(number),
                    "state": "waiting"
                    if job is None
                    else job.state or ("running" if job.peer else "bidding"),
                    "units": 0 if job is None else job.units,
                    "units_max": part.plan.units_max,
                    "jobs": [job.job_id.hex() for job in part.jobs],
                    "verified_by": part.verified.job_id.hex() if part.verified else None,
                }
            )
        return rows


class Wholes:
    """All jobs in parts that this node was asked for."""

    def __init__(self, book: JobBook, runtime: Runtime, store: Store) -> None:
        self._book = book
        self._runtime = runtime
        self._store = store
        self._wholes: dict[bytes, PlannedWhole] = {}
        self._of_job: dict[bytes, PlannedWhole] = {}
        self._wake = trio.Event()

    # --- Commands --------------------------------------------------------------------------------

    def submit(
        self,
        request: JobRequest,
        *,
        name: str,
        parts: int | None,
        total_micros_max: int,
        described: dict[str, Any],
        now_ms: int,
    ) -> JobRecord:
        """Plan a job in parts and begin with it.

        Args:
            request: of the whole.
            name: what the client calls it.
            parts: how many, or None to choose.
            total_micros_max: what all of it may cost; 0 is no limit.
            described: the job file as plain data.
            now_ms: the clock.

        Raises:
            UserError: it doesn't fall into such parts.
        """
        split, counts = self._plan(request, parts, now_ms)
        nonce = secrets.token_bytes(16)
        identifier = whole_id(
            self._runtime.core.key,
            nonce=nonce,
            workload=request.workload,
            model=request.model,
            profile=request.profile,
            input=request.input,
            counts=counts,
        )
        machine = Whole(
            self._part_plans(request, split, counts, now_ms),
            now_ms=now_ms,
            total_ms=request.total_ms,
            queue_ms=request.queue_ms,
            cost_micros_max=total_micros_max,
        )
        planned = PlannedWhole(
            record=self._book.enter(identifier, name, now_ms, described),
            request=request,
            nonce=nonce,
            counts=counts,
            parts=parts_of(split, request.input, counts),
            split=split,
            total_micros_max=total_micros_max,
            machine=machine,
        )
        self._adopt(planned)
        self._keep(planned)
        self._tell(planned, "planned", now_ms, parts=len(counts), items=sum(counts), item=split.items_name)
        self._wake.set()
        return planned.record

    def quote(self, request: JobRequest, *, parts: int | None, now_ms: int) -> dict[str, Any]:
        """What it would be checked by and cost; see `p2p_node.quote`.

        Raises:
            UserError: it doesn't fall into such parts.
        """
        split, counts = self._plan(request, parts, now_ms)
        made = parts_of(split, request.input, counts)
        quotes = {
            part.units_max: quote(self._runtime.core, _request_of(request, part), now_ms) for part in made
        }
        largest = max(quotes)
        summed = ("chunks", "segments", "execution_micros", "execution_micros_max")
        sums = {
            name: sum(quotes[part.units_max][name] for part in made)
            for name in (*summed, "verification_micros", "total_micros")
            if all(name in each for each in quotes.values())
        }
        return quotes[largest] | sums | {"parts": len(counts), "items_of_parts": list(counts)}

    def cancel(self, record: JobRecord, now_ms: int) -> None:
        """Stop a whole; what was verified stays."""
        planned = self._wholes[record.id]
        self._perform(planned, planned.machine.cancel(now_ms), now_ms)
        self._keep(planned)

    def resume(self, record: JobRecord, now_ms: int) -> None:
        """Go on with what is missing, with as much time as at first; one that goes on already does so.

        Raises:
            UserError: nothing is missing.
        """
        planned = self._wholes[record.id]
        machine = planned.machine
        if record.state == _VERIFIED:
            raise UserError("all parts are verified: there is nothing to resume")
        if not machine.is_over:
            return
        machine.resume(now_ms=now_ms, total_ms=planned.request.total_ms, queue_ms=planned.request.queue_ms)
        record.state, record.reason, record.finished_ms = machine.state, "", 0
        self._keep(planned)
        done = machine.parts_verified
        self._tell(planned, "resumed", now_ms, parts=len(planned.counts), done=done)
        self._wake.set()

    # --- Views -----------------------------------------------------------------------------------

    def of(self, record: JobRecord) -> PlannedWhole | None:
        """The plan of a whole's record; None for a single job's."""
        return self._wholes.get(record.id)

    def of_job(self, job_id: bytes) -> tuple[PlannedWhole, PartJob] | None:
        """The whole that a job is a part of, if it is one's."""
        planned = self._of_job.get(job_id)
        job = planned.machine.job(job_id) if planned else None
        return (planned, job) if planned and job else None

    def units(self, planned: PlannedWhole) -> list[int]:
        """The whole's output: of the parts that are verified, in order."""
        done = (part.verified for part in planned.machine.parts)
        return list(chain.from_iterable(self._units_of(job) for job in done if job is not None))

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
        return self._runtime.core.sign(body).raw

    # --- What happens ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Give every open whole its turn, until cancelled."""
        while True:
            with trio.move_on_after(TICK_S):
                await self._wake.wait()
            self._wake = trio.Event()
            for planned in self._open():
                now_ms = self._runtime.clock()
                self._perform(planned, planned.machine.handle(Tick(self._slots(planned)), now_ms), now_ms)
                self._tell_progress(planned, now_ms)

    def hear(self, note: Notify, now_ms: int) -> None:
        """A part's job got on; others aren't ours."""
        found = self.of_job(note.subject)
        if found is None:
            return
        planned, job = found
        details = note.details
        event: Event
        match note.event:
            case "awarded":
                event = JobAwarded(
                    job.job_id, details["peer"], int(details["price_micros"]), int(details["eta_ms"])
                )
            case "accepted":
                # Told only now: a busy peer refuses at once, and the next one is asked.
                self._tell(planned, "part-accepted", now_ms, part=job.number, peer=details["peer"])
                return
            case "committed" if details["final"]:
                event = JobCommitted(job.job_id)
                self._wake.set()
            case "output":
                event = JobAdvanced(job.job_id, int(details["first_unit"]) + len(details["units"]))
            case "finished":
                core = self._runtime.core.jobs[job.job_id]
                event = JobEnded(job.job_id, core.state.value, core.reason, _paid_micros(core))
                job.units = len(core.units)
            case _:
                return
        effects = planned.machine.handle(event, now_ms)
        if isinstance(event, JobEnded):
            self._job_ended(planned, job, now_ms)
        self._perform(planned, effects, now_ms)

    def _job_ended(self, planned: PlannedWhole, job: PartJob, now_ms: int) -> None:
        machine = planned.machine
        done, of = machine.parts_verified, len(planned.counts)
        name = "part-verified" if job.state == _VERIFIED else "part-ended"
        if job.is_dropped and job.state != _VERIFIED:
            name = "part-dropped"
        facts: dict[str, Any] = {"state": job.state, "reason": job.reason, "peer": job.peer}
        self._tell(planned, name, now_ms, part=job.number, job=job.job_id, done=done, of=of, **facts)
        if job.state == _VERIFIED:
            # The part is over and lets go of what it made; the whole isn't.
            kind, units = KINDS[planned.request.workload], self._units_of(job)
            made = kind.output_blobs(planned.parts[job.number].input, units)
            self._book.hold(planned.record.id, made)
        self._tell_text(planned, now_ms)
        self._keep(planned)
        self._wake.set()

    def _perform(self, planned: PlannedWhole, effects: list[Any], now_ms: int) -> None:
        for effect in effects:
            match effect:
                case OfferPart():
                    self._offer(planned, effect, now_ms)
                case CancelJob(job_id):
                    with suppress(KeyError):
                        self._runtime.cancel(job_id)
                case Finish(state, reason):
                    self._finish(planned, state, reason, now_ms)
        if not planned.machine.is_over:
            planned.record.state = planned.machine.state

    def _offer(self, planned: PlannedWhole, effect: OfferPart, now_ms: int) -> None:
        number = effect.number
        whole = planned.request
        total_ms = max(1, effect.total_ms)
        request = replace(
            _request_of(whole, planned.parts[number]),
            name=f"{whole.name[:56]}.{number}",
            total_ms=total_ms,
            execution_ms=min(whole.execution_ms, total_ms),
            exclude=tuple(dict.fromkeys((*whole.exclude, *effect.exclude))),
        )
        again = bool(planned.machine.parts[number].jobs)

        def announce(job_id: bytes) -> None:
            planned.machine.offered(number, job_id, now_ms)
            self._of_job[job_id] = planned
            part = {"of": planned.record.id.hex(), "number": number, "items": planned.label(number)}
            described = planned.record.spec | {"part": part}
            self._book.enter(job_id, request.name, now_ms, described, is_kept=True)
            # Before anything is said: what a peer does for us from here on must be found again.
            self._keep(planned)
            self._tell(
                planned,
                "part-offered",
                now_ms,
                part=number,
                items=planned.label(number),
                job=job_id,
                again=again,
                late=bool(effect.exclude),
            )

        try:
            self._runtime.submit(request, nonce=secrets.token_bytes(16), announce=announce)
        except ValueError as error:
            log.warning("a part wasn't offered", why=str(error))  # Too many jobs are open: the next tick.

    def _finish(self, planned: PlannedWhole, state: str, reason: str, now_ms: int) -> None:
        record = planned.record
        record.state, record.reason, record.finished_ms = state, reason, now_ms
        if state == _VERIFIED:
            record.text = self._book.text_of(record, self.units(planned))
        if state in (_VERIFIED, JobState.CANCELLED.value):
            # After any other end it waits to be resumed.
            self._book.let_go(record.id)
        self._keep(planned)
        facts = {"paid_micros": planned.machine.paid_micros, "done": planned.machine.parts_verified}
        self._tell(planned, "finished", now_ms, state=state, reason=reason, **facts)

    # --- Telling ---------------------------------------------------------------------------------

    def _tell(self, planned: PlannedWhole, name: str, now_ms: int, **details: Any) -> None:
        self._book.tell(planned.record, name, details, now_ms)

    def _tell_progress(self, planned: PlannedWhole, now_ms: int) -> None:
        machine = planned.machine
        units = machine.units
        if machine.is_over or units == planned.told_units or now_ms - planned.told_ms < PROGRESS_MS:
            return
        planned.told_units, planned.told_ms = units, now_ms
        units_max = sum(part.plan.units_max for part in machine.parts)
        done = machine.parts_verified
        self._tell(
            planned,
            "parts-progress",
            now_ms,
            units=units,
            units_max=units_max,
            done=done,
            of=len(planned.counts),
            running=sum(bool(part.open) for part in machine.parts),
        )

    def _tell_text(self, planned: PlannedWhole, now_ms: int) -> None:
        """Pass on the text of parts as soon as all before them are there."""
        parts, record = planned.machine.parts, planned.record
        while planned.text_parts < len(parts):
            job = parts[planned.text_parts].verified
            if job is None:
                return
            planned.text_parts += 1
            if text := self._book.text_of(record, self._units_of(job), planned.parts[job.number].input):
                record.text += text
                self._tell(planned, "output", now_ms, text=text, units_total=planned.machine.units)

    # --- Parts -----------------------------------------------------------------------------------

    def _plan(self, request: JobRequest, parts: int | None, now_ms: int) -> tuple[Split, tuple[int, ...]]:
        split = KINDS[request.workload].split
        if split is None:
            raise UserError(f"parts: {request.workload} doesn't fall into parts")
        candidates = self._candidates(_request_of(request, split.part(request.input, 0, 1)), now_ms)
        counts = plan_counts(
            split,
            request.input,
            parts=parts,
            slots=slots(candidates),
            pace=pace_of(self._runtime.core.market.paces, request, candidates),
        )
        return split, counts

    def _part_plans(
        self, request: JobRequest, split: Split, counts: tuple[int, ...], now_ms: int
    ) -> list[PartPlan]:
        made = parts_of(split, request.input, counts)
        fees = {
            part.units_max: int(
                quote(self._runtime.core, _request_of(request, part), now_ms).get("verification_micros", 0)
            )
            for part in made
        }
        return [
            PartPlan(
                label=split.label(sum(counts[:number]), counts[number]),
                units_max=part.units_max,
                cost_micros_max=request.price_micros_max * part.units_max + fees[part.units_max],
                fees_micros=fees[part.units_max],
            )
            for number, part in enumerate(made)
        ]

    def _candidates(self, request: JobRequest, now_ms: int) -> list[Candidate]:
        core = self._runtime.core
        offer = core.sign(offer_of(request, nonce=bytes(16), sent_ms=now_ms, expires_ms=now_ms + 1))
        return core.market.posted_candidates(offer, ranking=request.ranking, now_ms=now_ms)

    def _slots(self, planned: PlannedWhole) -> int:
        request = _request_of(planned.request, planned.parts[0])
        return slots(self._candidates(request, self._runtime.clock()))

    def _units_of(self, job: PartJob) -> tuple[int, ...]:
        return self._receipt_of(job.job_id).units

    def _receipt_of(self, job_id: bytes) -> ReceiptBody:
        """A part's receipt: it is what survives, whatever else was forgotten.

        Raises:
            UserError: it is gone, or isn't one.
        """
        core, raw = self._runtime.core, self._store.get("receipts", job_id)
        if raw is None:
            raise UserError(f"the receipt of job {job_id.hex()} is gone")
        try:
            return open_envelope(
                raw, network=core.network, crypto=core.crypto, expect=ReceiptBody, bytes_max=RECEIPT_BYTES_MAX
            ).body
        except PeerFault as error:
            raise UserError(f"the receipt of job {job_id.hex()} doesn't hold: {error}") from error

    # --- Keeping ---------------------------------------------------------------------------------

    def _open(self) -> Iterator[PlannedWhole]:
        return (planned for planned in list(self._wholes.values()) if not planned.machine.is_over)

    def _adopt(self, planned: PlannedWhole) -> None:
        planned.record.whole = planned
        self._wholes[planned.record.id] = planned
        for part in planned.machine.parts:
            for job in part.jobs:
                self._of_job[job.job_id] = planned

    def _keep(self, planned: PlannedWhole) -> None:
        record, machine = planned.record, planned.machine
        # Once decided it stays so, also if the node stops before the last job is settled.
        state, reason = machine.outcome or (record.state, record.reason)
        kept = _Kept(
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

    def restore(self, now_ms: int) -> None:
        """Find the wholes of an earlier run again; those that weren't over go on by themselves."""
        for key, value in self._store.load("wholes").items():
            try:
                self._restore(key, msgspec.msgpack.decode(value, type=_Kept), now_ms)
            except (msgspec.DecodeError, UserError, KeyError) as error:
                # Of a release that asked for jobs in other words. The receipts of its parts are still there.
                log.warning("a job in parts can't be taken up again", job=key.hex()[:16], why=str(error))

    def _restore(self, key: bytes, kept: _Kept, now_ms: int) -> None:
        split = KINDS[kept.request.workload].split
        if split is None:
            raise UserError(f"{kept.request.workload} doesn't fall into parts any more")
        machine = Whole(
            self._part_plans(kept.request, split, kept.counts, now_ms),
            now_ms=now_ms,
            total_ms=kept.deadline_ms - now_ms,
            queue_ms=kept.request.queue_ms,
            cost_micros_max=kept.total_micros_max,
        )
        machine.restore([self._settled(job) for job in kept.jobs], state=kept.state, reason=kept.reason)
        record = self._book.enter(key, kept.name, kept.created_ms, json.loads(kept.spec))
        record.state, record.reason, record.text = machine.state, kept.reason, kept.text
        record.finished_ms = kept.finished_ms or (now_ms if machine.is_over else 0)
        planned = PlannedWhole(
            record=record,
            request=kept.request,
            nonce=kept.nonce,
            counts=kept.counts,
            parts=parts_of(split, kept.request.input, kept.counts),
            split=split,
            total_micros_max=kept.total_micros_max,
            machine=machine,
        )
        self._adopt(planned)
        if machine.is_over:
            return
        record.text = ""
        self._keep(planned)
        done = machine.parts_verified
        self._tell(planned, "resumed", now_ms, parts=len(kept.counts), done=done)
        self._tell_text(planned, now_ms)

    def _settled(self, job: PartJob) -> PartJob:
        """A job that was open when the node stopped: verified if its receipt was written, else lost."""
        if job.state:
            return job
        job.state = _LOST
        with suppress(UserError):
            body = self._receipt_of(job.job_id)
            job.state, job.units, job.ended_ms = body.state, len(body.units), body.finished_ms
        return job


def _request_of(whole: JobRequest, part: Part) -> JobRequest:
    """The request of one part."""
    return replace(
        whole,
        input=part.input,
        input_units=part.input_units,
        units_max=part.units_max,
        input_blobs=KINDS[whole.workload].input_blobs(part.input),
    )


def _paid_micros(job: Job) -> int:
    """What a job's payees were promised, all together."""
    settled: dict[tuple[bytes, bytes], int] = {}
    for attempt in job.attempts:
        for (_, payee), voucher in attempt.payouts.vouchers.items():
            lane = (voucher.body.lane, payee)
            settled[lane] = max(settled.get(lane, 0), voucher.body.settled_micros)
    return sum(settled.values())
