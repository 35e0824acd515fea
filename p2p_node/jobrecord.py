"""One job's story as its client sees it, and how it is written down."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from p2p_node.core.request import FINAL_STATES, JobState
from p2p_node.partition.book import PlannedWhole
from p2p_node.tasks import is_text, unit_name
from workloads.registry import KINDS

__all__ = ["CREATED_BYTES", "JobRecord", "read_record", "recent_key"]

CREATED_BYTES = 8


@dataclass(slots=True)
class JobRecord:
    """One job's story so far."""

    id: bytes
    name: str
    created_ms: int
    spec: dict[str, Any]
    state: str = JobState.BIDDING.value
    reason: str = ""
    units: list[int] = field(default_factory=list)
    """Output so far; empty once it is an old job's, whose output is in the store."""
    text: str = ""
    finished_ms: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)
    units_total: int = 0
    """Of a job that is over."""
    whole: PlannedWhole | None = None
    """Where it stands, if it was split into parts."""

    @property
    def part_of(self) -> str:
        """Id of the job that this is a part of, in hexadecimal; empty if it isn't one."""
        return str(self.spec.get("part", {}).get("of", ""))

    @property
    def job_ids(self) -> tuple[bytes, ...]:
        """The protocol's jobs that it consists of: itself, or those of its parts."""
        if self.whole is None:
            return (self.id,)
        return tuple(job.job_id for part in self.whole.machine.parts for job in part.jobs)

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen."""
        return JobState(self.state) in FINAL_STATES

    def summary(self) -> dict[str, Any]:
        """What a list shows."""
        summary = {
            "id": self.id.hex(),
            "name": self.name,
            "state": self.state,
            "reason": self.reason,
            "created_ms": self.created_ms,
            "finished_ms": self.finished_ms,
            "units": len(self.units) or self.units_total,
            "unit": unit_name(self.spec["task"]["workload"]),
            "is_text": is_text(self.spec["task"]["workload"]),
            "text": self.text,
            "spec": self.spec,
            "part_of": self.part_of,
        }
        if self.whole is not None:
            machine = self.whole.machine
            summary |= {"units": machine.units, "parts": self.whole.rows()}
            summary |= {"parts_verified": machine.parts_verified, "paid_micros": machine.paid_micros}
        return summary


def recent_key(record: JobRecord) -> bytes:
    """What orders records by age in the store's list of the newest."""
    return record.created_ms.to_bytes(CREATED_BYTES, "big") + record.id


def read_record(key: bytes, value: bytes) -> JobRecord:
    """A record from the store.

    Raises:
        ValueError, KeyError, TypeError: it isn't one.
    """
    row = json.loads(value)
    record = JobRecord(
        key,
        row["name"],
        int(row["created_ms"]),
        row["spec"],
        JobState(row["state"]).value,
        row["reason"],
        list(row["units"]),
        row["text"],
        row["finished_ms"],
    )
    KINDS[record.spec["task"]["workload"]]
    return record
