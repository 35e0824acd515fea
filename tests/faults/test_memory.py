"""What a node remembers of jobs that are over is bounded, however many there were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from p2p_node.core.request import JobState
from p2p_node.jobs import JobBook
from p2p_node.runtime import Runtime
from p2p_node.store import Store
from tests.faults.test_damage import core
from tests.support.builders import NOW_MS

SPEC: dict[str, Any] = {"task": {"workload": "linalg.matmul"}}


def test_stories_of_old_jobs_are_cut_to_their_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2p_node.jobs.STORY_EVENTS_MAX", 50)
    with Store.open(tmp_path / "s") as store:
        runtime = Runtime(core(), executor=None, keeper=store, clock=lambda: NOW_MS)  # type: ignore[arg-type]
        book = JobBook(runtime, store, {}, clock=lambda: NOW_MS)
        open_record = book.enter(b"open" * 8, "open", NOW_MS, SPEC)
        for number in range(20):
            book.tell(open_record, "progress", {}, NOW_MS)
            record = book.enter(bytes([number]) * 32, "job", NOW_MS, SPEC)
            for _ in range(9):
                book.tell(record, "progress", {}, NOW_MS)
            record.state = JobState.VERIFIED.value
            book.tell(record, "finished", {"state": "verified"}, NOW_MS)
        records = list(book.records())
        assert len(open_record.events) == 20, "what goes on is told whole"
        over = [record.events for record in records if record is not open_record]
        assert [len(events) for events in over] == [1] * 15 + [10] * 5
        assert {events[-1]["event"] for events in over} == {"finished"}


def test_output_of_old_jobs_is_read_from_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2p_node.jobs.STORY_EVENTS_MAX", 20)
    with Store.open(tmp_path / "s") as store:
        runtime = Runtime(core(), executor=None, keeper=store, clock=lambda: NOW_MS)  # type: ignore[arg-type]
        book = JobBook(runtime, store, {}, clock=lambda: NOW_MS)
        for number in range(6):
            record = book.enter(bytes([number]) * 32, "job", NOW_MS + number, SPEC)
            record.state, record.units = JobState.VERIFIED.value, [number] * 160
            book._keep(record)
            book.tell(record, "finished", {"state": "verified"}, NOW_MS)
        for one in (book, JobBook(runtime, store, {}, clock=lambda: NOW_MS)):
            records = list(one.records())
            assert sum(len(record.units) for record in records) <= 2 * 160, "most of it isn't at hand"
            assert [one.units_of(record) for record in records] == [[number] * 160 for number in range(6)]
            assert {record.summary()["units"] for record in records} == {160}
