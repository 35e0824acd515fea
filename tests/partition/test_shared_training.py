"""Several peers train one model over the simulated network: real steps, real states, and what goes wrong."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from p2p_node.core.node import Capability
from p2p_node.jobrecord import JobRecord
from p2p_node.partition import book as book_module
from p2p_node.sim.scenario import job_request
from protocols.bidding import Ability
from protocols.effects import Execute, FetchBlobs, Judge, Prefetch, Recompute, Task
from protocols.events import (
    Finding,
    RunChunk,
    RunEvent,
    RunFailed,
    RunFetched,
    RunFinished,
    RunJudged,
    RunOutput,
    RunRecomputed,
)
from protocols.messages import Offering
from tests.support.deterministic_trio import run_deterministically
from tests.support.town import CLIENT, EXECUTORS, Peer, Trade, checked, clock, events, over, town
from workloads.blobs import MemoryBlobs
from workloads.training.input import (
    CHUNK_UNITS,
    ClassifierShape,
    Nesterov,
    Rounds,
    TrainingInput,
    encode_input,
)
from workloads.training.kind import NAME, SKIPPED_STEP, TRAINING, model_digest
from workloads.training.turns import TURNS
from workloads.training.workload import TrainingRun

PROFILE = "exact14"
SEGMENT_S = 4.0
CHEAPEST = 1
JOB = TrainingInput(
    classifier=ClassifierShape((4, 8, 2)),
    llama=None,
    segments=3,
    segment_steps=1,
    batch=4,
    learning_rate_micro=20_000,
    beta1_micro=900_000,
    beta2_micro=950_000,
    weight_decay_micro=0,
    seed=3,
    data=bytes(value * 37 % 256 if value % 5 < 4 else value % 2 for value in range(500)),
    is_large=True,
    rounds=Rounds(2, 2, Nesterov(700_000, 900_000)),
)
WHOLE = encode_input(JOB, is_whole=True)
TURNS_ALL = 5
BLOBS = MemoryBlobs()
"""States travel at once here; how they do is `tests.swarm`'s affair."""


@cache
def trained(input: bytes, prefix: tuple[int, ...], variant: str | None) -> tuple[list[int], dict[int, bytes]]:
    units: list[int] = []
    digests: dict[int, bytes] = {}
    run = TrainingRun(PROFILE, variant, blobs=BLOBS)
    run.generate(input, prefix, lambda _, new: units.extend(new), digests.__setitem__, lambda: False)
    return units, digests


@cache
def recomputed(input: bytes, units: tuple[int, ...], chunk: int) -> bytes:
    return TrainingRun(PROFILE, blobs=BLOBS).recompute(input, units, [chunk])[chunk]


@cache
def right() -> tuple[int, ...]:
    """What honest peers make of it."""
    assert TURNS.order is not None
    done: list[list[int]] = []
    for item in range(TURNS_ALL):
        needed = [done[other] for other in TURNS.order.needs(WHOLE, item)]
        done.append(trained(TURNS.order.part(WHOLE, item, needed).input, (), None)[0])
    return tuple(itertools.chain.from_iterable(done))


class Trainer:
    """Runs the workload itself, in the town's time."""

    def __init__(self, nursery: trio.Nursery, variant: str | None) -> None:
        self._nursery = nursery
        self._variant = variant
        self._scopes: dict[tuple[Any, ...], trio.CancelScope] = {}
        self.started: list[Execute] = []

    def start(self, key: tuple[Any, ...], task: Task, report: Callable[[RunEvent], None]) -> None:
        if isinstance(task, Prefetch):
            return
        if isinstance(task, Execute):
            self.started.append(task)
        scope = self._scopes[key] = trio.CancelScope()
        self._nursery.start_soon(self._run, scope, key, task, report)

    def cancel(self, key: tuple[Any, ...]) -> None:
        if key in self._scopes:
            self._scopes[key].cancel()

    async def _run(self, scope: trio.CancelScope, key: Any, task: Any, report: Any) -> None:
        with scope:
            await trio.sleep(0.05)
            match task:
                case Execute():
                    await self._execute(key, task, report)
                case Recompute():
                    found = tuple((n, recomputed(task.input, task.units, n)) for n in task.chunks)
                    report(RunRecomputed(key, found, 1_000))
                case FetchBlobs():
                    for blob in TRAINING.output_blobs(task.input, task.units):
                        BLOBS.read(blob)
                    report(RunFetched(key))
                case Judge():
                    report(RunJudged(key, Finding.INCONCLUSIVE, "no program", 100))
                case _:
                    report(RunFailed(key, "input-refused", "no program"))

    async def _execute(self, key: Any, task: Execute, report: Any) -> None:
        units, digests = trained(task.input, task.prefix, self._variant)
        for place, (chunk, digest) in enumerate(digests.items()):
            await trio.sleep(SEGMENT_S)
            new = units[place * CHUNK_UNITS : (place + 1) * CHUNK_UNITS]
            report(RunOutput(key, chunk * CHUNK_UNITS, tuple(new)))
            report(RunChunk(key, chunk, digest))
        report(RunFinished(key, len(task.prefix) + len(units), 1_000))


def trade(cheat: int | None = None) -> Trade:
    def capability(index: int) -> Capability:
        # The client can do such work too, and so can say itself who is right.
        offering = Offering(NAME, model_digest(), (PROFILE,), 100 + index, 500_000, True)
        ability = Ability(offering, "cpu", 1 << 20, 1 << 30, chunk_units=CHUNK_UNITS)
        return Capability(abilities=(ability,), slots_total=1)

    def employ(nursery: trio.Nursery, index: int) -> Trainer:
        return Trainer(nursery, SKIPPED_STEP if index == cheat else None)

    return Trade(capability, employ)


def submit(client: Peer) -> JobRecord:
    assert client.book is not None
    request = replace(
        job_request(0, mode="posted", verifiers=20),
        workload=NAME,
        model=model_digest(),
        input=WHOLE,
        input_units=0,
        units_max=JOB.units_total,
        chunk_units=CHUNK_UNITS,
        segment_chunks=1,
        has_output_blobs=True,
        stall_ms=20_000,
    )
    return client.book.wholes.submit(
        request,
        name="training",
        parts=None,
        total_micros_max=0,
        described={"task": {"workload": NAME}},
        now_ms=clock(),
    )


@pytest.fixture(autouse=True)
def nonces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in each run: draws follow from them."""
    numbers = itertools.count()
    drawn = SimpleNamespace(token_bytes=lambda size: next(numbers).to_bytes(size, "little"))
    monkeypatch.setattr(book_module, "secrets", drawn)


def play(path: Path, main: Callable[[Path], Awaitable[None]]) -> None:
    run_deterministically(partial(main, path / "node.sqlite"), seed=1)


def test_a_cheat_in_a_round_is_convicted_and_the_model_is_the_honest_one(tmp_path: Path) -> None:
    async def main(path: Path) -> None:
        async with town(path, trade(cheat=CHEAPEST)) as (_, client, peers):
            record = submit(client)
            await over(record)
            report = checked(client, record)
            assert (record.state, report.units) == ("verified", right())
            cheat = peers[CHEAPEST - 1]
            assert cheat.executor.started
            assert client.runtime.core.standings.of(cheat.key).convicted
            assert cheat.key not in report.executors
            # Its turn was done again by others, and nothing that it made became part of a later start.
            asked = {task.input for peer in peers if peer is not cheat for task in peer.executor.started}
            assert len(asked) == TURNS_ALL
            assert {task.input for task in cheat.executor.started} <= asked
            # The loss is told as it comes, by round and peer.
            told = {event["items"]: event["remark"] for event in events(record, "part-remark")}
            assert list(told) == [f"round {number}, peer {peer}" for number in (0, 1) for peer in range(2)]
            assert told["round 1, peer 1"].endswith("before step 6")

    play(tmp_path, main)


def test_a_peer_that_dies_and_a_client_that_restarts_cost_no_verified_segment(tmp_path: Path) -> None:
    async def main(path: Path) -> None:
        async with town(path, trade()) as (place, client, peers):
            record = submit(client)
            victim = peers[CHEAPEST - 1]
            # Its first segment is verified, since its second is done, and its third is in work.
            while not any(job.units for job in verified_prefixes(client, victim)):
                await trio.sleep(0.05)
            victim.scope.cancel()
            while record.summary()["parts_verified"] < 3:
                await trio.sleep(0.05)
            # Whoever took its turn went on after that segment.
            resumed = [task for peer in peers for task in peer.executor.started if task.prefix]
            assert [len(task.prefix) for task in resumed] == [CHUNK_UNITS]
            assert resumed[0].input == victim.executor.started[0].input
            done = {row["verified_by"] for row in record.summary()["parts"] if row["verified_by"]}
            client.scope.cancel()
            await trio.sleep(1)
            before = [len(peer.executor.started) for peer in peers]
            again = await place.open(CLIENT)
            await place.ready(again, EXECUTORS - 1)
            assert again.book is not None
            found = again.book.find(record.id.hex())
            await over(found)
            report = checked(again, found)
            assert (found.state, report.units) == ("verified", right())
            assert done <= {part.verified.job_id.hex() for part in report.parts if part.verified}
            after = sum(len(peer.executor.started) - count for peer, count in zip(peers, before, strict=True))
            assert after == TURNS_ALL - len(done)

    play(tmp_path, main)


def verified_prefixes(client: Peer, victim: Peer) -> list[Any]:
    """Jobs of the client whose executor is the victim, with what is verified of them."""
    return [
        job
        for job in client.runtime.core.jobs.values()
        if job.attempts and job.attempts[-1].candidate.peer == victim.key and not job.is_final
    ]
