"""What a simulated peer's workers do: they take time, and they lie as their peer's cheat has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from p2p_node.hostile import worker_variant
from p2p_node.sim.program import judge, open_values, trace
from p2p_node.sim.workload import SimTask, chunk_digest, derive_unit, recompute
from protocols.effects import Execute, FetchBlobs, Judge, OpenValues, Prefetch, Recompute, Task, Trace
from protocols.events import (
    OUTPUT_MISSING,
    RunChunk,
    RunEvent,
    RunFailed,
    RunFetched,
    RunFinished,
    RunJudged,
    RunOpened,
    RunOutput,
    RunRecomputed,
    RunTraced,
)
from protocols.limits import LM_CHUNK_UNITS
from protocols.units import chunk_count

if TYPE_CHECKING:
    from p2p_node.sim.world import Peer, World

__all__ = ["Workshop"]

FETCH_PATIENCE_MS = 10_000
"""How long a peer asks for a blob that nobody serves."""

UNIT_LIES = frozenset({"false-unit", "spoofed-tokens"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """The workers of all peers of a world.

    Args:
        task: how long work takes, where nothing else is said.
        by_model: how long it takes for some models.
        forged_each: executors that compute something else do so in each so many-th chunk.
        without_model: peers that can't recompute or trace anything, by index.
    """

    task: SimTask
    by_model: Mapping[bytes, SimTask]
    forged_each: int
    without_model: frozenset[int]

    def run(self, world: World, peer: Peer, key: tuple[Any, ...], task: Task) -> None:
        """Begin a run; its events are put into the world's heap."""
        peer.runs.add(key)
        if peer.index in self.without_model and not isinstance(task, Judge):
            # What it asks others to do it can't do again; but anybody can be a referee.
            missing = RunFailed(key, "model", "this peer doesn't have the model")
            world.report(peer, 0, missing)
            return
        if isinstance(task, Trace | OpenValues | Judge):
            self.run_dispute(world, peer, key, task)
            return
        if isinstance(task, Recompute):
            lies = peer.cheat == "false-verdict" and key[0] == "verify"
            digests = recompute(task, chunk_units=LM_CHUNK_UNITS, variant=b"lie" if lies else b"")
            after_ms = self._time(task.model).recompute_ms * peer.slowness
            world.report(peer, after_ms, RunRecomputed(key, digests, 1_000))
            return
        if isinstance(task, FetchBlobs):
            self._fetch(world, peer, key, task)
            return
        if peer.cheat == "dead-executor" or isinstance(task, Prefetch):
            return
        self._execute(world, peer, key, task)

    def _time(self, model: bytes) -> SimTask:
        return self.by_model.get(model, self.task)

    def _fetch(self, world: World, peer: Peer, key: tuple[Any, ...], task: FetchBlobs) -> None:
        """Blobs are simulated by who would serve them."""
        sources = [world.by_key[source] for source in task.sources]
        is_served = any(source.cheat != "withheld-blob" and source.is_up for source in sources)
        event = RunFetched(key) if is_served else RunFailed(key, OUTPUT_MISSING, "nobody served it")
        world.report(peer, self.task.recompute_ms if is_served else FETCH_PATIENCE_MS, event)

    def run_dispute(
        self, world: World, peer: Peer, key: tuple[Any, ...], task: Trace | OpenValues | Judge
    ) -> None:
        """Who lied about a digest stands by it: its trace deviates where its digest did."""
        if isinstance(task, Judge):
            finding, detail = judge(task.case, chunk_units=LM_CHUNK_UNITS)
            world.report(peer, self.task.judge_ms, RunJudged(key, finding, detail, 100))
            return
        role = key[2]
        is_forged = role == "executor" and self._is_forged(task.chunk)
        variant = _variant(peer) if is_forged else b""
        if (peer.cheat, role) == ("false-verdict", "verifier"):
            variant = b"lie"
        denies = is_forged and peer.cheat in UNIT_LIES
        if isinstance(task, Trace):
            program, digests = trace(task, chunk_units=LM_CHUNK_UNITS, variant=variant, denies=denies)
            event: RunEvent = RunTraced(key, program, digests, 2_000)
        else:
            values, context = open_values(task, chunk_units=LM_CHUNK_UNITS, variant=variant, denies=denies)
            event = RunOpened(key, values, context, 2_000)
        world.report(peer, self._time(task.model).trace_ms * peer.slowness, event)

    def _execute(self, world: World, peer: Peer, key: tuple[Any, ...], task: Execute) -> None:
        units_max = peer.core.provider.engagements[key[1]].award.body.units_max
        units = [*task.prefix, *(derive_unit(task.input, i) for i in range(len(task.prefix), units_max))]
        if peer.cheat in UNIT_LIES:
            first_chunk = len(task.prefix) // LM_CHUNK_UNITS
            for chunk in filter(self._is_forged, range(first_chunk, chunk_count(units_max, LM_CHUNK_UNITS))):
                # The last one of a chunk: nothing after it in the chunk would show.
                units[min(units_max, (chunk + 1) * LM_CHUNK_UNITS) - 1] ^= 1
        unit_ms = self._time(task.model).unit_ms * peer.slowness
        delay = 0
        for first in range(len(task.prefix), units_max, LM_CHUNK_UNITS):
            end = min(units_max, first + LM_CHUNK_UNITS)
            delay += (end - first) * unit_ms
            chunk = first // LM_CHUNK_UNITS
            variant = _variant(peer) if self._is_forged(chunk) else b""
            digest = chunk_digest(task, units[:end], chunk, chunk_units=LM_CHUNK_UNITS, variant=variant)
            world.report(peer, delay, RunOutput(key, first, tuple(units[first:end])))
            world.report(peer, delay, RunChunk(key, chunk, digest))
        world.report(peer, delay, RunFinished(key, units_max, 1_000))

    def _is_forged(self, chunk: int) -> bool:
        return chunk % self.forged_each == self.forged_each - 1


def _variant(peer: Peer) -> bytes:
    """What a cheaper model would make of a chunk."""
    is_cheap = peer.cheat == "wrong-result" or worker_variant(peer.cheat)
    return b"cheap" if is_cheap and peer.cheat not in UNIT_LIES else b""
