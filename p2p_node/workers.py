"""Worker processes under supervision: torch never runs in the process that talks to the network.

`open_worker` owns one process for as long as its block lasts. `WorkerPool` keeps some of them running, gives
each one run at a time, and restarts what dies; whoever started a run hears about it by a callback, and any
event but `Output` and `ChunkDone` is its last.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import psutil
import trio

from p2p_node.kernels import NO_KERNELS, VARIABLE
from workloads.frames import (
    Cancel,
    ChunkDone,
    Command,
    Event,
    Failed,
    FrameReader,
    MalformedFrame,
    Output,
    Ready,
    Work,
    encode_frame,
)

if TYPE_CHECKING:
    # libp2p brings stubs that hide trio's own types, and these that go with them.
    from trio_typing import TaskStatus

__all__ = ["Worker", "WorkerDied", "WorkerPool", "WorkerSettings", "open_worker"]

_READ_BYTES = 1 << 16
_EVENTS_WAITING_MAX = 256
_COMMANDS_WAITING_MAX = 256
_STDERR_TAIL_BYTES = 2_000
_CANCEL_GRACE_S = 2.0
_CLOSE_GRACE_S = 1.0
_RESTART_DELAY_S = 0.1
_RESTART_DELAY_S_MAX = 5.0
# The worker sets its own thread variables; of ours it needs no more than this.
_ENVIRONMENT_KEPT = ("PATH", "LD_LIBRARY_PATH", "LANG", "TMPDIR", "ATEN_CPU_CAPABILITY")


class WorkerDied(Exception):
    """The process ended, hung or talked nonsense; the message says which."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How a worker process is run.

    Args:
        threads: for torch; one leaves the other cores to other peers.
        memory_bytes_max: of the process; 0 for all that the machine has.
        models_max: models kept loaded.
        start_timeout_s: to import torch, on a loaded machine.
        kernels: compiled kernels to use (`p2p_node.kernels`); a worker never compiles any.
    """

    threads: int = 1
    memory_bytes_max: int = 0
    models_max: int = 8
    start_timeout_s: float = 120.0
    kernels: str = NO_KERNELS


class Worker:
    """One running worker process; made by `open_worker`.

    Attributes:
        ready: what the process said when it was.
    """

    def __init__(self, process: subprocess.Popen[bytes], scope: trio.CancelScope) -> None:
        self.ready: Ready
        self._process = process
        self._scope = scope
        self._death: str | None = None
        self._commands_in, self._commands_out = trio.open_memory_channel[Command](_COMMANDS_WAITING_MAX)
        self._events_in, self._events_out = trio.open_memory_channel[Event](_EVENTS_WAITING_MAX)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def death(self) -> str | None:
        """Why the process is being given up, or None."""
        return self._death

    def submit(self, command: Command) -> None:
        """Queue a command.

        Raises:
            trio.WouldBlock: the process takes none and the queue is full.
        """
        self._commands_in.send_nowait(command)

    async def receive(self) -> Event:
        """The next event, in order."""
        return await self._events_out.receive()

    def condemn(self, reason: str) -> None:
        """Give the process up: the block of `open_worker` is cancelled and raises `WorkerDied`."""
        if self._death is None:
            self._death = reason
        self._scope.cancel()

    async def _write(self, pipe: trio.lowlevel.FdStream) -> None:
        try:
            async for command in self._commands_out:
                await pipe.send_all(encode_frame(command))
        except trio.BrokenResourceError:
            # The reader sees the end of the other pipe and knows more.
            return

    async def _read(self, pipe: trio.lowlevel.FdStream, stderr: _Tail) -> None:
        reader = FrameReader(Event)
        try:
            while data := await pipe.receive_some(_READ_BYTES):
                for event in reader.feed(data):
                    await self._events_in.send(event)
        except MalformedFrame as error:
            self.condemn(f"sent what is not a frame: {error}")
            return
        with trio.move_on_after(_CLOSE_GRACE_S):
            await _exited(self._process)
            await stderr.ended.wait()
        self.condemn(_exit_text(self._process.returncode, stderr.last_line()))


class _Tail:
    """The end of what a process wrote to stderr."""

    def __init__(self) -> None:
        self.ended = trio.Event()
        self._data = b""

    async def read(self, pipe: trio.lowlevel.FdStream) -> None:
        while data := await pipe.receive_some(_READ_BYTES):
            self._data = (self._data + data)[-_STDERR_TAIL_BYTES:]
        self.ended.set()

    def last_line(self) -> str:
        lines = self._data.decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else ""


@asynccontextmanager
async def open_worker(settings: WorkerSettings | None = None) -> AsyncIterator[Worker]:
    """Run a worker process for the length of the block; it is gone within 2 s of the block's end.

    Raises:
        WorkerDied: the process did not start, or ended, hung or sent nonsense meanwhile.
    """
    settings = settings or WorkerSettings()
    process, commands, events, errors = _spawn(settings)
    stderr = _Tail()
    worker: Worker | None = None
    try:
        async with commands, events, errors, trio.open_nursery() as nursery:
            worker = Worker(process, nursery.cancel_scope)
            nursery.start_soon(worker._write, commands)
            nursery.start_soon(worker._read, events, stderr)
            nursery.start_soon(stderr.read, errors)
            first: Event | None = None
            with trio.move_on_after(settings.start_timeout_s):
                first = await worker.receive()
            if isinstance(first, Ready):
                worker.ready = first
                yield worker
            else:
                worker.condemn(f"was not ready within {settings.start_timeout_s:g} s")
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await _end(process)
    if worker.death is not None:
        raise WorkerDied(f"worker {process.pid} {worker.death}")


@dataclass
class _Run:
    """A run that waits or is being done."""

    work: Work
    on_event: Callable[[Event], None]
    worker: Worker | None = None
    # Cancelling gives the worker a moment to stop by itself; its scope ends when that is over.
    patience: trio.CancelScope = field(default_factory=trio.CancelScope)


class WorkerPool:
    """Some worker processes and the runs that wait for them, first come, first served.

    Args:
        slots: worker processes, so runs at once.
        settings: of each process.
        on_death: told why, each time a process is lost; for logs.
    """

    def __init__(
        self,
        slots: int = 1,
        settings: WorkerSettings | None = None,
        on_death: Callable[[str], None] = lambda _: None,
    ) -> None:
        if slots < 1:
            raise ValueError(f"slots must be at least 1, got {slots}")
        self._slots = slots
        self._settings = settings or WorkerSettings()
        self._on_death = on_death
        self._next_run = 1
        self._runs: dict[int, _Run] = {}
        self._waiting: deque[_Run] = deque()
        self._idle = trio.lowlevel.ParkingLot()

    @property
    def slots(self) -> int:
        """Runs that can be done at once."""
        return self._slots

    @property
    def busy(self) -> int:
        """Runs being done."""
        return len(self._runs) - len(self._waiting)

    @property
    def waiting(self) -> int:
        """Runs that wait for a slot."""
        return len(self._waiting)

    def start_run(self, work: Work, on_event: Callable[[Event], None]) -> int:
        """Queue a run.

        Args:
            work: its ``run`` is replaced by the number returned.
            on_event: called in the pool's task with each event, the last of which is neither `Output` nor
                `ChunkDone`. Must not raise.

        Returns:
            The run's number.
        """
        number = self._next_run
        self._next_run += 1
        run = _Run(msgspec.structs.replace(work, run=number), on_event)
        self._runs[number] = run
        self._waiting.append(run)
        self._idle.unpark()
        return number

    def cancel(self, number: int) -> None:
        """Stop a run; one that is over is left alone.

        A run that waits fails with reason ``cancelled`` at once. A worker that does not stop within 2 s is
        killed.
        """
        run = self._runs.get(number)
        if run is None:
            return
        if run.worker is None:
            self._waiting.remove(run)
            self._end(run, Failed(number, "cancelled", "cancelled while waiting for a worker"))
            return
        if math.isinf(run.patience.deadline):
            run.patience.deadline = trio.current_time() + _CANCEL_GRACE_S
            run.worker.submit(Cancel(number))

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the workers running until cancelled; reports started once all are ready for the first time."""
        async with trio.open_nursery() as nursery:
            for _ in range(self._slots):
                await nursery.start(self._keep_slot)
            task_status.started()

    async def _keep_slot(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        delay_s = _RESTART_DELAY_S
        started = False
        while True:
            try:
                async with open_worker(self._settings) as worker:
                    if not started:
                        started = True
                        task_status.started()
                    while True:
                        await self._do_next(worker)
                        delay_s = _RESTART_DELAY_S
            except WorkerDied as error:
                self._on_death(str(error))
                self._fail_runs_of_the_dead(str(error))
                if not started:
                    # Broken from the start, so trying again would only hide it.
                    raise
            await trio.sleep(delay_s)
            delay_s = min(2 * delay_s, _RESTART_DELAY_S_MAX)

    async def _do_next(self, worker: Worker) -> None:
        while not self._waiting:
            await self._idle.park()
        run = self._waiting.popleft()
        run.worker = worker
        worker.submit(run.work)
        with run.patience:
            while True:
                event = await worker.receive()
                if isinstance(event, Ready) or event.run != run.work.run:
                    worker.condemn(f"sent {type(event).__name__} of no run it was given")
                    await trio.lowlevel.checkpoint()
                elif isinstance(event, Output | ChunkDone):
                    run.on_event(event)
                else:
                    self._end(run, event)
                    return
        worker.condemn(f"did not stop within {_CANCEL_GRACE_S:g} s of being told")
        await trio.lowlevel.checkpoint()

    def _fail_runs_of_the_dead(self, reason: str) -> None:
        for number, run in list(self._runs.items()):
            if run.worker is not None and run.worker.death is not None:
                self._end(run, Failed(number, "worker-died", reason))

    def _end(self, run: _Run, event: Event) -> None:
        del self._runs[run.work.run]
        run.on_event(event)


def _spawn(
    settings: WorkerSettings,
) -> tuple[subprocess.Popen[bytes], trio.lowlevel.FdStream, trio.lowlevel.FdStream, trio.lowlevel.FdStream]:
    """Start the process; returns it with our ends of its stdin, stdout and stderr."""
    arguments = {
        "--parent": os.getpid(),
        "--threads": settings.threads,
        "--memory-bytes-max": settings.memory_bytes_max or psutil.virtual_memory().total,
        "--models-max": settings.models_max,
    }
    options = [str(part) for pair in arguments.items() for part in pair]
    environment = {name: os.environ[name] for name in _ENVIRONMENT_KEPT if name in os.environ}
    environment[VARIABLE] = settings.kernels
    commands, events, errors = os.pipe(), os.pipe(), os.pipe()
    theirs = (commands[0], events[1], errors[1])
    ours = (commands[1], events[0], errors[0])
    # On this thread, not by trio.open_process: Linux sends the parent-death signal when the thread that
    # forked ends, and trio's helper threads come and go.
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-I", "-m", "workloads.worker", *options],
        stdin=theirs[0],
        stdout=theirs[1],
        stderr=theirs[2],
        env=environment,
        # A terminal's Ctrl-C is the node's to handle: it drains first.
        start_new_session=True,
    )
    for descriptor in theirs:
        os.close(descriptor)
    streams = [trio.lowlevel.FdStream(descriptor) for descriptor in ours]
    return process, streams[0], streams[1], streams[2]


async def _exited(process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:  # noqa: ASYNC110 - a child's end sets no event
        await trio.sleep(0.005)


async def _end(process: subprocess.Popen[bytes]) -> None:
    """The pipes are closed, which tells it to exit; kill it if it doesn't."""
    with trio.move_on_after(_CLOSE_GRACE_S):
        await _exited(process)
    if process.poll() is None:
        process.kill()
        await _exited(process)


def _exit_text(returncode: int | None, last_line: str) -> str:
    if returncode is None:
        text = "closed its pipe"
    elif returncode < 0:
        text = f"was killed by {signal.Signals(-returncode).name}"
    else:
        text = f"exited with status {returncode}"
    return f"{text}: {last_line}" if last_line else text
