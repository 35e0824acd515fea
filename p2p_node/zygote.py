"""The node's side of the zygote: the process that imports torch once, and from which workers are forked.

A node has one, whatever the number of its workers. When it dies its workers die with it, and it is started
again. Where there is nothing to fork from (outside Linux) each worker is a process that imports everything.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import psutil
import trio

from p2p_node.kernels import NO_KERNELS, VARIABLE
from workloads.devices import CPU
from workloads.sandbox import LAYERS
from workloads.zygote import (
    DESCRIPTORS_PER_WORKER,
    MESSAGE_BYTES_MAX,
    CannotFork,
    Forked,
    ForkWorker,
    WorkerEnded,
    ZygoteReady,
    decode_news,
    message_of,
)

if TYPE_CHECKING:
    # libp2p brings stubs that hide trio's own types, and these that go with them.
    from trio_typing import TaskStatus

__all__ = ["CAN_FORK", "Process", "WorkerDied", "WorkerSettings", "Zygote", "spawn_alone"]

CAN_FORK = sys.platform == "linux"
_RESTART_DELAY_S = 0.1
_RESTART_DELAY_S_MAX = 5.0
_CLOSE_GRACE_S = 1.0
_POLL_S = 0.005
# The zygote sets its own thread variables; of ours it and its workers need no more than this.
_ENVIRONMENT_KEPT = ("PATH", "LD_LIBRARY_PATH", "LANG", "TMPDIR", "ATEN_CPU_CAPABILITY")

_Streams = tuple[trio.lowlevel.FdStream, trio.lowlevel.FdStream, trio.lowlevel.FdStream]


class WorkerDied(Exception):
    """The process ended, hung or talked nonsense; the message says which."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How worker processes are run.

    Args:
        threads: for torch; one leaves the other cores to other peers.
        memory_bytes_max: of each process; 0 for all that the machine has.
        models_max: models kept loaded by each.
        start_timeout_s: to import torch, on a loaded machine.
        kernels: compiled kernels to use (`p2p_node.kernels`); a worker never compiles any.
        readable: where models and blobs lie; workers read nothing else of the owner's.
        device: torch's name of an accelerator that workers may use; the CPU they always may.
        device_memory_percent: of that accelerator's memory, for each worker.
        layers: of the sandbox; fewer only to measure what each costs.
        plugins: Python files with further kinds of work, for tests.
    """

    threads: int = 1
    memory_bytes_max: int = 0
    models_max: int = 8
    start_timeout_s: float = 120.0
    kernels: str = NO_KERNELS
    readable: tuple[Path, ...] = ()
    device: str = CPU
    device_memory_percent: int = 90
    layers: tuple[str, ...] = LAYERS
    plugins: tuple[Path, ...] = ()

    def memory_bytes(self) -> int:
        """What one worker may take."""
        return self.memory_bytes_max or psutil.virtual_memory().total


class Process(Protocol):
    """A worker process, whoever its parent is."""

    @property
    def pid(self) -> int:
        """Its number."""

    @property
    def returncode(self) -> int | None:
        """Its exit status or minus the signal that killed it, once it is over; None if nobody saw."""

    def kill(self) -> None:
        """End it at once; one that is over is left alone."""

    async def exited(self) -> None:
        """Wait until it is over."""

    async def end(self, grace_s: float) -> None:
        """Wait for it this long, then kill it."""


@dataclass
class _Forked:
    """A worker that the zygote forked; a descriptor can't come to mean another process, as a number can."""

    number: int
    descriptor: int = -1
    pid: int = 0
    returncode: int | None = None
    refusal: str = ""
    settled: trio.Event = field(default_factory=trio.Event)
    """The zygote forked it, or couldn't."""
    over: trio.Event = field(default_factory=trio.Event)
    """The zygote said how it ended, or is gone itself."""

    def kill(self) -> None:
        if self.descriptor >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.descriptor, signal.SIGKILL)

    async def exited(self) -> None:
        await self.over.wait()

    async def end(self, grace_s: float) -> None:
        with trio.move_on_after(grace_s):
            await self.exited()
        self.kill()
        await self.exited()
        os.close(self.descriptor)
        self.descriptor = -1


@dataclass
class _Spawned:
    """A worker that is our own child."""

    popen: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def returncode(self) -> int | None:
        return self.popen.returncode

    def kill(self) -> None:
        self.popen.kill()

    async def exited(self) -> None:
        while self.popen.poll() is None:  # noqa: ASYNC110 - a child's end sets no event
            await trio.sleep(_POLL_S)

    async def end(self, grace_s: float) -> None:
        with trio.move_on_after(grace_s):
            await self.exited()
        if self.popen.poll() is None:
            self.kill()
            await self.exited()


class Zygote:
    """Forks workers, and stays alive for it.

    Args:
        settings: of the workers.
        on_death: told why, each time the process is lost; for logs.
    """

    def __init__(
        self, settings: WorkerSettings | None = None, on_death: Callable[[str], None] = lambda _: None
    ) -> None:
        self.settings = settings or WorkerSettings()
        self.pid = 0
        """The process, as long as it is there."""
        self.start_ms = 0
        """What the last start took."""
        self._on_death = on_death
        self._ready = trio.Event()
        self._control: Any = None
        self._forks: dict[int, _Forked] = {}
        self._next = 1

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the process running until cancelled; reports started once it is ready for the first time.

        Raises:
            WorkerDied: it didn't become ready the first time.
        """
        if not CAN_FORK:
            task_status.started()
            await trio.sleep_forever()
        delay_s = _RESTART_DELAY_S
        while True:
            try:
                await self._live(task_status)
            except WorkerDied as error:
                self._on_death(str(error))
                if not self.start_ms:
                    # Broken from the start, so trying again would only hide it.
                    raise
            task_status = trio.TASK_STATUS_IGNORED
            await trio.sleep(delay_s)
            delay_s = min(2 * delay_s, _RESTART_DELAY_S_MAX)

    async def fork(self, memory_bytes_max: int, readable: Sequence[Path] = ()) -> tuple[Process, *_Streams]:
        """A worker, with our ends of its command, event and error pipes.

        Args:
            memory_bytes_max: its private memory.
            readable: where models and blobs lie.

        Raises:
            WorkerDied: it couldn't be forked.
        """
        commands, events, errors = os.pipe(), os.pipe(), os.pipe()
        theirs = (commands[0], events[1], errors[1])
        streams = [trio.lowlevel.FdStream(end) for end in (commands[1], events[0], errors[0])]
        try:
            if not CAN_FORK:
                settings = replace(self.settings, memory_bytes_max=memory_bytes_max, readable=tuple(readable))
                process: Process = _Spawned(spawn_alone(settings, theirs))
            else:
                process = await self._fork(theirs, ForkWorker(0, memory_bytes_max, tuple(map(str, readable))))
        except BaseException:
            for stream in streams:
                await trio.aclose_forcefully(stream)
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        return process, streams[0], streams[1], streams[2]

    # --- The process -----------------------------------------------------------------------------

    async def _fork(self, theirs: Sequence[int], order: ForkWorker) -> _Forked:
        await self._ready.wait()
        fork = _Forked(self._next)
        self._next += 1
        self._forks[fork.number] = fork
        data = message_of(msgspec.structs.replace(order, number=fork.number))
        packed = b"".join(descriptor.to_bytes(4, sys.byteorder) for descriptor in theirs)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)
        try:
            await self._control.sendmsg([data], [rights])
        except OSError as error:
            raise WorkerDied(f"the zygote takes no orders: {error}") from error
        with trio.CancelScope(shield=True):
            # Whoever is cancelled now would leave a worker that nobody ends.
            await fork.settled.wait()
        if fork.refusal:
            raise WorkerDied(f"no worker could be forked: {fork.refusal}")
        return fork

    async def _live(self, task_status: TaskStatus[None]) -> None:
        """From one start of the process to its end.

        Raises:
            WorkerDied: it ended.
        """
        process, control = self._spawn()
        child = _Spawned(process)
        try:
            with control:
                self._control = control
                why = await self._listen(process, control, task_status)
            await child.end(_CLOSE_GRACE_S)
            raise WorkerDied(f"zygote {process.pid} {why}{_last_words(process)}")
        finally:
            self._ready, self.pid = trio.Event(), 0
            with trio.CancelScope(shield=True):
                # Its socket is closed, which tells it to exit, and it takes its workers along.
                await child.end(_CLOSE_GRACE_S)
            if process.stderr is not None:
                process.stderr.close()
            for fork in self._forks.values():
                fork.refusal = fork.refusal or "the zygote is gone"
                fork.settled.set()
                fork.over.set()
            self._forks.clear()

    async def _listen(
        self, process: subprocess.Popen[bytes], control: Any, task_status: TaskStatus[None]
    ) -> str:
        """Take the process's news until it has none any more; returns why."""
        with trio.move_on_after(self.settings.start_timeout_s) as patience:
            while True:
                data, descriptor = await _receive(control)
                if not data:
                    return "exited"
                match decode_news(data):
                    case ZygoteReady(start_ms):
                        patience.deadline = float("inf")
                        self.pid, self.start_ms = process.pid, start_ms
                        self._ready.set()
                        task_status.started()
                    case Forked(number):
                        fork = self._forks[number]
                        fork.descriptor, fork.pid = descriptor, _pid_of(descriptor)
                        fork.settled.set()
                    case CannotFork(number, detail):
                        fork = self._forks.pop(number)
                        fork.refusal = detail
                        fork.settled.set()
                    case WorkerEnded(number, status):
                        fork = self._forks.pop(number)
                        fork.returncode = status
                        fork.over.set()
        return f"was not ready within {self.settings.start_timeout_s:g} s"

    def _spawn(self) -> tuple[subprocess.Popen[bytes], Any]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        settings = self.settings
        options = ["--layers", ",".join(settings.layers), "--device", settings.device]
        options += ["--device-memory-percent", str(settings.device_memory_percent)]
        for path in settings.plugins:
            options += ["--plugin", str(path)]
        with theirs:
            ends = (theirs.fileno(), subprocess.DEVNULL, subprocess.PIPE)
            process = _popen(settings, "workloads.zygote", options, ends)
        return process, trio.socket.from_stdlib_socket(ours)


def spawn_alone(settings: WorkerSettings, theirs: Sequence[int]) -> subprocess.Popen[bytes]:
    """A worker that is nobody's fork and imports everything by itself.

    Args:
        settings: of the worker.
        theirs: its ends of the command, event and error pipes.
    """
    options = ["--memory-bytes-max", str(settings.memory_bytes())]
    for path in settings.readable:
        options += ["--readable", str(path)]
    return _popen(settings, "workloads.worker", options, theirs)


def _popen(
    settings: WorkerSettings, module: str, options: Sequence[str], ends: Sequence[int]
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", "-m", module, "--parent", str(os.getpid())]
    command += ["--threads", str(settings.threads), "--models-max", str(settings.models_max), *options]
    environment = {name: os.environ[name] for name in _ENVIRONMENT_KEPT if name in os.environ}
    environment[VARIABLE] = settings.kernels
    # On this thread, not by trio.open_process: Linux sends the parent-death signal when the thread that
    # forked ends, and trio's helper threads come and go.
    return subprocess.Popen(  # noqa: S603
        command,
        stdin=ends[0],
        stdout=ends[1],
        stderr=ends[2],
        env=environment,
        # A terminal's Ctrl-C is the node's to handle: it drains first.
        start_new_session=True,
    )


async def _receive(control: Any) -> tuple[bytes, int]:
    """One datagram and the descriptor that came with it, or -1."""
    space = socket.CMSG_SPACE(DESCRIPTORS_PER_WORKER * 4)
    data, ancillary, _, _ = await control.recvmsg(MESSAGE_BYTES_MAX, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            return data, int.from_bytes(content[:4], sys.byteorder)
    return data, -1


def _last_words(process: subprocess.Popen[bytes]) -> str:
    """How it exited, and the last line that it wrote to stderr."""
    written = process.stderr.read() if process.stderr is not None else b""
    lines = written.decode("utf-8", "replace").strip().splitlines()[-1:]
    return f" with status {process.returncode}{''.join(f': {line}' for line in lines)}"


def _pid_of(descriptor: int) -> int:
    """The number, in our process namespace, of the process behind a descriptor; 0 if it is over."""
    for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Pid":
            return max(0, int(value))
    return 0
