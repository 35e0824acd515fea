"""What this machine can do, measured before anything is promised to anybody."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import structlog
import trio

from p2p_node.bloboutput import OutputTaker
from p2p_node.blobs import BlobStore
from p2p_node.errors import UserError
from p2p_node.workers import WorkerPool
from protocols.messages import EQUAL_BITS
from protocols.units import FALSE_UNITS
from verification.findings import NATIVE, distance
from workloads import frames
from workloads.registry import KINDS
from workloads.workload import Kind, Model

__all__ = ["ArithmeticDiffers", "calibrate", "measure", "rate_of", "takes_exact_work"]

_OWNER = "calibration"

log = structlog.get_logger(__name__)


class ArithmeticDiffers(UserError):
    """This machine doesn't give the published bits, so it may not be judged by them."""


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


async def takes_exact_work(pool: WorkerPool) -> bool:
    """Whether this machine gives the published digests of the exact operators, as its workers found."""
    kind = KINDS["linalg.matmul"]
    (model,) = kind.models()
    reference = frames.ModelRef(str(model.path), model.digest, kind.profiles[0], workload=kind.name)
    try:
        await _run(pool, frames.Load(0, reference), model.name)
    except ArithmeticDiffers as error:
        log.warning("no exact work is offered", why=str(error))
        return False
    return True


async def calibrate(
    working: WorkerPool,
    checking: WorkerPool,
    kind: Kind,
    model: Model,
    *,
    blobs: BlobStore | None = None,
) -> tuple[tuple[str, ...], int]:
    """What this machine may offer of a model: the numerics profiles, and the rate in the first of them.

    A machine that doesn't reproduce the published digests of the exact operators, or whose workers don't
    agree, would be convicted of its own arithmetic: it is left with the native profile, or with nothing.

    Args:
        working: workers for executions.
        checking: workers for recomputations.
        kind: of work.
        model: of this kind.
        blobs: where what the probe leaves is kept while it is checked.

    Raises:
        UserError: the model doesn't run here.
    """
    try:
        return kind.profiles, await rate_of(working, checking, kind, model, kind.profiles[0], blobs=blobs)
    except ArithmeticDiffers as error:
        log.warning("no exact work is offered", workload=kind.name, model=model.name, why=str(error))
    if NATIVE not in kind.profiles or kind.tolerance(model.path) == EQUAL_BITS:
        return (), 0
    return (NATIVE,), await rate_of(working, checking, kind, model, NATIVE, blobs=blobs)


async def rate_of(
    working: WorkerPool,
    checking: WorkerPool,
    kind: Kind,
    model: Model,
    profile: str,
    *,
    blobs: BlobStore | None = None,
) -> int:
    """A workload's measured rate on this machine, in output units per 1,000 seconds.

    The output is verified as a peer's would be, so both workers are warm when the first job comes.

    Raises:
        ArithmeticDiffers: the workers don't give the published bits, or not the same bits twice.
        UserError: the model doesn't run here.
    """
    folder = "" if blobs is None else str(blobs.folder)
    reference = frames.ModelRef(str(model.path), model.digest, profile, workload=kind.name, blobs=folder)
    taker = None if blobs is None else OutputTaker(blobs, _OWNER)
    task = kind.probe()
    # Loading is no part of the rate.
    await _run(working, frames.Load(0, reference), model.name)
    made = await _run(working, frames.Generate(0, reference, task), model.name, taker)
    units = tuple(unit for event in made if isinstance(event, frames.Output) for unit in event.units)
    digests = {event.chunk: event.digest for event in made if isinstance(event, frames.ChunkDone)}
    verify = frames.Recompute(0, reference, task, units, tuple(digests))
    *_, checked = await _run(checking, verify, model.name)
    if blobs is not None:
        blobs.unpin(_OWNER)
    found = dict(checked.digests) if isinstance(checked, frames.Recomputed) else {}
    if found.keys() != digests.keys() or not all(
        _agree(profile, kind, model, found[chunk], digest) for chunk, digest in digests.items()
    ):
        raise ArithmeticDiffers(
            f"model {model.name!r} doesn't give the same result twice on this machine, "
            "so other peers would convict it"
        )
    cpu_us = sum(event.cpu_us for event in made if isinstance(event, frames.Finished))
    return len(units) * 1_000_000_000 // max(1, cpu_us)


def _agree(profile: str, kind: Kind, model: Model, one: bytes, other: bytes) -> bool:
    if profile != NATIVE or FALSE_UNITS in (one, other):
        return one == other
    return distance(one, other) <= kind.tolerance(model.path).agree_steps


async def _run(
    pool: WorkerPool,
    work: frames.Load | frames.Generate | frames.Recompute,
    model: str,
    taker: OutputTaker | None = None,
) -> list[frames.Event]:
    """Do one thing in a pool; returns its events, the last of them its end.

    Raises:
        ArithmeticDiffers: the worker takes no exact work.
        UserError: it failed otherwise.
    """
    finished = trio.Event()
    events: list[frames.Event] = []

    def on_event(event: frames.Event) -> None:
        if isinstance(event, frames.BlobPart):
            if taker is not None:
                taker.take(event)
            return
        events.append(event)
        if not isinstance(event, frames.GOING_ON):
            finished.set()

    pool.start_run(work, on_event)
    await finished.wait()
    if isinstance(events[-1], frames.Failed):
        ending = events[-1]
        fault = ArithmeticDiffers if ending.reason == "numerics-refused" else UserError
        raise fault(f"model {model!r} doesn't run on this machine: {ending.reason}: {ending.detail}")
    return events
