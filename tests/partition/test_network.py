"""Jobs in parts over the simulated network, under a clock that jumps: peers die or dawdle, the client too."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from p2p_node.jobrecord import JobRecord
from p2p_node.partition import book as book_module
from p2p_node.sim.scenario import job_request, sim_capability
from p2p_node.sim.workload import derive_unit
from protocols.effects import Execute
from tests.support.deterministic_trio import run_deterministically
from tests.support.sim_executor import Report, SimExecutor
from tests.support.town import CLIENT, EXECUTORS, Peer, Trade, checked, clock, events, over, town
from workloads.errors import InputRefused
from workloads.registry import KINDS
from workloads.split import Part, Split
from workloads.workload import Artifact, Kind

WHOLE = b"alpha beta gamma delta epsilon zeta"
PARTS = 6
ITEM_UNITS = 128
CHUNK_S = 0.5
VICTIM = 1
"""The victim asks least, so that it has a part whoever else has."""


def _part(whole: bytes, first: int, count: int) -> Part:
    words = whole.split()[first : first + count]
    if len(words) != count:
        raise InputRefused(f"words {first} to {first + count} must be there")
    return Part(b" ".join(words), 0, ITEM_UNITS * count)


def _nothing(*_: object) -> Any:
    raise AssertionError("the simulated workload is run by a simulated executor")


WORDS = Kind(
    name="sim.hash",
    unit="unit",
    chunk_units=32,
    segment_chunks=4,
    profiles=("exact14",),
    variants=(),
    models=lambda: (),
    probe=bytes,
    open=_nothing,
    present=lambda input, units: Artifact("text/plain", bytes(units[0] % 256), ""),
    split=Split("word", lambda whole: len(whole.split()), _part),
)
RIGHT = tuple(derive_unit(word, index) for word in WHOLE.split() for index in range(ITEM_UNITS))


class WordExecutor(SimExecutor):
    """As long as the part's words take, at this peer's speed."""

    def __init__(self, nursery: trio.Nursery, *, slowness: int = 1) -> None:
        super().__init__(nursery, units_max=ITEM_UNITS)
        self.slowness = slowness
        self.started: list[bytes] = []

    def start(self, key: tuple[Any, ...], task: Any, report: Report) -> None:
        if isinstance(task, Execute):
            self.started.append(task.input)
        super().start(key, task, report)

    async def _execute(self, scope: trio.CancelScope, key: Any, task: Execute, report: Report) -> None:
        def in_its_time(event: Any) -> None:
            pending.append(event)

        pending: list[Any] = []
        await super()._execute(trio.CancelScope(), key, task, in_its_time)
        with scope:
            for event in pending:
                await trio.sleep(CHUNK_S * self.slowness / 2)
                report(event)


def trade(slow: dict[int, int] | None = None) -> Trade:
    return Trade(
        lambda index: sim_capability(price_micros=100 + index, serves=index != CLIENT, slots=1),
        lambda nursery, index: WordExecutor(nursery, slowness=(slow or {}).get(index, 1)),
    )


def submit(client: Peer, **changes: Any) -> JobRecord:
    assert client.book is not None
    request = replace(
        job_request(0, mode="posted", verifiers=20),
        **{"input": WHOLE, "units_max": ITEM_UNITS * PARTS, "stall_ms": 60_000, **changes},
    )
    return client.book.wholes.submit(
        request,
        name="words",
        parts=PARTS,
        total_micros_max=0,
        described={"task": {"workload": "sim.hash"}},
        now_ms=clock(),
    )


@pytest.fixture(autouse=True)
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workload, and nonces that are the same in each run: draws follow from them."""
    numbers = itertools.count()
    monkeypatch.setitem(KINDS, "sim.hash", WORDS)
    drawn = SimpleNamespace(token_bytes=lambda size: next(numbers).to_bytes(size, "little"))
    monkeypatch.setattr(book_module, "secrets", drawn)


def play(path: Path, main: Callable[[Path], Awaitable[None]]) -> None:
    run_deterministically(partial(main, path / "node.sqlite"), seed=1)


# --- Cases -----------------------------------------------------------------------------------------


def test_parts_go_to_all_peers_and_come_back_in_order(tmp_path: Path) -> None:
    async def main(path: Path) -> None:
        async with town(path, trade()) as (_, client, peers):
            record = submit(client)
            await over(record)
            report = checked(client, record)
            assert (record.state, report.units) == ("verified", RIGHT)
            assert report.state == "verified"
            # Nobody waits while there is work: each peer did one part at least.
            assert {len(peer.executor.started) for peer in peers} <= {1, 2, 3}
            assert set(report.executors) == {peer.key for peer in peers}
            assert record.whole is not None
            assert record.whole.machine.paid_micros == sum(report.earnings.values())
            assert client.book is not None
            assert [row.part_of for row in client.book.records()].count(record.id.hex()) == PARTS

    play(tmp_path, main)


def test_an_executor_that_dies_costs_what_it_had_not_delivered(tmp_path: Path) -> None:
    async def main(path: Path) -> None:
        async with town(path, trade()) as (_, client, peers):
            record = submit(client)
            while not events(record, "parts-progress"):
                await trio.sleep(0.05)
            victim = peers[VICTIM - 1]
            assert victim.executor.started
            victim.scope.cancel()
            await over(record)
            report = checked(client, record)
            assert (record.state, report.units) == ("verified", RIGHT)
            # Its part was done again by one of the others, and no other part was.
            assert sum(len(peer.executor.started) for peer in peers) == PARTS + 1

    play(tmp_path, main)


def test_a_straggler_is_overtaken_paid_for_what_was_verified_and_not_blamed(tmp_path: Path) -> None:
    async def main(path: Path) -> None:
        async with town(path, trade({VICTIM: 40})) as (_, client, peers):
            record = submit(client)
            await over(record)
            report = checked(client, record)
            assert (record.state, report.units) == ("verified", RIGHT)
            slow = peers[VICTIM - 1].key
            [again] = [event for event in events(record, "part-offered") if event["late"]]
            [dropped] = events(record, "part-dropped")
            assert again["part"] == dropped["part"]
            assert slow not in report.executors
            standing = client.runtime.core.standings.of(slow)
            assert (standing.failed, standing.convicted) == (0, False)
            # Both jobs of its part are in the receipt, and the second counts.
            jobs = report.parts[again["part"]].jobs
            assert [job.state for job in jobs] == ["cancelled", "verified"]

    play(tmp_path, main)


def test_a_client_that_is_restarted_goes_on_by_itself_with_what_is_missing(tmp_path: Path) -> None:
    async def main(path: Path) -> None:
        async with town(path, trade()) as (place, client, peers):
            record = submit(client)
            while record.summary()["parts_verified"] < 2:
                await trio.sleep(0.05)
            done = [row["verified_by"] for row in record.summary()["parts"] if row["verified_by"]]
            client.scope.cancel()
            await trio.sleep(1)
            before = [list(peer.executor.started) for peer in peers]
            again = await place.open(CLIENT)
            await place.ready(again, EXECUTORS)
            assert again.book is not None
            found = again.book.find(record.id.hex())
            assert found.created_ms == record.created_ms
            assert found.events[0]["event"] == "resumed"
            await over(found)
            report = checked(again, found)
            assert (found.state, report.units) == ("verified", RIGHT)
            # What was verified is the same jobs' still, and wasn't done again.
            kept = [part.verified.job_id.hex() for part in report.parts if part.verified]
            assert set(done) <= set(kept)
            words = WHOLE.split()
            finished = [words[n] for n, job_id in enumerate(kept) if job_id in done]
            after = [peer.executor.started[len(b) :] for peer, b in zip(peers, before, strict=True)]
            assert not set(finished) & {word for started in after for word in started}

    play(tmp_path, main)


def test_a_whole_that_ran_out_of_time_keeps_its_parts_and_is_resumed(tmp_path: Path) -> None:
    async def main(path: Path) -> None:
        async with town(path, trade()) as (_, client, _peers):
            record = submit(client, total_ms=4_500, execution_ms=4_500)
            await over(record)
            done = record.summary()["parts_verified"]
            assert (record.state, 0 < done < PARTS) == ("timed_out", True)
            report = checked(client, record)
            assert report.state == "timed_out"
            assert sum(part.verified is not None for part in report.parts) == done
            assert client.book is not None
            client.book.resume(record)
            await over(record)
            assert (record.state, checked(client, record).units) == ("verified", RIGHT)

    play(tmp_path, main)
