"""Worker processes under supervision: torch never runs in the process that talks to the network.

`open_worker` owns one process for as long as its block lasts. `WorkerPool` keeps some of them running, gives
each one run at a time, and restarts what dies; whoever started a run hears about it by a callback, and any
event but those of `workloads.frames.GOING_ON` is its last.
"""

from __future__ import annotations

import math
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec
import psutil
import trio

import workloads
from p2p_node.zygote import Process, WorkerDied, WorkerSettings, Zygote
from protocols.limits import OFFER_LIFETIME_MS_MAX, UNITS_MAX
from workloads.frames import (
    GOING_ON,
    Cancel,
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
from workloads.sandbox import LayerReport

if TYPE_CHECKING:
    # libp2p brings stubs that hide trio's own types, and these that go with them.
    from trio_typing import TaskStatus

__all__ = [
    "RunLimits",
    "Worker",
    "WorkerDied",
    "WorkerPool",
    "WorkerSettings",
    "Zygote",
    "open_worker",
    "readable_places",
]

_PACKAGE = Path(workloads.__file__).parent
_READ_BYTES = 1 << 16
_EVENTS_WAITING_MAX = 256
_COMMANDS_WAITING_MAX = 256
_STDERR_TAIL_BYTES = 2_000
_CANCEL_GRACE_S = 2.0
_CLOSE_GRACE_S = 1.0
_LOOK_S = 1.0
_RESTART_DELAY_S = 0.1
_RESTART_DELAY_S_MAX = 5.0


@dataclass(frozen=True, slots=True)
class RunLimits:
    """What one run may take before its worker is killed, whatever the run thinks of it.

    Args:
        wall_s: from its start, waiting for a worker left out.
        cpu_s: processor time, of all its threads; looked at every second.
        units_max: output units.
    """

    wall_s: float = OFFER_LIFETIME_MS_MAX / 1_000
    cpu_s: float = OFFER_LIFETIME_MS_MAX / 1_000
    units_max: int = UNITS_MAX


class HasPath(Protocol):
    """A model that lies somewhere."""

    @property
    def path(self) -> Path:
        """Its directory."""


def readable_places(models: Iterable[HasPath]) -> tuple[Path, ...]:
    """What workers must be able to read to run these models."""
    return tuple(dict.fromkeys(place for model in models for place in _model_places(model.path)))


class Worker:
    """One running worker process; made by `open_worker`.

    Attributes:
        ready: what the process said when it was.
        fault: the reason that a run in its hands fails with when it dies.
        readable: directories of models and blobs that it may read.
    """

    def __init__(self, process: Process, scope: trio.CancelScope, readable: tuple[Path, ...]) -> None:
        self.ready: Ready
        self.fault = "worker-died"
        self.readable = readable
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

    def condemn(self, reason: str, fault: str = "worker-died") -> None:
        """Give the process up: the block of `open_worker` is cancelled and raises `WorkerDied`."""
        if self._death is None:
            self._death, self.fault = reason, fault
            # Not told to end and waited for: it has had its time.
            self._process.kill()
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
        oom_kills = _oom_kills()
        try:
            while data := await pipe.receive_some(_READ_BYTES):
                for event in reader.feed(data):
                    await self._events_in.send(event)
        except MalformedFrame as error:
            self.condemn(f"sent what is not a frame: {error}")
            return
        with trio.move_on_after(_CLOSE_GRACE_S):
            await self._process.exited()
            await stderr.ended.wait()
        returncode = self._process.returncode
        if returncode == -signal.SIGKILL and _oom_kills() > oom_kills:
            self.condemn("was killed because the machine is out of memory", "out-of-memory")
        self.condemn(_exit_text(returncode, stderr.last_line()))


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
async def open_worker(
    settings: WorkerSettings | None = None, zygote: Zygote | None = None
) -> AsyncIterator[Worker]:
    """Run a worker process for the length of the block; it is gone within 2 s of the block's end.

    Args:
        settings: of the process.
        zygote: that forks it; one of its own if None.

    Raises:
        WorkerDied: the process did not start, or ended, hung or sent nonsense meanwhile.
    """
    settings = settings or WorkerSettings()
    if zygote is not None:
        async with _forked_worker(settings, zygote) as worker:
            yield worker
        return
    zygote = Zygote(settings)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(zygote.run)
            async with _forked_worker(settings, zygote) as worker:
                yield worker
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        deaths, others = group.split(WorkerDied)
        if deaths is None or others is not None:
            raise
        raise WorkerDied(str(_first_leaf(deaths))) from group


@asynccontextmanager
async def _forked_worker(settings: WorkerSettings, zygote: Zygote) -> AsyncIterator[Worker]:
    process, commands, events, errors = await zygote.fork(settings.memory_bytes(), settings.readable)
    stderr = _Tail()
    worker: Worker | None = None
    try:
        async with commands, events, errors, trio.open_nursery() as nursery:
            worker = Worker(process, nursery.cancel_scope, settings.readable)
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
            await process.end(_CLOSE_GRACE_S)
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
        zygote: that forks them, shared with other pools and run by somebody else; one of its own if None.
        limits: of each run.
    """

    def __init__(
        self,
        slots: int = 1,
        settings: WorkerSettings | None = None,
        on_death: Callable[[str], None] = lambda _: None,
        *,
        zygote: Zygote | None = None,
        limits: RunLimits | None = None,
    ) -> None:
        if slots < 1:
            raise ValueError(f"slots must be at least 1, got {slots}")
        self._slots = slots
        self._settings = settings or (zygote.settings if zygote else WorkerSettings())
        self._on_death = on_death
        self._zygote = zygote
        self._limits = limits or RunLimits()
        self._readable = self._settings.readable
        self.layers: tuple[LayerReport, ...] = ()
        """What holds a worker in, once one has been ready."""
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
            on_event: called in the pool's task with each event, the last of which is none of `GOING_ON`. Must
                not raise.

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
            zygote = self._zygote
            if zygote is None:
                zygote = Zygote(self._settings, self._on_death)
                await nursery.start(zygote.run)
            for _ in range(self._slots):
                await nursery.start(self._keep_slot, zygote)
            task_status.started()

    async def _keep_slot(
        self, zygote: Zygote, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        delay_s = _RESTART_DELAY_S
        started = False
        while True:
            try:
                settings = replace(self._settings, readable=self._readable)
                async with open_worker(settings, zygote) as worker:
                    self.layers = worker.ready.layers
                    if not started:
                        started = True
                        task_status.started()
                    while await self._do_next(worker):
                        delay_s = _RESTART_DELAY_S
                    continue
            except WorkerDied as error:
                self._on_death(str(error))
                self._fail_runs_of_the_dead(str(error))
                if not started:
                    # Broken from the start, so trying again would only hide it.
                    raise
            await trio.sleep(delay_s)
            delay_s = min(2 * delay_s, _RESTART_DELAY_S_MAX)

    async def _do_next(self, worker: Worker) -> bool:
        """Do one run; False if the next needs another worker.

        This one may not read its model, or the sandbox had to stop what it ran: it isn't what it was.
        """
        while not self._waiting:
            await self._idle.park()
        needed = _directories(self._waiting[0].work)
        if not all(_is_beneath(path, worker.readable) for path in needed):
            self._readable = tuple(dict.fromkeys((*self._readable, *needed)))
            return False
        run = self._waiting.popleft()
        run.worker = worker
        worker.submit(run.work)
        ending: Event | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, worker)
            with run.patience:
                ending = await self._follow(run, worker)
            if run.work.run in self._runs:
                worker.condemn(f"did not stop within {_CANCEL_GRACE_S:g} s of being told")
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        return not (isinstance(ending, Failed) and ending.reason == "not-permitted")

    async def _follow(self, run: _Run, worker: Worker) -> Event:
        """Pass on what a worker says of a run, to its end, and return that."""
        units = 0
        while True:
            event = await worker.receive()
            if isinstance(event, Ready) or event.run != run.work.run:
                worker.condemn(f"sent {type(event).__name__} of no run it was given")
                await trio.lowlevel.checkpoint()
            elif isinstance(event, GOING_ON):
                # A chunk has a unit at least; what is said twice counts twice.
                units += len(event.units) if isinstance(event, Output) else 1
                if units > 2 * self._limits.units_max:
                    worker.condemn(f"gave more than {self._limits.units_max} units", "output-limit")
                    await trio.lowlevel.checkpoint()
                run.on_event(event)
            else:
                self._end(run, event)
                return event

    async def _watch(self, worker: Worker) -> None:
        """Kill the worker when its run has had its time."""
        limits, deadline = self._limits, trio.current_time() + self._limits.wall_s
        cpu_s_before = _cpu_s(worker.pid)
        while (left_s := deadline - trio.current_time()) > 0:
            await trio.sleep(min(left_s, _LOOK_S))
            if _cpu_s(worker.pid) - cpu_s_before > limits.cpu_s:
                worker.condemn(f"took more than {limits.cpu_s:g} s of processor time", "deadline")
        worker.condemn(f"took more than {limits.wall_s:g} s", "deadline")

    def _fail_runs_of_the_dead(self, reason: str) -> None:
        for number, run in list(self._runs.items()):
            if run.worker is not None and run.worker.death is not None:
                self._end(run, Failed(number, run.worker.fault, reason))

    def _end(self, run: _Run, event: Event) -> None:
        del self._runs[run.work.run]
        run.on_event(event)


def _first_leaf(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def _directories(work: Work) -> list[Path]:
    """What a worker must be able to read for this."""
    model = getattr(work, "model", None)
    if model is None:
        return []
    return [*_model_places(Path(model.path)), *([Path(model.blobs)] if model.blobs else [])]


def _model_places(directory: Path) -> list[Path]:
    # The path of a model without weights is the current directory, whatever that is.
    if directory == Path():
        return []
    # Downloaders keep files elsewhere and link to them.
    links = directory.iterdir() if directory.is_dir() else ()
    return [directory, *(path.resolve() for path in links if path.is_symlink())]


def _is_beneath(path: Path, readable: tuple[Path, ...]) -> bool:
    return any(path.is_relative_to(place) for place in (_PACKAGE, *readable))


def _cpu_s(pid: int) -> float:
    """Processor time that a process has taken; 0 for one that is gone."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def _oom_kills() -> int:
    """How many processes the kernel has killed for memory since it started; 0 where it doesn't say."""
    try:
        counters = Path("/proc/vmstat").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in counters.splitlines() if line.startswith("oom_kill ")), 0)


def _exit_text(returncode: int | None, last_line: str) -> str:
    if returncode is None:
        text = "closed its pipe"
    elif returncode < 0:
        text = f"was killed by {signal.Signals(-returncode).name}"
    else:
        text = f"exited with status {returncode}"
    return f"{text}: {last_line}" if last_line else text
