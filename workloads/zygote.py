"""The process that imports torch once and forks workers: ``python -I -m workloads.zygote``.

It holds one end of a socket whose other end is the node's. The node sends a `ForkWorker` with the three pipes
that the worker is to have; the zygote answers `Forked` with a descriptor of the process, and says
`WorkerEnded` when it is over. Nothing of a job ever reaches this process: it only imports, forks and waits.
It has one thread, always, because a fork copies no other.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import selectors
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import msgspec

from workloads import devices, lockdown
from workloads.sandbox import LAYERS, LayerReport, Policy, bubblewrap, namespaces
from workloads.sandbox.landlock import interpreter_paths

__all__ = [
    "CannotFork",
    "ForkWorker",
    "Forked",
    "News",
    "WorkerEnded",
    "ZygoteReady",
    "decode_news",
    "import_everything",
    "main",
    "message_of",
]

MESSAGE_BYTES_MAX = 65_536
DESCRIPTORS_PER_WORKER = 3
_TASKS = Path("/proc/self/task")


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    """One datagram."""


class ForkWorker(_Message, frozen=True):
    """Fork a worker; comes with the ends of its command, event and error pipes.

    Args:
        number: names the worker in every answer.
        memory_bytes_max: its private memory.
        readable: where models and blobs lie; it reads nothing else of the owner's.
    """

    number: int
    memory_bytes_max: int
    readable: tuple[str, ...] = ()


class ZygoteReady(_Message, frozen=True):
    """Everything is imported."""

    start_ms: int


class Forked(_Message, frozen=True):
    """The worker runs; comes with a descriptor of its process."""

    number: int


class CannotFork(_Message, frozen=True):
    """The system had no process to give."""

    number: int
    detail: str


class WorkerEnded(_Message, frozen=True):
    """The worker is over: its exit status, or minus the signal that killed it."""

    number: int
    status: int


News = ZygoteReady | Forked | CannotFork | WorkerEnded

_encoder = msgspec.msgpack.Encoder()
_order_decoder = msgspec.msgpack.Decoder(ForkWorker)
_news_decoder = msgspec.msgpack.Decoder[News](News)


def message_of(message: ForkWorker | News) -> bytes:
    """A datagram's bytes."""
    return _encoder.encode(message)


def decode_news(data: bytes) -> News:
    """What the zygote says."""
    news: News = _news_decoder.decode(data)
    return news


class _Zygote:
    """Forks and waits."""

    def __init__(self, control: socket.socket, arguments: argparse.Namespace, entered: LayerReport) -> None:
        self._control = control
        self._pid = os.getpid()
        self._arguments = arguments
        self._entered = entered
        self._exact_refusal = import_everything(arguments.plugin)
        # Looked up once: the same for every worker.
        self._readable = (*interpreter_paths(), *devices.driver_facts(arguments.device))
        self._selector = selectors.DefaultSelector()
        self._pids: dict[int, int] = {}

    def serve(self, ready: ZygoteReady) -> None:
        """Until the node closes its end."""
        self._say(ready)
        self._selector.register(self._control, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.data is not None:
                    self._reap(key.fd, key.data)
                elif not self._take_order():
                    return

    def _take_order(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(self._control, MESSAGE_BYTES_MAX, DESCRIPTORS_PER_WORKER)
        if not data:
            return False
        order = _order_decoder.decode(data)
        try:
            pid = os.fork()
        except OSError as error:
            self._say(CannotFork(order.number, f"{error}"))
        else:
            if pid == 0:
                self._become_worker(order, descriptors)
            watch = os.pidfd_open(pid)
            self._pids[order.number] = pid
            self._selector.register(watch, selectors.EVENT_READ, order.number)
            socket.send_fds(self._control, [message_of(Forked(order.number))], [watch])
        for descriptor in descriptors:
            os.close(descriptor)
        return True

    def _reap(self, watch: int, number: int) -> None:
        self._selector.unregister(watch)
        os.close(watch)
        _, status = os.waitpid(self._pids.pop(number), 0)
        self._say(WorkerEnded(number, os.waitstatus_to_exitcode(status)))

    def _say(self, news: News) -> None:
        self._control.send(message_of(news))

    def _become_worker(self, order: ForkWorker, descriptors: Sequence[int]) -> NoReturn:
        try:
            from workloads import worker

            lockdown.die_with_parent(self._pid)
            for target, descriptor in enumerate(descriptors):
                os.dup2(descriptor, target)
            worker.run(
                policy=Policy(
                    order.memory_bytes_max,
                    (*self._readable, *map(Path, order.readable)),
                    devices.device_files(self._arguments.device),
                    layers=self._arguments.layers,
                ),
                entered=self._entered,
                threads=self._arguments.threads,
                models_max=self._arguments.models_max,
                exact_refusal=self._exact_refusal,
                device=self._arguments.device,
                device_memory_percent=self._arguments.device_memory_percent,
            )
        except BaseException as error:
            print(f"worker: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            # Never back into the zygote's loop.
            os._exit(1)


def import_everything(plugins: Sequence[Path] = ()) -> str:
    """Import what workers need, and check this machine's arithmetic.

    Args:
        plugins: Python files of further kinds of work.

    Returns:
        Why this machine can't be judged by the exact profiles, or nothing.
    """
    import torch

    import workloads.program.disputes
    import workloads.worker  # noqa: F401
    from workloads.errors import NumericsRefused
    from workloads.llama.selfcheck import check_arithmetic
    from workloads.registry import KINDS

    # Without threads in this process, whatever its workers use.
    torch.set_num_threads(1)
    for kind in KINDS.values():
        package = kind.open.__module__.rpartition(".")[0]
        module = f"{package}.workload"
        if package and importlib.util.find_spec(module) is not None:
            importlib.import_module(module)
    for number, path in enumerate(plugins):
        spec = importlib.util.spec_from_file_location(f"p2p_node_plugin_{number}", path)
        if spec is None or spec.loader is None:
            raise ImportError(f"plug-in {path} must be a Python file")
        plugin = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(plugin)
    try:
        check_arithmetic()
    except NumericsRefused as error:
        print(f"worker: {error}", file=sys.stderr, flush=True)
        return str(error)
    return ""


def _stay_alone() -> None:
    """What was imported is done with: share it with the workers, and make sure that a fork copies all of it.

    Raises:
        RuntimeError: a library started a thread, whose locks a fork would copy and nobody release.
    """
    gc.collect()
    # A collection in a worker would write to every object's header, and so copy its page.
    gc.freeze()
    tasks = len(list(_TASKS.iterdir()))
    if tasks != 1:
        raise RuntimeError(f"{tasks} threads run after the imports, and only 1 may")


def _enter_namespaces(layers: Sequence[str]) -> LayerReport:
    """Enter them; the process that returns is the init of its process namespace, its parent waits for it."""
    if "namespaces" not in layers:
        return LayerReport("namespaces", False, "not asked for")
    entered = namespaces.enter()
    if not entered.holds:
        again = [sys.executable, "-I", "-m", "workloads.zygote", *sys.argv[1:], "--parent", "0", "--wrapped"]
        if wrapped := bubblewrap.command(again):
            os.execv(wrapped[0], wrapped)  # noqa: S606
    if not namespaces.has_own_processes(entered):
        return entered
    parent = os.getpid()
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        os._exit(code if code >= 0 else 128 - code)
    # Seen from inside, a parent outside has the number 0.
    lockdown.die_with_parent(0 if os.getpid() == 1 else parent)
    return entered


def main() -> None:
    """Serve the node whose socket is on descriptor 0."""
    parser = argparse.ArgumentParser(prog="workloads.zygote", description="Fork workers for a p2p-node.")
    parser.add_argument("--parent", type=int, required=True, help="process id of the node")
    parser.add_argument("--threads", type=int, default=1, help="of each worker, for torch")
    parser.add_argument("--models-max", type=int, default=8, help="models kept loaded by a worker")
    parser.add_argument("--device", default=devices.CPU, help="torch's name of an accelerator to use")
    parser.add_argument("--device-memory-percent", type=int, default=100, help="of the accelerator's")
    parser.add_argument("--layers", default=",".join(LAYERS), help="of the sandbox")
    parser.add_argument("--plugin", type=Path, action="append", default=[], help="further kinds of work")
    parser.add_argument("--wrapped", action="store_true", help="bubblewrap started this one")
    arguments = parser.parse_args()
    arguments.layers = tuple(arguments.layers.split(","))

    started = time.monotonic()
    lockdown.die_with_parent(arguments.parent)
    entered = bubblewrap.REPORT if arguments.wrapped else _enter_namespaces(arguments.layers)
    control = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(null, descriptor)
    os.close(null)
    lockdown.pin_numerics()
    zygote = _Zygote(control, arguments, entered)
    _stay_alone()
    zygote.serve(ZygoteReady(round((time.monotonic() - started) * 1000)))
    # The node waits, and taking torch apart takes longer than all else.
    os._exit(0)


if __name__ == "__main__":
    main()
