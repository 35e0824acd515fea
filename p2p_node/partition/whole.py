"""`Whole`: which part of a split job is whose turn, and when the whole is over.

A part is an ordinary job, so offers, executors, verifiers and payments are no concern of this machine: it
hears when a part's job was awarded, got on and ended, and says which part to offer next and which job to
cancel. It never waits, reads a clock or talks to anybody.

A part that is well past its time is offered once more, to somebody else, as soon as no part waits for its
first offer and a peer is free; the job that is verified first counts, the other is cancelled, and each is
paid what was verified. Source: Dean and Ghemawat, "MapReduce", OSDI 2004: backup tasks.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from p2p_node.core.request import FINAL_STATES, JobState
from protocols.limits import PART_JOBS_MAX

__all__ = [
    "CancelJob",
    "Effect",
    "Event",
    "Finish",
    "JobAdvanced",
    "JobAwarded",
    "JobCommitted",
    "JobEnded",
    "OfferPart",
    "PartJob",
    "PartPlan",
    "PartState",
    "Tick",
    "Whole",
]

STRAGGLER_FACTOR = 2
"""A part is late after this many times what parts of its size took."""

STRAGGLER_MS_MIN = 5_000
"""Less is within the luck of an auction and a draw of verifiers."""

OFFER_AGAIN_MS = 5_000
"""Pause before a part that nobody took is offered again, while others are being worked on."""

_CANCELLED = JobState.CANCELLED.value
_NO_BIDS = JobState.NO_BIDS.value
_VERIFIED = JobState.VERIFIED.value


# --- Events ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed. ``slots``: parts that the peers known could do at once."""

    slots: int


@dataclass(frozen=True, slots=True)
class JobAwarded:
    """A part's job has an executor, maybe another than before."""

    job_id: bytes
    peer: bytes
    price_micros: int
    eta_ms: int
    """When the peer will be done by what it promised and what was seen of it."""


@dataclass(frozen=True, slots=True)
class JobAdvanced:
    """So many output units of a part's job are here."""

    job_id: bytes
    units: int


@dataclass(frozen=True, slots=True)
class JobCommitted:
    """A part's executor has committed to all of its output: it is free, while verifiers aren't done."""

    job_id: bytes


@dataclass(frozen=True, slots=True)
class JobEnded:
    """A part's job is over."""

    job_id: bytes
    state: str
    reason: str
    paid_micros: int


Event = Tick | JobAwarded | JobAdvanced | JobCommitted | JobEnded


# --- Effects -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OfferPart:
    """Offer a part as a job, and call `Whole.offered` with its id."""

    number: int
    exclude: tuple[bytes, ...]
    total_ms: int


@dataclass(frozen=True, slots=True)
class CancelJob:
    """Cancel a part's job; its end is an event like any other."""

    job_id: bytes


@dataclass(frozen=True, slots=True)
class Finish:
    """All is over."""

    state: str
    reason: str


Effect = OfferPart | CancelJob | Finish


# --- State -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PartPlan:
    """One part before anybody took it.

    Args:
        label: the items, for people.
        units_max: output units at most.
        cost_micros_max: what it may cost, verifiers included.
        fees_micros: of its verifiers, as expected.
        needs: parts whose output it starts from.
    """

    label: str
    units_max: int
    cost_micros_max: int
    fees_micros: int
    needs: tuple[int, ...] = ()


@dataclass(slots=True)
class PartJob:
    """One job that was offered for a part."""

    job_id: bytes
    number: int
    offered_ms: int
    awarded_ms: int = 0
    peer: bytes = b""
    price_micros: int = 0
    eta_ms: int = 0
    units: int = 0
    is_committed: bool = False
    state: str = ""
    """Empty while it is open."""
    reason: str = ""
    ended_ms: int = 0
    paid_micros: int = 0
    is_dropped: bool = False
    """We cancelled it ourselves."""


@dataclass(slots=True)
class PartState:
    """One part and the jobs that were offered for it."""

    plan: PartPlan
    jobs: list[PartJob] = field(default_factory=list)
    again_ms: int = 0
    """Not to be offered again before."""

    @property
    def verified(self) -> PartJob | None:
        """The job whose result counts: the first that was verified."""
        return next((job for job in self.jobs if job.state == _VERIFIED), None)

    @property
    def open(self) -> list[PartJob]:
        """Jobs that aren't over."""
        return [job for job in self.jobs if not job.state]


class Whole:
    """Feed it events with `handle`; perform the effects; `state` is final after `Finish`."""

    def __init__(
        self,
        parts: Sequence[PartPlan],
        *,
        now_ms: int,
        total_ms: int,
        queue_ms: int,
        cost_micros_max: int = 0,
    ) -> None:
        """A whole of which nothing has been offered.

        Args:
            parts: what it consists of, in order.
            now_ms: the clock.
            total_ms: how long all of it may take.
            queue_ms: how long to wait for a peer that could do it before offering it to whom there is.
            cost_micros_max: ceiling of all that is paid; 0 is none.
        """
        self.parts = [PartState(plan) for plan in parts]
        self.state = JobState.BIDDING.value
        self.reason = ""
        self.created_ms = now_ms
        self.deadline_ms = now_ms + total_ms
        self.is_over = False
        self._queue_until_ms = now_ms + queue_ms
        self._cost_micros_max = cost_micros_max
        self._outcome: tuple[str, str] | None = None

    # --- Views -----------------------------------------------------------------------------------

    @property
    def paid_micros(self) -> int:
        """What all jobs of all parts were paid."""
        return sum(job.paid_micros for job in self._jobs())

    @property
    def outcome(self) -> tuple[str, str] | None:
        """How it ends, decided before the last job is settled: state and reason."""
        return self._outcome

    @property
    def parts_verified(self) -> int:
        """Parts that are done."""
        return sum(part.verified is not None for part in self.parts)

    @property
    def units(self) -> int:
        """Output units that are here: of each part those of the job that has most."""
        return sum(max((job.units for job in part.jobs), default=0) for part in self.parts)

    def job(self, job_id: bytes) -> PartJob | None:
        """A part's job by its id."""
        return next((job for job in self._jobs() if job.job_id == job_id), None)

    def _jobs(self) -> list[PartJob]:
        return [job for part in self.parts for job in part.jobs]

    def _open(self) -> list[PartJob]:
        return [job for job in self._jobs() if not job.state]

    # --- Commands --------------------------------------------------------------------------------

    def offered(self, number: int, job_id: bytes, now_ms: int) -> None:
        """A part was offered as this job."""
        self.parts[number].jobs.append(PartJob(job_id, number, now_ms))

    def cancel(self, now_ms: int, reason: str = "cancelled by the client") -> list[Effect]:
        """Stop; what was verified stays."""
        return self._conclude(_CANCELLED, reason, now_ms)

    def resume(self, *, now_ms: int, total_ms: int, queue_ms: int) -> None:
        """Go on after an end that wasn't the good one, with the parts that are missing and new time."""
        self._outcome, self.is_over, self.reason = None, False, ""
        self.state = JobState.RUNNING.value
        self.deadline_ms = now_ms + total_ms
        self._queue_until_ms = now_ms + queue_ms
        for part in self.parts:
            part.again_ms = 0

    def restore(self, jobs: Sequence[PartJob], *, state: str, reason: str) -> None:
        """Take back what the store kept: jobs that are over, and how the whole ended if it has."""
        for job in jobs:
            self.parts[job.number].jobs.append(job)
        if JobState(state) in FINAL_STATES:
            self.state, self.reason, self._outcome, self.is_over = state, reason, (state, reason), True
        elif jobs:
            self.state = JobState.RUNNING.value

    # --- Events ----------------------------------------------------------------------------------

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        """React to a part's job, or to time."""
        if isinstance(event, Tick):
            return self._tick(event.slots, now_ms)
        job = self.job(event.job_id)
        if job is None or job.state:
            return []
        match event:
            case JobAwarded():
                # A new executor's time begins now; what others did before it is not its fault.
                job.awarded_ms, job.peer = now_ms, event.peer
                job.price_micros, job.eta_ms = event.price_micros, event.eta_ms
                job.is_committed = False
                if self._outcome is None:
                    self.state = JobState.RUNNING.value
                return []
            case JobAdvanced():
                job.units = event.units
                return []
            case JobCommitted():
                job.is_committed = True
                return []
            case JobEnded():
                return self._ended(job, event, now_ms)

    def _ended(self, job: PartJob, event: JobEnded, now_ms: int) -> list[Effect]:
        part = self.parts[job.number]
        is_first = part.verified is None
        job.state, job.reason, job.ended_ms = event.state, event.reason, now_ms
        job.paid_micros = event.paid_micros
        if self._outcome is not None:
            return self._finish_if_settled()
        if event.state == _VERIFIED:
            return self._verified(part, now_ms) if is_first else []
        if job.is_dropped or part.open:
            return []
        if event.state == _NO_BIDS and any(other.awarded_ms for other in self._open()):
            # Peers are at work on other parts: one of them will be free.
            part.again_ms = now_ms + OFFER_AGAIN_MS
            return []
        reason = f"part {job.number} ({part.plan.label}): {event.reason or event.state}"
        return self._conclude(event.state, reason, now_ms)

    def _verified(self, part: PartState, now_ms: int) -> list[Effect]:
        if self.parts_verified == len(self.parts):
            return self._conclude(_VERIFIED, "", now_ms)
        return self._drop(part.open)

    # --- What next -------------------------------------------------------------------------------

    def _tick(self, slots: int, now_ms: int) -> list[Effect]:
        if self._outcome is not None:
            return []
        if now_ms >= self.deadline_ms:
            return self._conclude(JobState.TIMED_OUT.value, "not all parts were verified in time", now_ms)
        if self.parts_verified == len(self.parts):
            # The node stopped after the last part and before it said so.
            return self._conclude(_VERIFIED, "", now_ms)
        if slots == 0 and now_ms < self._queue_until_ms:
            return []
        effects: list[Effect] = []
        # Whoever has committed can take the next part while the last one is verified.
        at_work = sum(not job.is_committed for job in self._open())
        free = min(max(1, slots) - at_work, 2 * max(1, slots) - len(self._open()))
        waiting = [
            number
            for number, part in enumerate(self.parts)
            if part.verified is None and not part.open and part.again_ms <= now_ms and self._can_begin(part)
        ]
        # At most a tick's worth of offers at once is sent: each is booked before the next is thought of.
        for number in waiting[: max(0, free)]:
            blocked = self._cannot_offer(number, effects)
            if blocked:
                is_idle = not self._open() and not effects
                return effects + (
                    self._conclude(JobState.TASK_FAILED.value, blocked, now_ms) if is_idle else []
                )
            effects.append(OfferPart(number, (), self.deadline_ms - now_ms))
        if not waiting and free > 0:
            late = self._latest(now_ms)
            if late is not None and not self._cannot_offer(late.number, []):
                effects.append(OfferPart(late.number, (late.peer,), self.deadline_ms - now_ms))
        return effects

    def _can_begin(self, part: PartState) -> bool:
        return all(self.parts[number].verified is not None for number in part.plan.needs)

    def _cannot_offer(self, number: int, before: Sequence[Effect]) -> str:
        """Why a part may not be offered now; empty if it may."""
        offers = [effect.number for effect in before if isinstance(effect, OfferPart)]
        if len(self._jobs()) + len(offers) >= PART_JOBS_MAX:
            return f"{PART_JOBS_MAX} jobs were offered for the parts; no more are"
        if not self._cost_micros_max:
            return ""
        plan = self.parts[number].plan
        reserved = sum(self.parts[other].plan.cost_micros_max for other in offers)
        left = self._cost_micros_max - self.paid_micros - reserved - sum(map(self._reserved, self._open()))
        if plan.cost_micros_max <= left:
            return ""
        return (
            f"auction.max_total: part {number} ({plan.label}) may cost {plan.cost_micros_max} micro-units, "
            f"and {max(0, left)} of {self._cost_micros_max} are left"
        )

    def _reserved(self, job: PartJob) -> int:
        """What an open job may yet cost."""
        plan = self.parts[job.number].plan
        if not job.awarded_ms:
            return plan.cost_micros_max
        return job.price_micros * plan.units_max + plan.fees_micros

    def _latest(self, now_ms: int) -> PartJob | None:
        """The open job that is furthest past its time and could still be overtaken."""
        late = [
            (now_ms - job.awarded_ms - self._typical_ms(job), -job.number, job)
            for job in self._open()
            if job.awarded_ms and len(self.parts[job.number].open) == 1 and self._is_late(job, now_ms)
        ]
        return max(late)[2] if late else None

    def _is_late(self, job: PartJob, now_ms: int) -> bool:
        elapsed, typical = now_ms - job.awarded_ms, self._typical_ms(job)
        if elapsed <= max(STRAGGLER_MS_MIN, STRAGGLER_FACTOR * typical):
            return False
        units_max = self.parts[job.number].plan.units_max
        # At its own pace it may be done before anybody else could be.
        return job.units == 0 or elapsed * (units_max - job.units) // job.units > typical

    def _typical_ms(self, job: PartJob) -> int:
        """What a part of this size took others; before any is done, what the peer was believed to take."""
        paces = [
            1_000 * (other.ended_ms - other.awarded_ms) // self.parts[other.number].plan.units_max
            for other in self._jobs()
            if other.state == _VERIFIED and other.awarded_ms
        ]
        if not paces:
            return job.eta_ms
        return round(statistics.median(paces)) * self.parts[job.number].plan.units_max // 1_000

    # --- The end ---------------------------------------------------------------------------------

    def _conclude(self, state: str, reason: str, now_ms: int) -> list[Effect]:
        if self._outcome is not None:
            return []
        self._outcome = (state, reason)
        self.state = JobState.SETTLING.value
        return [*self._drop(self._open()), *self._finish_if_settled()]

    def _drop(self, jobs: Sequence[PartJob]) -> list[Effect]:
        dropped = [job for job in jobs if not job.is_dropped]
        for job in dropped:
            job.is_dropped = True
        return [CancelJob(job.job_id) for job in dropped]

    def _finish_if_settled(self) -> list[Effect]:
        """Over when the last job is: only then is it known what was paid."""
        if self._outcome is None or self._open():
            return []
        self.state, self.reason = self._outcome
        if self.parts_verified == len(self.parts):
            # The last part was verified while it was being cancelled.
            self.state, self.reason = _VERIFIED, ""
        self.is_over = True
        return [Finish(self.state, self.reason)]
