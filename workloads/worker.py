"""The process that runs models: ``python -m workloads.worker``.

It reads commands (`workloads.frames`) on a thread, so that a run can be cancelled and a vanished node noticed
in the middle of it, and does one run at a time on the main thread, first come, first served. Models stay
loaded between runs. Nothing a run does ends the process; what ends it is the node.
"""

from __future__ import annotations

import argparse
import os
import queue
import sys
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from protocols.limits import OUTPUT_UNITS_PER_MESSAGE_MAX
from workloads import lockdown, numeric_class
from workloads.errors import InputRefused, ModelRefused, NumericsRefused, ProgramRefused, WorkloadRefused
from workloads.frames import (
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
    Ready,
    Recompute,
    Recomputed,
    Shutdown,
    Trace,
    Traced,
    Work,
    encode_frame,
)
from workloads.registry import open_workload
from workloads.workload import EXACT_PROFILES

if TYPE_CHECKING:
    from workloads.workload import Workload

__all__ = ["main"]

_READ_BYTES = 1 << 16
# Each frame costs both nodes milliseconds of a core; text that grows 20 times a second still looks steady.
_COALESCE_S = 0.05
_DETAIL_CHARACTERS_MAX = 240
_REASONS: dict[type[WorkloadRefused], str] = {
    ModelRefused: "model-refused",
    InputRefused: "input-refused",
    NumericsRefused: "numerics-refused",
    ProgramRefused: "program-refused",
}


class _ModelKey(NamedTuple):
    workload: str
    digest: bytes
    profile: str
    variant: str


class _Inbox:
    """Commands as they arrive on the pipe, and which runs were cancelled."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._work: queue.SimpleQueue[Work] = queue.SimpleQueue()
        self._cancelled: set[int] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._read, daemon=True, name="commands").start()

    def next(self) -> Work:
        """Wait for the next command that is work."""
        return self._work.get()

    def is_cancelled(self, run: int) -> bool:
        return run in self._cancelled

    def forget(self, run: int) -> None:
        """The run is over: its number means nothing any more."""
        with self._lock:
            self._cancelled.discard(run)

    def _read(self) -> None:
        reader = FrameReader(Command)
        try:
            while data := os.read(self._descriptor, _READ_BYTES):
                for command in reader.feed(data):
                    self._take(command)
        except MalformedFrame as error:
            print(f"worker: {error}", file=sys.stderr, flush=True)
            os._exit(2)
        # The node is gone, or no longer wants us: a run in progress has no reader.
        os._exit(0)

    def _take(self, command: Command) -> None:
        if isinstance(command, Shutdown):
            os._exit(0)
        if isinstance(command, Cancel):
            with self._lock:
                self._cancelled.add(command.run)
        else:
            self._work.put(command)


class _Outbox:
    """Events to the node."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def send(self, event: Event) -> None:
        view = memoryview(encode_frame(event))
        while view:
            view = view[os.write(self._descriptor, view) :]


class _Stream:
    """Coalesces one run's output: the first token leaves at once, later ones together."""

    def __init__(self, outbox: _Outbox, run: int) -> None:
        self._outbox = outbox
        self._run = run
        self._first = 0
        self._units: list[int] = []
        self._flushed_at = float("-inf")

    def add(self, first_unit: int, units: list[int]) -> None:
        if not self._units:
            self._first = first_unit
        self._units += units
        if time.monotonic() - self._flushed_at >= _COALESCE_S:
            self.flush()

    def chunk(self, number: int, digest: bytes) -> None:
        self.flush()
        self._outbox.send(ChunkDone(self._run, number, digest))

    def flush(self) -> None:
        for start in range(0, len(self._units), OUTPUT_UNITS_PER_MESSAGE_MAX):
            units = tuple(self._units[start : start + OUTPUT_UNITS_PER_MESSAGE_MAX])
            self._outbox.send(Output(self._run, self._first + start, units))
        self._units.clear()
        self._flushed_at = time.monotonic()


class _Models:
    """Loaded models, the least recently used dropped first.

    Args:
        count_max: models kept.
        exact_refusal: why this machine can't be judged by the exact profiles, or nothing.
    """

    def __init__(self, count_max: int, exact_refusal: str) -> None:
        self._count_max = count_max
        self.exact_refusal = exact_refusal
        self._loaded: OrderedDict[_ModelKey, Workload] = OrderedDict()

    def get(self, model: ModelRef) -> tuple[Workload, int]:
        """The workload with its model, and the milliseconds it took to load it, 0 if it was there."""
        key = _ModelKey(model.workload, model.digest, model.profile, model.variant)
        workload = self._loaded.get(key)
        if workload is not None:
            self._loaded.move_to_end(key)
            return workload, 0
        started = time.monotonic()
        while len(self._loaded) >= self._count_max:
            self._loaded.popitem(last=False)
        workload = open_workload(
            model.workload,
            Path(model.path),
            model.profile,
            model.variant or None,
            expected_digest=model.digest,
        )
        self._loaded[key] = workload
        return workload, max(1, round((time.monotonic() - started) * 1000))


def _perform(work: Work, models: _Models, inbox: _Inbox, outbox: _Outbox) -> None:
    from workloads.program.disputes import open_chunk, trace_chunk

    if inbox.is_cancelled(work.run) and not isinstance(work, Generate):
        outbox.send(Failed(work.run, "cancelled", "cancelled before it began"))
        return
    # A dispute is about exact operators, whoever computed them.
    if models.exact_refusal and (isinstance(work, Judge) or work.model.profile in EXACT_PROFILES):
        raise NumericsRefused(models.exact_refusal)
    if isinstance(work, Judge):
        _judge(work, outbox)
        return
    workload, load_ms = models.get(work.model)
    started = time.process_time_ns()
    match work:
        case Load():
            outbox.send(Loaded(work.run, work.model.digest, load_ms))
        case Generate():
            stream = _Stream(outbox, work.run)
            outcome = workload.generate(
                work.input,
                work.prefix,
                stream.add,
                stream.chunk,
                lambda: inbox.is_cancelled(work.run),
            )
            stream.flush()
            outbox.send(Finished(work.run, outcome.units_total, outcome.reason, _cpu_us_since(started)))
        case Recompute():
            digests = workload.recompute(work.input, work.units, work.chunks)
            outbox.send(Recomputed(work.run, tuple(sorted(digests.items())), _cpu_us_since(started)))
        case Trace():
            program, traced = trace_chunk(workload, work.input, work.units, work.chunk)
            outbox.send(Traced(work.run, program, traced, _cpu_us_since(started)))
        case OpenValues():
            values, context = open_chunk(workload, work.input, work.units, work.chunk, work.index)
            outbox.send(Opened(work.run, values, context, _cpu_us_since(started)))


def _judge(work: Judge, outbox: _Outbox) -> None:
    from workloads.program.disputes import judge_case

    started = time.process_time_ns()
    finding, detail = judge_case(work.case)
    outbox.send(Judged(work.run, finding, detail[:_DETAIL_CHARACTERS_MAX], _cpu_us_since(started)))


def _cpu_us_since(started_ns: int) -> int:
    return (time.process_time_ns() - started_ns) // 1000


def _serve(inbox: _Inbox, outbox: _Outbox, models: _Models) -> None:
    while True:
        work = inbox.next()
        try:
            _perform(work, models, inbox, outbox)
        except WorkloadRefused as error:
            outbox.send(Failed(work.run, _REASONS[type(error)], str(error)[:_DETAIL_CHARACTERS_MAX]))
        except MemoryError as error:
            outbox.send(Failed(work.run, "out-of-memory", str(error)[:_DETAIL_CHARACTERS_MAX]))
        except BrokenPipeError:
            os._exit(0)
        except Exception as error:  # one run's bug must not take the others' models down
            detail = f"{type(error).__name__}: {error}"
            print(f"worker: run {work.run}: {detail}", file=sys.stderr, flush=True)
            outbox.send(Failed(work.run, "crashed", detail[:_DETAIL_CHARACTERS_MAX]))
        finally:
            inbox.forget(work.run)


def main() -> None:
    """Serve commands from stdin until it ends."""
    parser = argparse.ArgumentParser(prog="workloads.worker", description="Run models for a p2p-node.")
    parser.add_argument("--parent", type=int, required=True, help="process id of the node")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-bytes-max", type=int, required=True, help="private memory")
    parser.add_argument("--models-max", type=int, default=8, help="models kept loaded")
    arguments = parser.parse_args()

    started = time.monotonic()
    lockdown.die_with_parent(arguments.parent)
    commands, events = lockdown.protect_pipes()
    for variable in lockdown.THREAD_VARIABLES:
        os.environ[variable] = str(arguments.threads)
    numeric_class.pin()
    lockdown.apply_limits(arguments.memory_bytes_max)
    # Read from the start, so that a node that dies while torch is being imported leaves nobody behind.
    inbox, outbox = _Inbox(commands), _Outbox(events)

    import torch

    import workloads.lm.workload  # noqa: F401
    from workloads.llama.selfcheck import check_arithmetic

    torch.set_num_threads(arguments.threads)
    exact_refusal = ""
    try:
        check_arithmetic()
    except NumericsRefused as error:
        exact_refusal = str(error)
        print(f"worker: {error}", file=sys.stderr, flush=True)
    outbox.send(Ready(os.getpid(), str(torch.__version__), round((time.monotonic() - started) * 1000)))
    _serve(inbox, outbox, _Models(arguments.models_max, exact_refusal))


if __name__ == "__main__":
    main()
