"""The process that runs models: forked by `workloads.zygote`, or ``python -m workloads.worker`` by itself.

It locks itself in (`workloads.sandbox`), then reads commands (`workloads.frames`) on a thread, so that a run
can be cancelled and a vanished node noticed in the middle of it, and does one run at a time on the main
thread, first come, first served. Models stay loaded between runs. Nothing an honest run does ends the
process; what ends it is the node.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import queue
import sys
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from protocols.limits import OUTPUT_UNITS_PER_MESSAGE_MAX
from workloads import devices, lockdown
from workloads.blobpipe import PipedBlobs
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
    Phase,
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
from workloads.sandbox import LayerReport, Policy, lock_down, namespaces
from workloads.sandbox.landlock import interpreter_paths
from workloads.workload import EXACT_PROFILES

if TYPE_CHECKING:
    from workloads.workload import Workload

__all__ = ["main", "run"]

_READ_BYTES = 1 << 16
# Each frame costs both nodes milliseconds of a core; text that grows 20 times a second still looks steady.
_COALESCE_S = 0.05
_DETAIL_CHARACTERS_MAX = 240
# What torch and Python say in words only: no room for a tensor, or for a thread's stack.
_OUT_OF_MEMORY = ("can't allocate memory", "CUDA out of memory", "can't start new thread")
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


class _Memory:
    """How much memory this process has in hand. Opened before the lock-down, which closes ``/proc``."""

    def __init__(self) -> None:
        self._descriptor = -1
        with contextlib.suppress(OSError):
            self._descriptor = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)

    def resident_bytes(self) -> int:
        """Resident memory; 0 where the system doesn't say."""
        if self._descriptor < 0:
            return 0
        return int(os.pread(self._descriptor, 256, 0).split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _key_of(model: ModelRef) -> _ModelKey:
    return _ModelKey(model.workload, model.digest, model.profile, model.variant)


class _Models:
    """Loaded models, the least recently used dropped first.

    Args:
        count_max: models kept.
        memory_bytes_max: of the process; what is kept takes at most half of it, the work has the rest.
        memory: of the process.
        blobs: what workloads read and write.
        exact_refusal: why this machine can't be judged by the exact profiles, or nothing.
    """

    def __init__(
        self,
        count_max: int,
        memory_bytes_max: int,
        memory: _Memory,
        blobs: PipedBlobs,
        exact_refusal: str,
    ) -> None:
        self._count_max = count_max
        self._bytes_max = memory_bytes_max // 2
        self._memory = memory
        self._blobs = blobs
        self.exact_refusal = exact_refusal
        self._loaded: OrderedDict[_ModelKey, tuple[Workload, int]] = OrderedDict()

    def has(self, model: ModelRef) -> bool:
        """Whether a model needs no loading."""
        return _key_of(model) in self._loaded

    def take_blobs(self, work: Load | Generate | Recompute | Trace | OpenValues) -> None:
        """Let workloads read the node's blobs, and leave some where a run's output is kept."""
        is_kept = isinstance(work, Generate)
        self._blobs.begin(work.run if is_kept else None, Path(work.model.blobs) if work.model.blobs else None)

    def get(self, model: ModelRef) -> tuple[Workload, int]:
        """The workload with its model, and the milliseconds it took to load it, 0 if it was there."""
        key = _key_of(model)
        loaded = self._loaded.get(key)
        if loaded is not None:
            self._loaded.move_to_end(key)
            return loaded[0], 0
        started = time.monotonic()
        while len(self._loaded) >= self._count_max:
            self._loaded.popitem(last=False)
        before = self._memory.resident_bytes()
        try:
            workload = self._open(model)
        except Exception as error:
            # By itself it may fit: what is kept is only kept to save time.
            if not self._loaded or _fault_of(error)[0] != "out-of-memory":
                raise
            error.__traceback__ = None
            self.drop_all()
            before = self._memory.resident_bytes()
            workload = self._open(model)
        self._loaded[key] = workload, max(0, self._memory.resident_bytes() - before)
        # The newest stays, however large: its run is next.
        while len(self._loaded) > 1 and sum(size for _, size in self._loaded.values()) > self._bytes_max:
            self._loaded.popitem(last=False)
        return workload, max(1, round((time.monotonic() - started) * 1000))

    def drop_all(self) -> None:
        """Keep no model: a run that found too little memory leaves all of it to the next."""
        self._loaded.clear()

    def _open(self, model: ModelRef) -> Workload:
        return open_workload(
            model.workload,
            Path(model.path),
            model.profile,
            model.variant or None,
            expected_digest=model.digest,
            blobs=self._blobs,
        )


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
    is_loading = isinstance(work, Generate) and not models.has(work.model)
    if is_loading:
        outbox.send(Phase(work.run, "loading"))
    models.take_blobs(work)
    workload, load_ms = models.get(work.model)
    if is_loading:
        outbox.send(Phase(work.run, "running"))
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
        except BrokenPipeError:
            os._exit(0)
        except Exception as error:  # one run's bug must not take the others' models down
            reason, detail = _fault_of(error)
            if reason == "out-of-memory":
                models.drop_all()
            print(f"worker: run {work.run}: {reason}: {detail}", file=sys.stderr, flush=True)
            outbox.send(Failed(work.run, reason, detail[:_DETAIL_CHARACTERS_MAX]))
        finally:
            inbox.forget(work.run)


def run(
    *,
    policy: Policy,
    entered: LayerReport,
    threads: int,
    models_max: int,
    exact_refusal: str,
    device: str = devices.CPU,
    device_memory_percent: int = 100,
) -> None:
    """Lock this process in and serve commands from descriptor 0 until they end. It has one thread so far.

    Args:
        policy: what it may still do.
        entered: the namespaces that it lives in.
        threads: for torch.
        models_max: models kept loaded.
        exact_refusal: why this machine can't be judged by the exact profiles, or nothing.
        device: torch's name of what it may compute on beside the CPU.
        device_memory_percent: of that device's memory, what it may take.
    """
    import torch

    started = time.monotonic()
    commands, events = lockdown.protect_pipes()
    memory = _Memory()
    layers = lock_down(policy, entered)
    inbox, outbox = _Inbox(commands), _Outbox(events)
    torch.set_num_threads(threads)
    devices.cap_memory(device, device_memory_percent / 100)
    blobs = PipedBlobs(outbox.send)
    models = _Models(models_max, policy.memory_bytes_max, memory, blobs, exact_refusal)
    start_ms = round((time.monotonic() - started) * 1000)
    outbox.send(Ready(os.getpid(), str(torch.__version__), start_ms, layers))
    _serve(inbox, outbox, models)


def _fault_of(error: Exception) -> tuple[str, str]:
    """Why a run failed that nothing refused: a reason of `Failed`, and what happened."""
    detail = f"{type(error).__name__}: {error}"
    is_memory = isinstance(error, MemoryError) or any(text in detail for text in _OUT_OF_MEMORY)
    if is_memory or getattr(error, "errno", None) == errno.ENOMEM:
        return "out-of-memory", detail
    if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EFBIG:
        return "not-permitted", detail
    return "crashed", detail


def main() -> None:
    """Serve commands from stdin until it ends, without a zygote: where forking after imports isn't safe."""
    parser = argparse.ArgumentParser(prog="workloads.worker", description="Run models for a p2p-node.")
    parser.add_argument("--parent", type=int, required=True, help="process id of the node")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-bytes-max", type=int, required=True, help="private memory")
    parser.add_argument("--models-max", type=int, default=8, help="models kept loaded")
    parser.add_argument("--readable", type=Path, action="append", default=[], help="models, blobs")
    arguments = parser.parse_args()

    from workloads.zygote import import_everything

    lockdown.die_with_parent(arguments.parent)
    lockdown.pin_numerics()
    entered = namespaces.enter_alone()
    run(
        policy=Policy(arguments.memory_bytes_max, (*interpreter_paths(), *arguments.readable)),
        entered=entered,
        threads=arguments.threads,
        models_max=arguments.models_max,
        exact_refusal=import_everything(),
    )


if __name__ == "__main__":
    main()
