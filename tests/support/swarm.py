"""A handful of `NodeCore`s with real keys, run to the end of a job on one heap of events.

No loss and a fixed delay: it is the shortest way to real evidence. Faults are put in by hand: a
`runner` that computes something false, or a `lost` filter that eats messages.
"""

from __future__ import annotations

import heapq
import itertools
import random
import struct
from collections.abc import Callable, Iterable
from typing import Any

from p2p_node.core.node import Act, Capability, NodeCore
from p2p_node.core.outbox import Transmit, split_frame
from p2p_node.core.request import JobRequest
from p2p_node.core.requester import Job
from protocols.bidding import Ability
from protocols.digest import tagged
from protocols.effects import Execute, Publish, Recompute, Run, SetTimer, Task
from protocols.envelope import Signed, open_envelope
from protocols.errors import PeerFault
from protocols.events import RunChunk, RunEvent, RunFailed, RunFinished, RunOutput, RunRecomputed
from protocols.messages import Offering
from protocols.rulings import Ruling
from protocols.units import chunk_count
from tests.support.keys import CRYPTO, keyring

__all__ = ["CHUNK_UNITS", "MODEL", "NETWORK", "UNITS_MAX", "Runner", "Swarm", "honest_digest", "request"]

NETWORK = "testnet"
MODEL = tagged("p2p-node/test-model/1")
CHUNK_UNITS = 4
UNITS_MAX = 30
START_MS = 1_700_000_000_000
DELAY_MS = 5


def honest_units(data: bytes) -> tuple[int, ...]:
    """The output of the test workload: integers hashed from the input."""
    return tuple(
        int.from_bytes(tagged("p2p-node/test-unit/1", data, bytes([i]))[:4], "little")
        for i in range(UNITS_MAX)
    )


def honest_digest(data: bytes, units: tuple[int, ...], chunk: int) -> bytes:
    """The test workload's digest of one chunk: of the input and every unit up to the chunk's end."""
    seen = units[: (chunk + 1) * CHUNK_UNITS]
    return tagged("p2p-node/test-digest/1", data, struct.pack(f"<{len(seen)}I", *seen))


class Runner:
    """One peer's worker; subclasses cheat by overriding `digest`."""

    def digest(self, data: bytes, units: tuple[int, ...], chunk: int, *, is_execution: bool) -> bytes:
        """The digest that this peer gives for a chunk."""
        return honest_digest(data, units, chunk)

    def run(self, key: tuple[Any, ...], task: Task) -> list[RunEvent]:
        """Every event of a run, in order."""
        if not isinstance(task, Execute | Recompute):
            return [RunFailed(key, "unsupported", "the test workload has no operators")]
        if isinstance(task, Recompute):
            found = tuple(
                (chunk, self.digest(task.input, task.units, chunk, is_execution=False))
                for chunk in task.chunks
            )
            return [RunRecomputed(key, found, 10)]
        units = honest_units(task.input)
        events: list[RunEvent] = []
        for chunk in range(len(task.prefix) // CHUNK_UNITS, chunk_count(UNITS_MAX, CHUNK_UNITS)):
            first = chunk * CHUNK_UNITS
            events.append(RunOutput(key, first, units[first : first + CHUNK_UNITS]))
            digest = self.digest(task.input, units, chunk, is_execution=True)
            events.append(RunChunk(key, chunk, digest))
        return [*events, RunFinished(key, UNITS_MAX, 100)]


def request(**changes: Any) -> JobRequest:
    """A job of 8 chunks in segments of 2; the last chunk is short."""
    fields: dict[str, Any] = {
        "name": "test",
        "workload": "test.count",
        "model": MODEL,
        "profile": "exact14",
        "input": b"In the beginning",
        "input_units": 3,
        "units_max": UNITS_MAX,
        "chunk_units": CHUNK_UNITS,
        "segment_chunks": 2,
        "window_ms": 500,
        "price_micros_max": 500,
        "expected_verifiers_milli": 20_000,
        "samples": 1,
        "answer_ms": 2_000,
    }
    return JobRequest(**(fields | changes))


def _ability(price_micros: int) -> Ability:
    offering = Offering("test.count", MODEL, ("exact14", "native"), price_micros, 1_000_000, True)
    return Ability(offering, "cpu", 10_000, 2**30, CHUNK_UNITS)


class Swarm:
    """Peers 0..count-1, all linked to each other. Peer 0 serves nothing: it is the client."""

    def __init__(
        self,
        count: int,
        *,
        runners: dict[int, Runner] | None = None,
        lost: Callable[[bytes, Signed[Any]], bool] = lambda sender, message: False,
    ) -> None:
        """Make and link the peers; peer n asks 100 + n micro-units, so peer 1 is the cheapest.

        Args:
            count: how many.
            runners: workers that aren't honest, by peer number.
            lost: (sender, direct message) to whether the network loses it.
        """
        self.now_ms = START_MS
        self.nodes: dict[bytes, NodeCore] = {}
        self.keys = [keyring(number).public for number in range(count)]
        self._runners: dict[bytes, Runner] = {}
        self._lost = lost
        self._heap: list[tuple[int, int, Callable[[], Iterable[Act]], bytes]] = []
        self._order = itertools.count()
        self._timers: dict[tuple[bytes, tuple[Any, ...]], int] = {}
        for number, key in enumerate(self.keys):
            self._runners[key] = (runners or {}).get(number, Runner())
            self.nodes[key] = NodeCore(
                keys=keyring(number),
                crypto=CRYPTO,
                secret=tagged("p2p-node/test-secret/1", key),
                network=NETWORK,
                capability=Capability(abilities=(_ability(100 + number),) if number else (), slots_total=2),
                jitter=random.Random(number),
            )
        for key, node in self.nodes.items():
            self._perform(key, node.start(self.now_ms))
        for key, node in self.nodes.items():
            for other in self.keys:
                if other != key:
                    self._perform(key, node.peer_connected(other, self.now_ms))
        self.run_until(lambda: self.now_ms >= START_MS + 2_000)

    def run_job(self, job: JobRequest) -> Job:
        """Submit a job at peer 0 and run until it is final."""
        client = self.nodes[self.keys[0]]
        job_id, acts = client.submit(job, nonce=bytes(32), now_ms=self.now_ms)
        self._perform(client.key, acts)
        running = client.jobs[job_id]
        self.run_until(lambda: running.is_final)
        return running

    def run_until(self, is_done: Callable[[], bool]) -> None:
        """Let events happen, in the order of their time and then of their making."""
        for _ in range(200_000):
            if is_done():
                return
            at_ms, _, happen, key = heapq.heappop(self._heap)
            self.now_ms = max(self.now_ms, at_ms)
            self._perform(key, happen())
        raise AssertionError("the swarm didn't come to an end")

    def _at(self, at_ms: int, key: bytes, happen: Callable[[], Iterable[Act]]) -> None:
        heapq.heappush(self._heap, (at_ms, next(self._order), happen, key))

    def _perform(self, key: bytes, acts: Iterable[Act]) -> None:
        for act in acts:
            match act:
                case Publish(topic, message):
                    for other in self.keys:
                        if other != key:
                            self._at(
                                self.now_ms + DELAY_MS, other, self._gossip(other, topic, message.raw, key)
                            )
                case Transmit(peer, frame):
                    if not self._is_lost(key, frame):
                        self._at(self.now_ms + DELAY_MS, peer, self._frame(peer, key, frame))
                case SetTimer(timer, at_ms):
                    self._timers[(key, timer)] = at_ms
                    self._at(max(at_ms, self.now_ms), key, self._timer(key, timer, at_ms))
                case Run(run_key, task):
                    for event in self._runners[key].run(run_key, task):
                        self._at(self.now_ms + DELAY_MS, key, self._run_event(key, event))

    def _is_lost(self, sender: bytes, frame: bytes) -> bool:
        is_ack, rest = split_frame(frame)
        if is_ack:
            return False
        try:
            message: Signed[Any] = open_envelope(rest, network=NETWORK, crypto=CRYPTO)
        except PeerFault:
            return False
        return self._lost(sender, message)

    def _gossip(self, key: bytes, topic: str, raw: bytes, sender: bytes) -> Callable[[], Iterable[Act]]:
        def happen() -> Iterable[Act]:
            node = self.nodes[key]
            if node.judge(topic, raw, self.now_ms)[0] is not Ruling.ACCEPT:
                return []
            return node.gossip_received(topic, raw, sender, self.now_ms)

        return happen

    def _frame(self, key: bytes, sender: bytes, frame: bytes) -> Callable[[], Iterable[Act]]:
        return lambda: self.nodes[key].frame_received(sender, frame, self.now_ms)

    def _timer(self, key: bytes, timer: tuple[Any, ...], at_ms: int) -> Callable[[], Iterable[Act]]:
        def happen() -> Iterable[Act]:
            # Setting a timer again replaces it.
            if self._timers.get((key, timer)) != at_ms:
                return []
            del self._timers[(key, timer)]
            return self.nodes[key].timer_fired(timer, self.now_ms)

        return happen

    def _run_event(self, key: bytes, event: RunEvent) -> Callable[[], Iterable[Act]]:
        return lambda: self.nodes[key].run_event(event, self.now_ms)
