"""What this machine can do, measured before anything is promised to anybody."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import trio

from p2p_node.errors import UserError
from p2p_node.workers import WorkerPool
from workloads import frames
from workloads.workload import Kind, Model

__all__ = ["calibrate", "measure"]


async def measure(place: Path, result: dict[str, Any]) -> None:
    """Fill ``result`` with what `workloads.measure` says of this machine, with ``place`` as its disk.

    Raises:
        UserError: the measurement failed.
    """
    command = [sys.executable, "-I", "-m", "workloads.measure", "--disk", str(place)]
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    if done.returncode != 0:
        tail = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise UserError(f"measuring this machine failed: {' '.join(tail)}")
    result.update(json.loads(done.stdout))


async def calibrate(working: WorkerPool, checking: WorkerPool, kind: Kind, model: Model) -> int:
    """A workload's measured rate on this machine, in output units per 1,000 seconds.

    The output is verified as a peer's would be. So both workers are warm when the first job comes, and a
    machine that would be convicted of its own arithmetic learns it here.

    Raises:
        UserError: the model doesn't run here, or not exactly.
    """
    reference = frames.ModelRef(str(model.path), model.digest, kind.profiles[0], workload=kind.name)
    task = kind.probe()
    # Loading is no part of the rate.
    await _run(working, frames.Load(0, reference), model.name)
    made = await _run(working, frames.Generate(0, reference, task), model.name)
    units = tuple(unit for event in made if isinstance(event, frames.Output) for unit in event.units)
    digests = {event.chunk: event.digest for event in made if isinstance(event, frames.ChunkDone)}
    verify = frames.Recompute(0, reference, task, units, tuple(digests))
    *_, checked = await _run(checking, verify, model.name)
    if not isinstance(checked, frames.Recomputed) or dict(checked.digests) != digests:
        raise UserError(
            f"model {model.name!r} doesn't give the same bits twice on this machine, "
            "so other peers would convict it"
        )
    cpu_us = sum(event.cpu_us for event in made if isinstance(event, frames.Finished))
    return len(units) * 1_000_000_000 // max(1, cpu_us)


async def _run(
    pool: WorkerPool, work: frames.Load | frames.Generate | frames.Recompute, model: str
) -> list[frames.Event]:
    """Do one thing in a pool; returns its events, the last of them its end.

    Raises:
        UserError: it failed.
    """
    finished = trio.Event()
    events: list[frames.Event] = []

    def on_event(event: frames.Event) -> None:
        events.append(event)
        if isinstance(event, frames.Loaded | frames.Finished | frames.Recomputed | frames.Failed):
            finished.set()

    pool.start_run(work, on_event)
    await finished.wait()
    if isinstance(events[-1], frames.Failed):
        ending = events[-1]
        raise UserError(f"model {model!r} doesn't run on this machine: {ending.reason}: {ending.detail}")
    return events
