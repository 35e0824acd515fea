"""The simulated workload behind the runtime's executor port: it takes trio's time and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import trio

from p2p_node.sim.workload import chunk_digest, derive_unit, recompute
from protocols.effects import Execute, Recompute
from protocols.events import RunChunk, RunEvent, RunFinished, RunOutput, RunRecomputed
from protocols.limits import LM_CHUNK_UNITS

Report = Callable[[RunEvent], None]


class SimExecutor:
    """Produces ``units_max`` units, or recomputes chunks; cheats when told to."""

    def __init__(self, nursery: trio.Nursery, *, units_max: int, is_honest: bool = True) -> None:
        self._nursery = nursery
        self._units_max = units_max
        self._variant = b"" if is_honest else b"cheap"
        self._scopes: dict[tuple[Any, ...], trio.CancelScope] = {}

    def start(self, key: tuple[Any, ...], task: Execute | Recompute, report: Report) -> None:
        """See `p2p_node.runtime.Executor`."""
        scope = self._scopes[key] = trio.CancelScope()
        work = self._execute if isinstance(task, Execute) else self._recompute
        self._nursery.start_soon(partial(work, scope, key, task, report))

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

    async def _recompute(self, scope: trio.CancelScope, key: Any, task: Recompute, report: Report) -> None:
        with scope:
            await trio.sleep(0.02)
            report(RunRecomputed(key, recompute(task, chunk_units=LM_CHUNK_UNITS), 1_000))
