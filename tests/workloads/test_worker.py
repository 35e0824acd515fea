"""The worker process and its supervisor: runs, cancels, crashes, restarts, and a node that vanishes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from p2p_node.workers import WorkerDied, WorkerPool, WorkerSettings, open_worker
from protocols.effects import Case
from protocols.events import Finding
from protocols.values import value_digest
from workloads.frames import (
    BUFFER_BYTES_MAX,
    Cancel,
    ChunkDone,
    Command,
    Event,
    Failed,
    Finished,
    FrameReader,
    Generate,
    Judge,
    Judged,
    Load,
    Loaded,
    MalformedFrame,
    ModelRef,
    Opened,
    OpenValues,
    Output,
    Phase,
    Recompute,
    Recomputed,
    Trace,
    Traced,
    encode_frame,
)
from workloads.lm.generate import LmExecutor
from workloads.lm.input import LmInput, encode_input
from workloads.lm.manifest import load_manifest

JOB = LmInput(prompts=((3, 1, 4),), max_tokens=70, seed=5, temperature_milli=900)
INPUT = encode_input(JOB)
ENDS = (Finished, Recomputed, Loaded, Traced, Opened, Judged, Failed)


@pytest.fixture
def model(tiny_model: Path) -> ModelRef:
    return ModelRef(str(tiny_model), load_manifest(tiny_model).digest, "exact14")


# --- frames -----------------------------------------------------------------------------------


def test_frames_survive_any_split(model: ModelRef) -> None:
    frames: list[Command] = [Load(1, model), Generate(2, model, b"x" * 300, (1, 2)), Cancel(2)]
    data = b"".join(encode_frame(frame) for frame in frames)
    for size in (1, 7, len(data)):
        reader = FrameReader(Command)
        assert [f for i in range(0, len(data), size) for f in reader.feed(data[i : i + size])] == frames


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1",
        b"\x01",
        b"\x93\xa6Cancel\x01\x02",
        b"\x92\xa6Cancel\xa1x",
        b"\x92\xa7Unknown\x01",
        encode_frame(Finished(1, 2, "stop", 3)),
        b"\xc6" + (BUFFER_BYTES_MAX + 1).to_bytes(4, "big") + b"x" * BUFFER_BYTES_MAX,
    ],
    ids=[
        "reserved byte",
        "no array",
        "extra field",
        "wrong type",
        "unknown tag",
        "wrong direction",
        "too large",
    ],
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    reader = FrameReader(Command)
    with pytest.raises(MalformedFrame):
        list(reader.feed(data)) + list(reader.feed(b"x"))


# --- pool -------------------------------------------------------------------------------------


class Harness:
    """A running pool, and runs that are waited for."""

    def __init__(self, pool: WorkerPool, deaths: list[str], others: set[psutil.Process]) -> None:
        self.pool = pool
        self.deaths = deaths
        self.others = others

    async def run(
        self, work: Any, meanwhile: Callable[[int, Event], None] = lambda _run, _event: None
    ) -> list[Event]:
        events, done = [], trio.Event()

        def on_event(event: Event) -> None:
            if not isinstance(event, Phase):  # Whether a model has to be loaded depends on other tests.
                events.append(event)
            meanwhile(number, event)
            if isinstance(event, ENDS):
                done.set()

        number = self.pool.start_run(work, on_event)
        with trio.fail_after(60):
            await done.wait()
        assert all(event.run == number for event in events)
        return events

    def worker_pid(self) -> int:
        # Forked last.
        return max(children() - self.others, key=psutil.Process.create_time).pid


@asynccontextmanager
async def running_pool(slots: int = 1) -> AsyncIterator[Harness]:
    deaths: list[str] = []
    others = children()
    pool = WorkerPool(slots, on_death=deaths.append)
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        yield Harness(pool, deaths, others)
        nursery.cancel_scope.cancel()
    assert children() <= others


def children() -> set[psutil.Process]:
    """This process's children: other tests' fixtures may have some too."""
    return set(psutil.Process().children(recursive=True))


def joined(events: list[Event]) -> tuple[int, ...]:
    units: list[int] = []
    for event in events:
        if isinstance(event, Output):
            assert event.first_unit == len(units)
            units += event.units
    return tuple(units)


async def test_a_job_runs_and_is_verified_in_a_process_of_its_own(model: ModelRef) -> None:
    units: list[int] = []
    chunks: dict[int, bytes] = {}
    local = LmExecutor(Path(model.path), model.profile)
    local.generate(JOB, (), lambda _, new: units.extend(new), chunks.__setitem__, lambda: False)
    async with running_pool() as harness:
        assert isinstance((await harness.run(Load(0, model)))[-1], Loaded)
        events = await harness.run(Generate(0, model, INPUT))
        assert isinstance(events[0], Output)
        assert joined(events) == tuple(units)
        assert {e.chunk: e.digest for e in events if isinstance(e, ChunkDone)} == chunks
        assert (events[-1].units_total, events[-1].reason) == (70, "length")  # type: ignore[union-attr]
        (verdict,) = await harness.run(Recompute(0, model, INPUT, tuple(units), (2, 0)))
        assert verdict.digests == ((0, chunks[0]), (2, chunks[2]))  # type: ignore[union-attr]
        (again,) = await harness.run(Load(0, model))
        assert again.load_ms == 0  # type: ignore[union-attr]
        assert (harness.pool.busy, harness.pool.waiting) == (0, 0)


async def test_a_chunk_is_disputed_and_judged_in_a_process_of_its_own(model: ModelRef) -> None:
    units = (5,) * 70
    async with running_pool() as harness:
        (traced,) = await harness.run(Trace(0, model, INPUT, units, 1))
        assert isinstance(traced, Traced)
        index = len(traced.digests) - 4
        (opened,) = await harness.run(OpenValues(0, model, INPUT, units, 1, index))
        assert isinstance(opened, Opened)
        # The digests that were traced are those of what is opened.
        for value in opened.values:
            assert value_digest(value.dtype, value.shape, value.data) == traced.digests[value.index]
        case = Case(
            workload="lm.generate",
            model=model.digest,
            profile=model.profile,
            input=INPUT,
            units=units,
            chunk=1,
            program=traced.program,
            values_total=len(traced.digests),
            index=index,
            claimed=traced.digests[index],
            values=opened.values,
            context=opened.context,
        )
        for claimed, finding in ((case.claimed, Finding.ACQUITTED), (bytes(32), Finding.GUILTY)):
            (judged,) = await harness.run(Judge(0, replace(case, claimed=claimed)))
            assert isinstance(judged, Judged)
            assert judged.finding is finding
            assert judged.detail.endswith("llama.final_norm")
        for work, detail in (
            (Trace(0, model, INPUT, units, 3), "chunk 3 does not exist"),
            (OpenValues(0, model, INPUT, units, 1, len(traced.digests)), "must be in [0, "),
        ):
            (failed,) = await harness.run(work)
            assert isinstance(failed, Failed)
            assert detail in failed.detail


async def test_refusals_name_the_rule_and_leave_the_worker_running(model: ModelRef) -> None:
    async with running_pool() as harness:
        await harness.run(Load(0, model))
        pid = harness.worker_pid()
        other = ModelRef(model.path, bytes(32), model.profile)
        nowhere = ModelRef(model.path + "/no", bytes(32), model.profile)
        for work, reason, detail in (
            (Generate(0, other, INPUT), "model-refused", "model digest"),
            (Load(0, nowhere), "model-refused", "config.json cannot be read"),
            (Generate(0, model, b"junk"), "input-refused", "not a LmInput"),
            (Generate(0, model, INPUT, (1, 2)), "input-refused", "prefix of 2 units"),
            (Recompute(0, model, INPUT, (1,), (9,)), "input-refused", "chunk 9 does not exist"),
        ):
            (failed,) = await harness.run(work)
            assert isinstance(failed, Failed)
            assert failed.reason == reason
            assert detail in failed.detail
        assert harness.worker_pid() == pid
        assert harness.deaths == []


async def test_a_run_can_be_cancelled_in_the_middle_and_while_it_waits(model: ModelRef) -> None:
    long = encode_input(LmInput(prompts=((1,),), max_tokens=319, seed=5, temperature_milli=900))
    async with running_pool() as harness:
        waiting: list[Event] = []

        def cancel(run: int, event: Event) -> None:
            if isinstance(event, Output) and event.first_unit == 0:
                behind = harness.pool.start_run(Load(0, model), waiting.append)
                assert harness.pool.waiting == 1
                harness.pool.cancel(behind)
                harness.pool.cancel(run)

        events = await harness.run(Generate(0, model, long), cancel)
        assert isinstance(events[-1], Finished)
        assert events[-1].reason == "cancelled"
        assert events[-1].units_total == len(joined(events)) < 319
        assert [event.reason for event in waiting] == ["cancelled"]  # type: ignore[union-attr]
        harness.pool.cancel(events[-1].run)
        assert harness.deaths == []


async def test_a_worker_that_is_killed_fails_its_run_and_is_replaced(model: ModelRef) -> None:
    async with running_pool() as harness:
        await harness.run(Load(0, model))
        pid = harness.worker_pid()
        events = await harness.run(
            Generate(0, model, INPUT),
            lambda _, event: os.kill(pid, signal.SIGKILL) if isinstance(event, Output) else None,
        )
        assert isinstance(events[-1], Failed)
        assert events[-1].reason == "worker-died"
        assert "was killed by SIGKILL" in events[-1].detail
        assert isinstance((await harness.run(Generate(0, model, INPUT)))[-1], Finished)
        assert harness.worker_pid() != pid
        assert len(harness.deaths) == 1


async def test_a_worker_that_hangs_when_cancelled_is_killed(model: ModelRef) -> None:
    async with running_pool() as harness:
        await harness.run(Load(0, model))
        pid = harness.worker_pid()

        def hang(run: int, event: Event) -> None:
            if isinstance(event, Output):
                os.kill(pid, signal.SIGSTOP)
                harness.pool.cancel(run)

        events = await harness.run(Generate(0, model, INPUT), hang)
        assert isinstance(events[-1], Failed)
        assert "did not stop within 2 s" in events[-1].detail


async def test_two_slots_work_at_once(model: ModelRef) -> None:
    async with running_pool(slots=2) as harness:
        seen: list[int] = []

        def watch(_: int, event: Event) -> None:
            if isinstance(event, Output) and event.first_unit == 0:
                seen.append(harness.pool.busy)

        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(harness.run, Generate(0, model, INPUT), watch)
        assert 2 in seen


async def test_a_worker_that_cannot_start_says_why() -> None:
    with pytest.raises(WorkerDied, match=r"exited with status|was killed by"):
        async with open_worker(WorkerSettings(memory_bytes_max=64 << 20)):
            pytest.fail("64 MiB cannot hold torch")


async def test_stray_prints_do_not_reach_the_frames_and_limits_hold() -> None:
    async with open_worker() as worker:
        process = psutil.Process(worker.pid)
        assert process.rlimit(psutil.RLIMIT_CORE)[1] == 0
        assert process.rlimit(psutil.RLIMIT_FSIZE)[1] == 0
        folder = f"/proc/{worker.pid}/fd"
        links = {int(name): os.readlink(f"{folder}/{name}") for name in os.listdir(folder)}
        pipes = [fd for fd, target in links.items() if target.startswith("pipe:")]
        # stdout is stderr's pipe; commands and events are on descriptors of their own.
        assert links[1] == links[2]
        assert links[0] == "/dev/null"
        assert len(pipes) == 4
        kept = {"PATH", "LD_LIBRARY_PATH", "LANG", "TMPDIR", "ATEN_CPU_CAPABILITY", "P2P_NODE_KERNELS"}
        assert set(process.environ()) <= kept


ORPHAN = """
import sys, time, trio
from p2p_node.workers import open_worker
async def main():
    async with open_worker() as worker:
        print(worker.pid, flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


def test_a_worker_does_not_outlive_a_node_that_is_killed() -> None:
    node = subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True)
    assert node.stdout is not None
    pid = int(node.stdout.readline())
    assert psutil.pid_exists(pid)
    node.kill()
    node.communicate()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the worker is still there"
        time.sleep(0.01)


def test_a_measurement_is_integers_within_reason(tmp_path: Path) -> None:
    import json

    command = [sys.executable, "-m", "workloads.measure", "--disk", str(tmp_path), "--threads", "1"]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    (line,) = result.stdout.splitlines()
    values = json.loads(line)
    for name in (
        "cores",
        "memory_bytes",
        "gemm_fp32_mflops",
        "gemm_bf16_mflops",
        "memory_mib_s",
        "disk_mib_s",
    ):
        assert type(values[name]) is int
        assert values[name] > 0
    assert isinstance(values["accelerators"], list)
    assert list(tmp_path.iterdir()) == []
