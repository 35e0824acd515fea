"""The simulated workload behind the runtime's executor port: it takes trio's time and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import trio

from p2p_node.sim.program import judge, open_values, trace
from p2p_node.sim.workload import chunk_digest, derive_unit, recompute
from protocols.effects import Execute, Judge, OpenValues, Recompute, Task, Trace
from protocols.events import (
    RunChunk,
    RunEvent,
    RunFinished,
    RunJudged,
    RunOpened,
    RunOutput,
    RunRecomputed,
    RunTraced,
)
from protocols.limits import LM_CHUNK_UNITS

Report = Callable[[RunEvent], None]


class SimExecutor:
    """Produces ``units_max`` units, or recomputes chunks; cheats when told to."""

    def __init__(self, nursery: trio.Nursery, *, units_max: int, is_honest: bool = True) -> None:
        self._nursery = nursery
        self._units_max = units_max
        self._variant = b"" if is_honest else b"cheap"
        self._scopes: dict[tuple[Any, ...], trio.CancelScope] = {}

    def start(self, key: tuple[Any, ...], task: Task, report: Report) -> None:
        """See `p2p_node.runtime.Executor`."""
        scope = self._scopes[key] = trio.CancelScope()
        match task:
            case Execute():
                self._nursery.start_soon(partial(self._execute, scope, key, task, report))
            case Recompute():
                self._nursery.start_soon(partial(self._recompute, scope, key, task, report))
            case _:
                self._nursery.start_soon(partial(self._dispute, scope, key, task, report))

    def cancel(self, key: tuple[Any, ...]) -> None:
        """See `p2p_node.runtime.Executor`."""
        if key in self._scopes:
            self._scopes[key].cancel()

    async def _execute(self, scope: trio.CancelScope, key: Any, task: Execute, report: Report) -> None:
        with scope:
            units = list(task.prefix)
            for first in range(len(units), self._units_max, LM_CHUNK_UNITS):
                await trio.sleep(0.05)
                end = min(first + LM_CHUNK_UNITS, self._units_max)
                units += [derive_unit(task.input, index) for index in range(first, end)]
                report(RunOutput(key, first, tuple(units[first:end])))
                chunk = first // LM_CHUNK_UNITS
                report(
                    RunChunk(
                        key,
                        chunk,
                        chunk_digest(task, units, chunk, chunk_units=LM_CHUNK_UNITS, variant=self._variant),
                    )
                )
            report(RunFinished(key, len(units), 1_000))

    async def _dispute(
        self, scope: trio.CancelScope, key: Any, task: Trace | OpenValues | Judge, report: Report
    ) -> None:
        # Who lied as an executor stands by it.
        variant = self._variant if key[-1] == "executor" else b""
        with scope:
            await trio.sleep(0.03)
            match task:
                case Trace():
                    traced = trace(task, chunk_units=LM_CHUNK_UNITS, variant=variant)
                    report(RunTraced(key, *traced, 1_000))
                case OpenValues():
                    opened = open_values(task, chunk_units=LM_CHUNK_UNITS, variant=variant)
                    report(RunOpened(key, *opened, 1_000))
                case Judge(case):
                    report(RunJudged(key, *judge(case, chunk_units=LM_CHUNK_UNITS), 100))

    async def _recompute(self, scope: trio.CancelScope, key: Any, task: Recompute, report: Report) -> None:
        with scope:
            await trio.sleep(0.02)
            report(RunRecomputed(key, recompute(task, chunk_units=LM_CHUNK_UNITS), 1_000))
