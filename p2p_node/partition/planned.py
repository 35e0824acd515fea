"""A job in parts between its plan and its end, and the planning of one by what this node knows now."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from p2p_node.core.node import NodeCore
from p2p_node.core.request import JobRequest
from p2p_node.core.requester import offer_of
from p2p_node.errors import UserError
from p2p_node.partition.plan import pace_of, parts_of, plan_counts, slots
from p2p_node.partition.whole import PartPlan, Whole
from p2p_node.quote import quote
from protocols.auction import Candidate
from workloads.errors import WorkloadRefused
from workloads.registry import KINDS
from workloads.split import Part, Split

if TYPE_CHECKING:
    from p2p_node.jobrecord import JobRecord

__all__ = ["PlannedWhole", "Planner", "request_of", "split_of"]

COUNTED_MS = 2_000
"""How long a count of able peers is believed."""


@dataclass(slots=True, kw_only=True)
class PlannedWhole:
    """A job in parts: what was asked, how it was split, and where it stands."""

    record: JobRecord
    request: JobRequest
    """Of the whole, which may be larger than a job may be."""
    nonce: bytes
    counts: tuple[int, ...]
    parts: list[Part]
    """Those that start from others' output are put in place when they are offered."""
    split: Split
    total_micros_max: int
    machine: Whole
    slots: int = 0
    """Parts that the peers known could do at once, when they were last counted."""
    counted_ms: int = 0
    told_units: int = 0
    told_ms: int = 0
    text_parts: int = 0
    """Parts, from the first, whose text has been told."""

    def label(self, number: int) -> str:
        """A part's items, for people."""
        return self.split.label(self.request.input, sum(self.counts[:number]), self.counts[number])

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


class Planner:
    """Cuts a whole, says what its parts may cost, and who could do them."""

    def __init__(self, core: NodeCore) -> None:
        self._core = core

    def counts(self, request: JobRequest, parts: int | None, now_ms: int) -> tuple[int, ...]:
        """How many items each part gets.

        Args:
            request: of the whole.
            parts: how many are wanted, or None to choose.
            now_ms: the clock.

        Raises:
            UserError: it doesn't fall into such parts.
        """
        split = split_of(request.workload)
        try:
            candidates = self._candidates(request_of(request, split.part(request.input, 0, 1)), now_ms)
            return plan_counts(
                split,
                request.input,
                parts=parts,
                slots=slots(candidates),
                pace=pace_of(self._core.market.paces, request, candidates),
            )
        except WorkloadRefused as error:
            raise UserError(f"parts: {error}") from error

    def slots(self, planned: PlannedWhole, now_ms: int) -> int:
        """Parts that the peers known could do at once."""
        # A large network has many adverts to go through. Without anybody, every moment counts.
        if not planned.slots or now_ms - planned.counted_ms >= COUNTED_MS:
            candidates = self._candidates(request_of(planned.request, planned.parts[0]), now_ms)
            planned.slots, planned.counted_ms = slots(candidates), now_ms
        return planned.slots

    def part_plans(self, request: JobRequest, counts: tuple[int, ...], now_ms: int) -> list[PartPlan]:
        """What each part may cost.

        Raises:
            UserError: it doesn't fall into such parts.
        """
        split = split_of(request.workload)
        made = parts_of(split, request.input, counts)
        fees = {
            part.units_max: int(
                quote(self._core, request_of(request, part), now_ms).get("verification_micros", 0)
            )
            for part in made
        }
        return [
            PartPlan(
                label=split.label(request.input, sum(counts[:number]), counts[number]),
                units_max=part.units_max,
                cost_micros_max=request.price_micros_max * part.units_max + fees[part.units_max],
                fees_micros=fees[part.units_max],
                needs=() if split.order is None else split.order.needs(request.input, number),
            )
            for number, part in enumerate(made)
        ]

    def quote(self, request: JobRequest, *, parts: int | None, now_ms: int) -> dict[str, Any]:
        """What a whole would be checked by and cost; see `p2p_node.quote`.

        Raises:
            UserError: it doesn't fall into such parts.
        """
        counts = self.counts(request, parts, now_ms)
        made = parts_of(split_of(request.workload), request.input, counts)
        quotes = {part.units_max: quote(self._core, request_of(request, part), now_ms) for part in made}
        summed = ("chunks", "segments", "execution_micros", "execution_micros_max")
        sums = {
            name: sum(quotes[part.units_max][name] for part in made)
            for name in (*summed, "verification_micros", "total_micros")
            if all(name in each for each in quotes.values())
        }
        return quotes[max(quotes)] | sums | {"parts": len(counts), "items_of_parts": list(counts)}

    def _candidates(self, request: JobRequest, now_ms: int) -> list[Candidate]:
        offer = self._core.sign(offer_of(request, nonce=bytes(16), sent_ms=now_ms, expires_ms=now_ms + 1))
        return self._core.market.posted_candidates(offer, ranking=request.ranking, now_ms=now_ms)


def split_of(workload: str) -> Split:
    """How jobs of a workload fall into parts.

    Raises:
        UserError: they don't.
    """
    split = KINDS[workload].split
    if split is None:
        raise UserError(f"parts: {workload} doesn't fall into parts")
    return split


def request_of(whole: JobRequest, part: Part) -> JobRequest:
    """The request of one part."""
    return replace(
        whole,
        input=part.input,
        input_units=part.input_units,
        units_max=part.units_max,
        input_blobs=KINDS[whole.workload].input_blobs(part.input),
    )
