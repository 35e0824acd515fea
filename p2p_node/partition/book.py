"""Jobs in parts as the client's node keeps them: plans, offers one part after another, and remembers.

What was verified is kept by its receipt, and which job was for which part is written down before the job is
offered: so a restart costs what was being worked on, and nothing that was done.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import structlog
import trio

from p2p_node.core.request import JobRequest, JobState
from p2p_node.core.requester import Job
from p2p_node.errors import UserError
from p2p_node.partition.kept import Keeping, KeptWhole
from p2p_node.partition.plan import following, parts_of
from p2p_node.partition.planned import PlannedWhole, Planner, request_of, split_of
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
    Tick,
    Whole,
)
from p2p_node.runtime import Runtime
from p2p_node.store import Store
from protocols.effects import Notify
from verification.receipt_parts import whole_id
from workloads.errors import WorkloadRefused
from workloads.registry import KINDS

if TYPE_CHECKING:
    from p2p_node.jobrecord import JobRecord
    from p2p_node.jobs import JobBook

__all__ = ["PlannedWhole", "Wholes"]

log = structlog.get_logger(__name__)

TICK_S = 0.25
PROGRESS_MS = 1_000
"""How often a whole says how far it is."""

_VERIFIED = JobState.VERIFIED.value


class Wholes:
    """All jobs in parts that this node was asked for."""

    def __init__(self, book: JobBook, runtime: Runtime, store: Store) -> None:
        self._book = book
        self._runtime = runtime
        self.planner = Planner(runtime.core)
        self.keeping = Keeping(runtime.core, store)
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
        split = split_of(request.workload)
        counts = self.planner.counts(request, parts, now_ms)
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
            self.planner.part_plans(request, counts, now_ms),
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
        self.keeping.keep(planned)
        self._tell(planned, "planned", now_ms, parts=len(counts), items=sum(counts), item=split.items_name)
        self._wake.set()
        return planned.record

    def cancel(self, record: JobRecord, now_ms: int) -> None:
        """Stop a whole; what was verified stays."""
        planned = self._wholes[record.id]
        self._perform(planned, planned.machine.cancel(now_ms), now_ms)
        self.keeping.keep(planned)

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
        self.keeping.keep(planned)
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

    # --- What happens ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Give every open whole its turn, until cancelled."""
        while True:
            with trio.move_on_after(TICK_S):
                await self._wake.wait()
            self._wake = trio.Event()
            for planned in self._open():
                now_ms = self._runtime.clock()
                self._perform(
                    planned, planned.machine.handle(Tick(self.planner.slots(planned, now_ms)), now_ms), now_ms
                )
                self._tell_progress(planned, now_ms)

    def hear(self, note: Notify, now_ms: int, *, remark: str = "") -> None:
        """A part's job got on; others aren't ours.

        Args:
            note: what happened.
            now_ms: the clock.
            remark: what is worth saying of the part's output.
        """
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
                if remark:
                    items = planned.label(job.number)
                    self._tell(planned, "part-remark", now_ms, part=job.number, items=items, remark=remark)
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
            kind, units = KINDS[planned.request.workload], self.keeping.units(job)
            made = kind.output_blobs(planned.parts[job.number].input, units)
            self._book.hold(planned.record.id, made, is_private=planned.request.is_private)
        self._tell_text(planned, now_ms)
        self.keeping.keep(planned)
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
        if planned.machine.outcome is not None:
            return
        try:
            self._follow(planned, number)
        except UserError as error:
            # A receipt of an earlier part is gone.
            self._perform(planned, planned.machine.cancel(now_ms, str(error)), now_ms)
            return
        total_ms = max(1, effect.total_ms)
        request = replace(
            request_of(whole, planned.parts[number]),
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
            self.keeping.keep(planned)
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

    def _follow(self, planned: PlannedWhole, number: int) -> None:
        """Put a part that starts from others' output in its place.

        Raises:
            UserError: their output isn't here any more.
        """
        parts = planned.machine.parts
        needed = [parts[other].verified for other in parts[number].plan.needs]
        if needed:
            units = [self.keeping.units(job) for job in needed if job is not None]
            planned.parts[number] = following(planned.split, planned.request.input, number, units)

    def _finish(self, planned: PlannedWhole, state: str, reason: str, now_ms: int) -> None:
        record = planned.record
        record.state, record.reason, record.finished_ms = state, reason, now_ms
        if state == _VERIFIED:
            record.text = self._book.text_of(record, self.keeping.units_of_whole(planned))
        if state in (_VERIFIED, JobState.CANCELLED.value):
            # After any other end it waits to be resumed.
            self._book.let_go(record.id)
        self.keeping.keep(planned)
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
            if text := self._book.text_of(record, self.keeping.units(job), planned.parts[job.number].input):
                record.text += text
                self._tell(planned, "output", now_ms, text=text, units_total=planned.machine.units)

    # --- Keeping ---------------------------------------------------------------------------------

    def _open(self) -> Iterator[PlannedWhole]:
        return (planned for planned in list(self._wholes.values()) if not planned.machine.is_over)

    def _adopt(self, planned: PlannedWhole) -> None:
        planned.record.whole = planned
        self._wholes[planned.record.id] = planned
        for part in planned.machine.parts:
            for job in part.jobs:
                self._of_job[job.job_id] = planned

    def restore(self, now_ms: int) -> None:
        """Find the wholes of an earlier run again; those that weren't over go on by themselves."""
        for key, kept in self.keeping.load():
            try:
                self._restore(key, kept, now_ms)
            except (UserError, WorkloadRefused, KeyError) as error:
                # Of a release with another workload. The receipts of its parts are still there.
                log.warning("a job in parts can't be taken up again", job=key.hex()[:16], why=str(error))

    def _restore(self, key: bytes, kept: KeptWhole, now_ms: int) -> None:
        machine = Whole(
            self.planner.part_plans(kept.request, kept.counts, now_ms),
            now_ms=now_ms,
            total_ms=kept.deadline_ms - now_ms,
            queue_ms=kept.request.queue_ms,
            cost_micros_max=kept.total_micros_max,
        )
        machine.restore(kept.jobs, state=kept.state, reason=kept.reason)
        record = self._book.enter(key, kept.name, kept.created_ms, json.loads(kept.spec))
        record.state, record.reason, record.text = machine.state, kept.reason, kept.text
        record.finished_ms = kept.finished_ms or (now_ms if machine.is_over else 0)
        planned = PlannedWhole(
            record=record,
            request=kept.request,
            nonce=kept.nonce,
            counts=kept.counts,
            parts=parts_of(split_of(kept.request.workload), kept.request.input, kept.counts),
            split=split_of(kept.request.workload),
            total_micros_max=kept.total_micros_max,
            machine=machine,
        )
        for number, part in enumerate(machine.parts):
            if part.jobs:
                self._follow(planned, number)
        self._adopt(planned)
        if machine.is_over:
            return
        record.text = ""
        self.keeping.keep(planned)
        done = machine.parts_verified
        self._tell(planned, "resumed", now_ms, parts=len(kept.counts), done=done)
        self._tell_text(planned, now_ms)


def _paid_micros(job: Job) -> int:
    """What a job's payees were promised, all together."""
    settled: dict[tuple[bytes, bytes], int] = {}
    for attempt in job.attempts:
        for (_, payee), voucher in attempt.payouts.vouchers.items():
            lane = (voucher.body.lane, payee)
            settled[lane] = max(settled.get(lane, 0), voucher.body.settled_micros)
    return sum(settled.values())
