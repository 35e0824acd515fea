"""Runs the core's tasks in supervised worker processes, and translates their frames into events.

Executions and recomputations have workers of their own: a verifier must answer while its machine is
busy with a long job, or it would seem to be silent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2p_node.bloboutput import OutputRefused, OutputTaker
from p2p_node.blobs import BlobError, BlobStore
from p2p_node.workers import WorkerPool
from protocols.effects import Execute, FetchBlobs, Judge, OpenValues, Prefetch, Recompute, Task, Trace
from protocols.events import (
    NO_ROOM,
    RunChunk,
    RunEvent,
    RunFailed,
    RunFinished,
    RunJudged,
    RunOpened,
    RunOutput,
    RunProgress,
    RunRecomputed,
    RunTraced,
)
from workloads import frames
from workloads.registry import KINDS
from workloads.workload import names_none

__all__ = ["RUN_OWNER", "ModelPlace", "WorkerExecutor", "builtin_places", "owner_of", "sealed_owner_of"]


RUN_OWNER = "run:"
"""How the names begin under which runs hold on to blobs."""


def owner_of(key: tuple[Any, ...]) -> str:
    """Under which name a run holds on to blobs."""
    return RUN_OWNER + ":".join(part.hex() if isinstance(part, bytes) else str(part) for part in key)


def sealed_owner_of(key: tuple[Any, ...]) -> str:
    """Under which name a run holds on to what it left sealed: for longer than to its input."""
    return owner_of(("sealed", *key))


@dataclass(frozen=True, slots=True)
class ModelPlace:
    """Where a model lies on this machine, and what it is run as."""

    name: str
    path: Path
    digest: bytes
    workload: str = "lm.generate"


def builtin_places() -> dict[str, ModelPlace]:
    """The models that ship with the package, of every workload, by name."""
    return {
        model.name: ModelPlace(model.name, model.path, model.digest, kind.name)
        for kind in KINDS.values()
        for model in kind.models()
    }


class WorkerExecutor:
    """An executor over pools of worker processes."""

    def __init__(
        self,
        working: WorkerPool,
        checking: WorkerPool,
        models: Mapping[bytes, ModelPlace],
        *,
        cheat: str = "",
        blobs: BlobStore | None = None,
        blob_folder: Path | None = None,
    ) -> None:
        """Run the models in ``models``, by digest.

        Args:
            working: workers for executions.
            checking: workers for recomputations.
            models: what can be run.
            cheat: how executions (never recomputations) deviate, for hostile test peers; ``withheld-blob``
                throws away what they leave.
            blobs: where what executions leave is put; None refuses it.
            blob_folder: where blobs are read; None for those of ``blobs``.
        """
        self._working = working
        self._checking = checking
        self._models = models
        self._cheat = cheat
        self._blobs = blobs
        self._blob_folder = blob_folder or (blobs.folder if blobs is not None else None)
        self._runs: dict[tuple[Any, ...], tuple[WorkerPool, int]] = {}
        self.executed_cpu_us = 0
        """CPU time of finished executions."""
        self.recomputed_cpu_us = 0
        """CPU time of finished recomputations."""

    def start(self, key: tuple[Any, ...], task: Task, report: Callable[[RunEvent], None]) -> None:
        """Queue a task; see `p2p_node.runtime.Executor`."""
        if isinstance(task, FetchBlobs | Prefetch):
            report(RunFailed(key, NO_ROOM, "this peer keeps no blobs"))
            return
        # An executor that cheats stands by what it stated, where its workload knows how.
        stands = self._cheat if key[0] in ("trace", "open") and key[-1] == "executor" else ""
        work = self._work(task, stands)
        if work is None:
            report(RunFailed(key, "model", "this peer doesn't have the model"))
            return
        pool = self._working if isinstance(task, Execute) else self._checking
        is_kept = isinstance(task, Execute) and self._cheat != "withheld-blob"
        taker: OutputTaker | None = None
        if isinstance(task, Execute) and is_kept and self._blobs is not None:
            owner = sealed_owner_of(key) if task.private_to else owner_of(key)
            kind = KINDS.get(task.workload)
            # A chunk that starts from what the one before left reads it from the store.
            is_read = kind is not None and kind.chunk_blobs is not names_none
            borrower = owner_of(key) if task.private_to and is_read else ""
            taker = OutputTaker(self._blobs, owner, task.private_to, borrower)

        def on_event(event: frames.Event) -> None:
            if key not in self._runs:
                return  # Cancelled.
            if isinstance(event, frames.BlobPart):
                try:
                    # Stored before the units that name it are passed on, which come later on the same pipe.
                    if taker is not None:
                        taker.take(event)
                except (BlobError, OutputRefused) as error:
                    self.cancel(key)
                    report(RunFailed(key, "output-limit", str(error)))
                return
            translated = _translate(key, event)
            if not isinstance(event, frames.GOING_ON):
                del self._runs[key]
                if taker is not None:
                    taker.close()
            match translated:
                case RunFinished(cpu_us=cpu_us):
                    self.executed_cpu_us += cpu_us
                case RunRecomputed(cpu_us=cpu_us):
                    self.recomputed_cpu_us += cpu_us
            if translated is not None:
                report(translated)

        self._runs[key] = (pool, pool.start_run(work, on_event))

    def _work(
        self, task: Execute | Recompute | Trace | OpenValues | Judge, stands: str
    ) -> frames.Work | None:
        """The frame that has a worker do the task; None if this peer doesn't have the model."""
        if isinstance(task, Judge):
            return frames.Judge(0, task.case)
        place = self._models.get(task.model)
        if place is None:
            return None
        match task:
            case Execute():
                return frames.Generate(0, self._reference(place, task, self._cheat), task.input, task.prefix)
            case Recompute():
                return frames.Recompute(0, self._reference(place, task), task.input, task.units, task.chunks)
            case Trace():
                model = self._reference(place, task, stands)
                return frames.Trace(0, model, task.input, task.units, task.chunk)
            case OpenValues():
                model = self._reference(place, task, stands)
                return frames.OpenValues(0, model, task.input, task.units, task.chunk, task.index)

    def _reference(
        self, place: ModelPlace, task: Execute | Recompute | Trace | OpenValues, cheat: str = ""
    ) -> frames.ModelRef:
        kind = KINDS.get(task.workload)
        # A hostile peer cheats in the workload that its cheat belongs to, and is honest in all others.
        variant = cheat if kind is not None and cheat in kind.variants else ""
        blobs = str(self._blob_folder) if self._blob_folder is not None else ""
        return frames.ModelRef(str(place.path), task.model, task.profile, variant, task.workload, blobs)

    def cancel(self, key: tuple[Any, ...]) -> None:
        """Stop a task."""
        started = self._runs.pop(key, None)
        if started is not None:
            pool, number = started
            pool.cancel(number)


def _translate(key: tuple[Any, ...], event: frames.Event) -> RunEvent | None:
    match event:
        case frames.Output(_, first_unit, units):
            return RunOutput(key, first_unit, units)
        case frames.Phase(_, phase):
            return RunProgress(key, phase, 0, 0)
        case frames.ChunkDone(_, chunk, digest):
            return RunChunk(key, chunk, digest)
        case frames.Finished(_, units_total, _, cpu_us):
            return RunFinished(key, units_total, cpu_us)
        case frames.Recomputed(_, digests, cpu_us):
            return RunRecomputed(key, digests, cpu_us)
        case frames.Traced(_, program, traced, cpu_us):
            return RunTraced(key, program, traced, cpu_us)
        case frames.Opened(_, values, context, cpu_us):
            return RunOpened(key, values, context, cpu_us)
        case frames.Judged(_, finding, detail, cpu_us):
            return RunJudged(key, finding, detail, cpu_us)
        case frames.Failed(_, reason, detail):
            return RunFailed(key, reason, detail)
    return None
