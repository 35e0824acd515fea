"""Starting a worker cold and from the zygote, layer by layer, and what the sandbox costs a run.

A cold start is a process that imports torch and everything else; it is the baseline of all starts. A warm one
is a fork of the zygote, from the order to the worker's word that it is locked in and ready. The layers are
added one by one, in the order in which they are applied. Runs are timed by the processor time of one worker
without any layer and one with all, in turn.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import psutil
import trio

from benchmarks.table import machine_line, percentile, print_table
from p2p_node.kernels import find_kernels
from p2p_node.workers import Worker, WorkerSettings, Zygote, open_worker
from p2p_node.zygote import spawn_alone
from workloads import frames
from workloads.lm.manifest import builtin_models, load_manifest
from workloads.registry import KINDS
from workloads.sandbox import LAYERS

__all__ = ["main"]

MIB = 1 << 20
MODEL = "kjv-2m"


async def cold_start_s(settings: WorkerSettings) -> float:
    """A worker without a zygote, until it is ready."""
    started = time.perf_counter()
    commands, events = os.pipe(), os.pipe()
    process = spawn_alone(settings, (commands[0], events[1], 2))
    for descriptor in (commands[0], events[1]):
        os.close(descriptor)
    async with trio.lowlevel.FdStream(events[0]) as pipe, trio.lowlevel.FdStream(commands[1]):
        reader = frames.FrameReader(frames.Event)
        while not any(isinstance(event, frames.Ready) for event in reader.feed(await receive(pipe))):
            pass
        seconds = time.perf_counter() - started
    process.wait()
    return seconds


async def receive(pipe: trio.lowlevel.FdStream) -> bytes:
    data = await pipe.receive_some(1 << 16)
    if not data:
        raise RuntimeError("the worker didn't start")
    return bytes(data)


@asynccontextmanager
async def running(settings: WorkerSettings) -> AsyncIterator[Zygote]:
    zygote = Zygote(settings)
    async with trio.open_nursery() as nursery:
        await nursery.start(zygote.run)
        yield zygote
        nursery.cancel_scope.cancel()


async def warm_starts_s(kernels: str, count: int) -> list[list[float]]:
    """For each number of layers, workers forked one after another, until each is ready.

    In turn, so that whatever else the machine does meets all alike.
    """
    choices = [WorkerSettings(kernels=kernels, layers=LAYERS[:layers]) for layers in range(len(LAYERS) + 1)]
    times: list[list[float]] = [[] for _ in choices]
    async with AsyncExitStack() as stack:
        zygotes = [await stack.enter_async_context(running(settings)) for settings in choices]
        for _ in range(count + 1):
            for zygote, taken in zip(zygotes, times, strict=True):
                started = time.perf_counter()
                async with open_worker(zygote.settings, zygote):
                    taken.append(time.perf_counter() - started)
    # The first also pays for what the zygote touches for the first time.
    return [taken[1:] for taken in times]


async def starts(kernels: str, *, count: int) -> list[list[str]]:
    """Rows: a cold start, then warm ones with more and more layers."""
    cold = [await cold_start_s(WorkerSettings(kernels=kernels)) for _ in range(3 if count > 10 else 1)]
    baseline = statistics.median(cold)
    rows = [row("cold: a process that imports everything", cold, baseline, 0.0)]
    before = 0.0
    for layers, times in enumerate(await warm_starts_s(kernels, count)):
        name = f"warm, + {LAYERS[layers - 1]}" if layers else "warm: forked, no layer"
        rows.append(row(name, times, baseline, before))
        before = statistics.median(times)
    return rows


def row(name: str, times: Sequence[float], baseline: float, before: float) -> list[str]:
    median = statistics.median(times)
    return [
        name,
        str(len(times)),
        f"{min(times) * 1e3:,.1f}",
        f"{median * 1e3:,.1f}",
        f"{percentile(times, 95) * 1e3:,.1f}",
        f"{(median - before) * 1e3:+,.1f}" if before else "",
        f"{median / baseline:.4f}",
    ]


async def generate(worker: Worker, run: int, place: frames.ModelRef) -> tuple[int, float]:
    """One probe run; returns its processor time in microseconds and its wall time in seconds."""
    started = time.perf_counter()
    worker.submit(frames.Generate(run, place, KINDS["lm.generate"].probe()))
    while True:
        event = await worker.receive()
        if isinstance(event, frames.Failed):
            raise RuntimeError(f"{event.reason}: {event.detail}")
        if isinstance(event, frames.Finished):
            return event.cpu_us, time.perf_counter() - started


async def runs(kernels: str, *, count: int) -> list[list[str]]:
    """Rows: the same run with no layer and with all of them, in turn."""
    path = builtin_models()[MODEL]
    place = frames.ModelRef(str(path), load_manifest(path).digest, "exact14")
    free = WorkerSettings(kernels=kernels, layers=())
    locked = WorkerSettings(kernels=kernels)
    taken: dict[str, list[tuple[int, float]]] = {"no layer": [], "all layers": []}
    async with open_worker(free) as one, open_worker(locked) as other:
        for number in range(count + 1):
            for name, worker in zip(taken, (one, other), strict=True):
                taken[name].append(await generate(worker, number + 1, place))
    cpu = {name: statistics.median(used for used, _ in pairs[1:]) for name, pairs in taken.items()}
    wall = {name: statistics.median(took for _, took in pairs[1:]) for name, pairs in taken.items()}
    return [
        [
            name,
            str(count),
            f"{cpu[name] / 1e3:,.1f}",
            f"{cpu[name] / cpu['no layer']:.3f}",
            f"{wall[name] * 1e3:,.1f}",
            f"{wall[name] / wall['no layer']:.3f}",
        ]
        for name in taken
    ]


async def memory(kernels: str) -> list[list[str]]:
    """Rows: what a node with two workers holds."""
    rows = []
    settings = WorkerSettings(kernels=kernels)
    async with (
        running(settings) as zygote,
        open_worker(settings, zygote),
        open_worker(settings, zygote) as second,
    ):
        origin = psutil.Process(zygote.pid).children()[0]
        for name, process in (("the zygote", origin), ("one of its workers", psutil.Process(second.pid))):
            used = process.memory_full_info()
            rows.append([name, *(f"{size / MIB:.0f}" for size in (used.rss, used.uss, used.pss))])
    return rows


async def measure(*, count: int) -> None:
    kernels = await find_kernels(60)
    print_table(
        "a worker's start, ms",
        ["start", "times", "best", "median", "p95", "layer adds", "to cold"],
        await starts(kernels, count=count),
    )
    print_table(
        f"64 tokens of {MODEL} in exact14",
        ["worker", "times", "processor ms", "to none", "wall ms", "to none"],
        await runs(kernels, count=count),
    )
    print_table(
        "memory of a worker that has loaded no model, MiB",
        ["process", "RSS", "own", "PSS"],
        await memory(kernels),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer samples")
    arguments = parser.parse_args()
    print(machine_line(), flush=True)
    trio.run(lambda: measure(count=5 if arguments.quick else 20))


if __name__ == "__main__":
    main()
