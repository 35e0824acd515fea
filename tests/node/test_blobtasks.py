"""Blobs around a run: fetched before it, held while it lasts, and typed reasons where they can't be had."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from p2p_node.bloboutput import OutputRefused, OutputTaker
from p2p_node.blobs import BlobStore, BlobUnavailable, StoreFull
from p2p_node.blobtasks import OUTPUT_KEPT_S, BlobTasks
from protocols.blobs import Blob, blob_of
from protocols.effects import Case, Execute, FetchBlobs, Judge, Prefetch, Recompute, Task
from protocols.events import (
    INPUT_MISSING,
    NO_ROOM,
    OUTPUT_MISSING,
    Finding,
    RunEvent,
    RunFailed,
    RunFetched,
    RunFinished,
    RunJudged,
    RunProgress,
)
from workloads.blobs import blob_from_words, blob_words
from workloads.frames import BlobPart
from workloads.registry import KINDS
from workloads.workload import Kind

DATA = bytes(range(100))
INPUT = blob_of(DATA)
FIRST, SECOND = blob_of(b"first"), blob_of(b"second")
UNITS = (*blob_words(FIRST), *blob_words(SECOND))
KEY = ("execute", b"a" * 32)
REQUESTER = b"r" * 32


def _outputs(_: bytes, units: Sequence[int]) -> tuple[Blob, ...]:
    return tuple(blob_from_words(units[at : at + 10]) for at in range(0, len(units), 10))


KIND: Kind = dataclasses.replace(
    KINDS["linalg.matmul"],
    name="test.blobs",
    chunk_units=10,
    input_blobs=lambda input: (Blob(input, len(DATA)),),
    output_blobs=_outputs,
    # Each chunk starts from what the one before left.
    chunk_blobs=lambda _, units, chunk: _outputs(b"", units)[chunk - 1 : chunk] if chunk else (),
)


class Inner:
    """Keeps what it is given to run; the test says what becomes of it."""

    def __init__(self) -> None:
        self.started: list[tuple[Any, Task, Callable[[RunEvent], None]]] = []
        self.cancelled: list[Any] = []

    def start(self, key: Any, task: Task, report: Callable[[RunEvent], None]) -> None:
        self.started.append((key, task, report))

    def cancel(self, key: Any) -> None:
        self.cancelled.append(key)


class Store:
    """Names of what is here, and of who holds it."""

    def __init__(self, *here: Blob, bytes_max: int = 10_000) -> None:
        self.here = set(here)
        self.bytes_max = bytes_max
        self.pins: dict[str, set[Blob]] = {}

    def has(self, blob: Blob) -> bool:
        return blob in self.here

    def pin(self, blob: Blob, owner: str) -> None:
        self.pins.setdefault(owner, set()).add(blob)

    def unpin(self, owner: str) -> None:
        self.pins.pop(owner, None)


class Peers:
    """What others serve, and what was asked of them."""

    def __init__(self, store: Store, *served: Blob, full: bool = False) -> None:
        self.store, self.served, self.full = store, set(served), full
        self.asked: list[tuple[Blob, tuple[bytes, ...]]] = []

    async def fetch(
        self, blob: Blob, sources: Sequence[bytes], *, on_progress: Callable[[int, int], None]
    ) -> Path:
        self.asked.append((blob, tuple(sources)))
        on_progress(0, blob.size_bytes)
        await trio.sleep(0.1)
        if self.full:
            raise StoreFull("no room")
        if blob not in self.served:
            raise BlobUnavailable("nobody has it")
        on_progress(blob.size_bytes, blob.size_bytes)
        self.store.here.add(blob)
        return Path()


class Bench:
    """`BlobTasks` over all of these."""

    def __init__(self, nursery: trio.Nursery, store: Store, peers: Peers) -> None:
        self.inner, self.store, self.peers = Inner(), store, peers
        self.events: list[RunEvent] = []
        self.tasks = BlobTasks(
            self.inner, store=store, fetch=peers.fetch, nursery=nursery, kinds={KIND.name: KIND}
        )

    def start(self, task: Task, key: Any = KEY) -> None:
        self.tasks.start(key, task, self.events.append)

    @property
    def ending(self) -> RunEvent:
        (event,) = [event for event in self.events if not isinstance(event, RunProgress)]
        return event


def execute(prefix: tuple[int, ...] = ()) -> Execute:
    return Execute(KIND.name, b"m" * 32, "exact14", INPUT.digest, prefix, sources=(REQUESTER,))


def bench(nursery: trio.Nursery, *here: Blob, served: Sequence[Blob] = (), **fields: Any) -> Bench:
    store = Store(*here)
    return Bench(nursery, store, Peers(store, *served, **fields))


async def test_a_run_begins_when_its_input_is_here(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        made = bench(nursery, served=[INPUT])
        made.start(execute())
        assert made.inner.started == []
        await trio.sleep(1)
        assert made.peers.asked == [(INPUT, (REQUESTER,))]
        assert [event.done for event in made.events if isinstance(event, RunProgress)] == [0, 100]
        [(key, task, _)] = made.inner.started
        assert (key, task) == (KEY, execute())
        nursery.cancel_scope.cancel()


async def test_what_is_here_isnt_fetched_and_is_held_while_the_run_lasts(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        made = bench(nursery, INPUT, FIRST)
        task = Recompute(KIND.name, b"m" * 32, "exact14", INPUT.digest, UNITS, (1,))
        made.start(task)
        await trio.sleep(1)
        assert made.peers.asked == []
        assert list(made.store.pins.values()) == [{INPUT, FIRST}]
        report = made.inner.started[0][2]
        report(RunFailed(KEY, "crashed", ""))
        assert made.store.pins == {}
        nursery.cancel_scope.cancel()


async def test_what_many_runs_left_is_held_for_a_while_by_one_task(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        made = bench(nursery, INPUT)
        for number in range(3):
            made.start(execute(), ("execute", bytes([number])))
            await trio.sleep(10)
            made.inner.started[-1][2](RunFinished(("execute", bytes([number])), 20, 1))
        await trio.lowlevel.checkpoint()
        assert len(nursery.child_tasks) == 1
        await trio.sleep(OUTPUT_KEPT_S - 25)
        assert len(made.store.pins) == 3
        for left in (2, 1, 0):
            await trio.sleep(10)
            assert len(made.store.pins) == left
        assert not nursery.child_tasks


async def test_a_resumed_run_starts_from_the_last_blob_of_its_prefix(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        made = bench(nursery, INPUT, served=[FIRST])
        made.start(execute(UNITS[:10]))
        await trio.sleep(1)
        assert [blob for blob, _ in made.peers.asked] == [FIRST]
        nursery.cancel_scope.cancel()


async def test_input_that_nobody_gives_ends_it_with_its_reason(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        made = bench(nursery)
        made.start(execute())
        await trio.sleep(120)
        assert made.ending == RunFailed(KEY, INPUT_MISSING, "nobody has it")
        assert (made.inner.started, made.store.pins) == ([], {})
        nursery.cancel_scope.cancel()


async def test_a_referee_without_the_input_finds_nothing(autojump_clock: trio.testing.MockClock) -> None:
    case = Case(KIND.name, b"", "exact14", INPUT.digest, (), 0, b"", 1, 0, b"", (), b"")
    async with trio.open_nursery() as nursery:
        made = bench(nursery)
        made.start(Judge(case))
        await trio.sleep(120)
        assert isinstance(made.ending, RunJudged)
        assert made.ending.finding is Finding.INCONCLUSIVE
        nursery.cancel_scope.cancel()


async def test_a_cancelled_fetch_says_nothing_more(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        made = bench(nursery, served=[INPUT])
        made.start(execute())
        await trio.testing.wait_all_tasks_blocked()
        made.tasks.cancel(KEY)
        told = list(made.events)
        await trio.sleep(120)
        assert (made.events, made.inner.started, made.store.pins) == (told, [], {})
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("served", "full", "ending"),
    [
        ([FIRST, SECOND], False, RunFetched(KEY)),
        ([FIRST], False, RunFailed(KEY, OUTPUT_MISSING, "nobody has it")),
        ([], True, RunFailed(KEY, NO_ROOM, "no room")),
    ],
)
async def test_output_is_fetched_or_missed(
    autojump_clock: trio.testing.MockClock, served: list[Blob], full: bool, ending: RunEvent
) -> None:
    async with trio.open_nursery() as nursery:
        made = bench(nursery, served=served, full=full)
        made.start(FetchBlobs(KIND.name, INPUT.digest, UNITS, sources=(REQUESTER,)))
        await trio.sleep(120)
        assert made.ending == ending
        nursery.cancel_scope.cancel()


async def test_units_that_name_no_blob_are_the_executors_fault(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        made = bench(nursery)
        made.start(FetchBlobs(KIND.name, INPUT.digest, blob_words_of_nothing(), sources=(REQUESTER,)))
        await trio.sleep(1)
        assert isinstance(made.ending, RunFailed)
        assert made.ending.reason == OUTPUT_MISSING
        assert made.peers.asked == []
        nursery.cancel_scope.cancel()


def blob_words_of_nothing() -> tuple[int, ...]:
    return tuple(blob_words(Blob(bytes(32), 2**63)))


async def test_prefetching_has_bounds_and_an_end(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        made = bench(nursery, served=[INPUT])
        made.start(Prefetch((Blob(bytes(32), 2**40),)), ("prefetch", b"1"))
        made.start(Prefetch((INPUT,), (REQUESTER,)), ("prefetch", b"2"))
        await trio.testing.wait_all_tasks_blocked()
        assert made.peers.asked == [(INPUT, (REQUESTER,))]
        made.tasks.cancel(("prefetch", b"2"))
        await trio.sleep(1)
        assert not made.store.has(INPUT)
        assert made.events == []
        nursery.cancel_scope.cancel()


async def test_output_stays_for_a_while_after_its_run(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        made = bench(nursery, INPUT)
        made.start(execute())
        await trio.sleep(1)
        made.inner.started[0][2](RunFinished(KEY, 10, 1))
        await trio.sleep(60)
        assert made.store.pins != {}
        await trio.sleep(3_600)
        assert made.store.pins == {}
        nursery.cancel_scope.cancel()


# --- What a worker leaves ------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Any:
    opened = BlobStore.open(tmp_path, bytes_max=64 << 20, clock=lambda: 0)
    yield opened
    opened.close()


def parts(data: bytes, run: int = 1) -> list[BlobPart]:
    blob = blob_of(data)
    return [
        BlobPart(run, blob.digest, len(data), at, data[at : at + (1 << 20)])
        for at in range(0, max(1, len(data)), 1 << 20)
    ]


def test_parts_become_a_blob_that_is_held(store: BlobStore) -> None:
    data = bytes(range(256)) * 5_000
    taker = OutputTaker(store, "run:1")
    for part in [*parts(data), *parts(b""), *parts(b"small")]:
        taker.take(part)
    assert store.path(blob_of(data)).read_bytes() == data
    assert {row.blob for row in store.stored()} == {blob_of(data), blob_of(b""), blob_of(b"small")}
    assert all(row.pins == ("run:1",) for row in store.stored())


def test_what_isnt_what_its_name_says_is_refused(store: BlobStore) -> None:
    (part,) = parts(b"other")
    lie = BlobPart(1, FIRST.digest, FIRST.size_bytes, 0, part.data)
    with pytest.raises(OutputRefused, match="what was called blob"):
        OutputTaker(store, "run:1").take(lie)


@pytest.mark.parametrize("order", [(1, 0), (0, 0)])
def test_parts_out_of_order_are_refused(store: BlobStore, order: tuple[int, ...]) -> None:
    made = parts(bytes(3 << 20))
    taker = OutputTaker(store, "run:1")
    with pytest.raises(OutputRefused, match="isn't the next one"):
        for number in order:
            taker.take(made[number])


def test_all_that_a_run_leaves_has_a_bound(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2p_node.bloboutput.RUN_BLOB_BYTES_MAX", 8)
    taker = OutputTaker(store, "run:1")
    taker.take(parts(b"12345")[0])
    with pytest.raises(OutputRefused, match="a run leaves 2 blobs of 10 bytes"):
        taker.take(parts(b"67890")[0])
