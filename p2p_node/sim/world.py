"""The heap simulator: many `NodeCore`s, one clock, one seeded source of bad luck.

Every delivery, timer and run is an event in a heap, ordered by time and then by number, so the same
seed gives the same trace. Direct frames and gossip may be delayed, lost, doubled or cut off by a
partition; what honest peers say must still never be rejected by honest peers.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from blake3 import blake3

from p2p_node.core.keyring import Keyring, RealCrypto
from p2p_node.core.node import Act, Capability, NodeCore
from p2p_node.core.outbox import Transmit
from p2p_node.core.request import JobRequest
from p2p_node.hostile import CHEATS as HOSTILE_CHEATS
from p2p_node.hostile import hostile_core, worker_variant
from p2p_node.sim.crypto import SimCrypto, SimKeys
from p2p_node.sim.program import judge, open_values, trace
from p2p_node.sim.reader import RememberingReader
from p2p_node.sim.workload import SimTask, chunk_digest, derive_unit, recompute
from protocols.digest import tagged
from protocols.effects import (
    CancelRun,
    Execute,
    FetchBlobs,
    Judge,
    Notify,
    OpenValues,
    Penalise,
    Persist,
    Prefetch,
    Publish,
    Recompute,
    Run,
    SetTimer,
    Task,
    Trace,
)
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
from protocols.rulings import Ruling
from protocols.units import chunk_count

__all__ = ["CHEATS", "Conditions", "Peer", "World"]

CHEATS = (
    "wrong-result",
    "false-unit",
    "withheld-opening",
    "false-verdict",
    "silent-verifier",
    "dead-executor",
)
"""Kinds that many small worlds are played with; beside them a world takes those of `p2p_node.hostile`."""

FETCH_PATIENCE_MS = 10_000
"""How long a peer asks for a blob that nobody serves."""

WORLD_CHEATS = frozenset({"wrong-result", "false-unit", "false-verdict", "dead-executor", "dead"})
"""Kinds that the world mounts itself: they lie in what they compute, and must lie again in a dispute."""

UNIT_LIES = frozenset({"false-unit", "spoofed-tokens"})
START_MS = 1_700_000_000_000
NETWORK = "sim"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """How bad the network is."""

    latency_ms: tuple[int, int] = (5, 80)
    loss: float = 0.0
    duplication: float = 0.0
    gossip_loss: float = 0.0
    partitions: tuple[tuple[int, int, int], ...] = ()
    """(from ms, to ms, group size): the first peers are cut off from the rest meanwhile."""


@dataclass(slots=True)
class Peer:
    """One simulated machine: a core, its timers, its runs, and whether it cheats."""

    index: int
    core: NodeCore
    cheat: str = ""
    timers: dict[tuple[Any, ...], int] = field(default_factory=dict)
    runs: set[tuple[Any, ...]] = field(default_factory=set)
    store: dict[tuple[str, bytes], bytes] = field(default_factory=dict)
    penalties: list[tuple[bytes, int, str]] = field(default_factory=list)


class World:
    """Peers, a clock and a heap of events."""

    def __init__(
        self,
        *,
        seed: int,
        capabilities: list[Capability],
        conditions: Conditions | None = None,
        cheats: dict[int, str] | None = None,
        neighbours: int = 6,
        work: SimTask | None = None,
        forged_each: int = 1,
        eclipsed: Mapping[int, frozenset[int]] | None = None,
        real_keys: bool = False,
        without_model: frozenset[int] = frozenset(),
    ) -> None:
        """Make a world and start its peers.

        Args:
            seed: everything random follows from it.
            capabilities: one for each peer.
            conditions: how bad the network is.
            cheats: what some peers do wrong, by index.
            neighbours: how many peers each one is connected to, for anti-entropy.
            work: how long simulated work takes.
            forged_each: executors that compute something else do so in each so many-th chunk.
            eclipsed: peers that hear and are heard by gossip only from these others, by index.
            real_keys: Ed25519 and ECVRF instead of their fast stand-ins.
            without_model: peers that can't recompute or trace anything, by index.
        """
        self.now_ms = START_MS
        self.conditions = conditions or Conditions()
        self.work = work or SimTask()
        self.forged_each = forged_each
        self.eclipsed = eclipsed or {}
        self.without_model = without_model
        self.luck = random.Random(seed)  # noqa: S311 - the point is that it repeats
        self.peers: list[Peer] = []
        self.by_key: dict[bytes, Peer] = {}
        self.notes: list[tuple[int, int, Notify]] = []
        self.on_step: Callable[[Peer], None] = lambda peer: None
        self.events_total = 0
        self.frames_total = 0
        self._trace = blake3(b"p2p-node/sim-trace/1" + seed.to_bytes(8, "little", signed=True))
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._number = 0
        crypto = RealCrypto() if real_keys else SimCrypto()
        reader = RememberingReader(network=NETWORK, crypto=crypto)
        for index, capability in enumerate(capabilities):
            name = index.to_bytes(4, "little")
            cheat = (cheats or {}).get(index, "")
            key_seed = tagged("p2p-node/sim-seed/1", seed.to_bytes(8, "little", signed=True), name)
            keys = Keyring(key_seed) if real_keys else SimKeys(key_seed)
            make = hostile_core(cheat) if cheat in HOSTILE_CHEATS.keys() - WORLD_CHEATS else NodeCore
            core = make(
                keys=keys,
                crypto=crypto,
                secret=tagged("p2p-node/sim-secret/1", keys.public),
                network=NETWORK,
                capability=capability,
                jitter=random.Random(seed * 1_000_003 + index),  # noqa: S311
                reader=reader,
            )
            peer = Peer(index, core, cheat)
            self.peers.append(peer)
            self.by_key[core.key] = peer
        for peer in self.peers:
            self.at(self.luck.randint(0, 200), partial(self._start, peer, neighbours))

    # --- Driving ---------------------------------------------------------------------------------

    def at(self, after_ms: int, action: Callable[[], None]) -> None:
        """Do ``action`` ``after_ms`` from now."""
        self._number += 1
        heapq.heappush(self._heap, (self.now_ms + max(0, after_ms), self._number, action))

    def submit(self, peer: Peer, request: JobRequest) -> bytes:
        """Have a peer offer a job now; returns the job's id."""
        nonce = self.luck.randbytes(16)
        job_id, acts = peer.core.submit(request, nonce=nonce, now_ms=self.now_ms)
        self._perform(peer, acts)
        return job_id

    def run(self, *, until_ms: int, stop: Callable[[], bool] = lambda: False) -> None:
        """Go on until ``until_ms`` after the start, or until ``stop`` says so."""
        while self._heap and self._heap[0][0] <= START_MS + until_ms and not stop():
            self.now_ms, number, action = heapq.heappop(self._heap)
            self.events_total += 1
            self._trace.update(self.now_ms.to_bytes(8, "little") + number.to_bytes(8, "little"))
            action()

    @property
    def trace(self) -> bytes:
        """Digest of everything that happened so far: when, and in which order."""
        return self._trace.digest()

    def crash(self, peer: Peer) -> None:
        """A peer vanishes: nothing reaches it or leaves it any more."""
        peer.cheat = "dead"
        peer.timers.clear()
        peer.runs.clear()

    def _start(self, peer: Peer, neighbours: int) -> None:
        self._perform(peer, peer.core.start(self.now_ms))
        others = [other for other in self.peers if other is not peer and not self._is_eclipsed(peer, other)]
        for other in self.luck.sample(others, min(neighbours, len(others))):
            self._perform(peer, peer.core.peer_connected(other.core.key, self.now_ms))
            self._perform(other, other.core.peer_connected(peer.core.key, self.now_ms))

    # --- Performing acts -------------------------------------------------------------------------

    def _perform(self, peer: Peer, acts: list[Act]) -> None:
        for act in acts:
            match act:
                case Transmit(to, frame):
                    self._transmit(peer, to, frame)
                case Publish(topic, message):
                    self._publish(peer, topic, message.raw)
                case SetTimer(key, at_ms):
                    self._set_timer(peer, key, at_ms)
                case Run(key, task):
                    self._run(peer, key, task)
                case CancelRun(key):
                    peer.runs.discard(key)
                case Persist(table, key, value):
                    if value is None:
                        peer.store.pop((table, key), None)
                    else:
                        peer.store[(table, key)] = value
                case Penalise(offender, points, reason):
                    peer.penalties.append((offender, points, reason))
                case Notify():
                    self.notes.append((self.now_ms, peer.index, act))
        if peer.cheat != "dead":
            self.on_step(peer)

    def _set_timer(self, peer: Peer, key: tuple[Any, ...], at_ms: int) -> None:
        peer.timers[key] = at_ms

        def fire() -> None:
            if peer.timers.get(key) == at_ms:
                del peer.timers[key]
                self._perform(peer, peer.core.timer_fired(key, self.now_ms))

        self.at(at_ms - self.now_ms, fire)

    # --- Network ---------------------------------------------------------------------------------

    def _is_cut(self, one: Peer, other: Peer) -> bool:
        elapsed = self.now_ms - START_MS
        for start, end, size in self.conditions.partitions:
            if start <= elapsed < end and (one.index < size) != (other.index < size):
                return True
        return False

    def _is_eclipsed(self, one: Peer, other: Peer) -> bool:
        """Whether nothing that is gossiped gets from one to the other, because one of them is surrounded."""
        return bool(self.eclipsed) and any(
            victim.index in self.eclipsed and friend.index not in self.eclipsed[victim.index]
            for victim, friend in ((one, other), (other, one))
        )

    def _copies(self, loss: float) -> int:
        if self.luck.random() < loss:
            return 0
        return 2 if self.luck.random() < self.conditions.duplication else 1

    def _latency_ms(self) -> int:
        low, high = self.conditions.latency_ms
        return low + int(self.luck.random() * (high - low + 1))

    def _transmit(self, sender: Peer, to: bytes, frame: bytes) -> None:
        receiver = self.by_key.get(to)
        if receiver is None or sender.cheat == "dead" or self._is_cut(sender, receiver):
            return
        for _ in range(self._copies(self.conditions.loss)):
            self.frames_total += 1
            self.at(self._latency_ms(), partial(self._deliver_frame, receiver, sender, frame))

    def _deliver_frame(self, receiver: Peer, sender: Peer, frame: bytes) -> None:
        if receiver.cheat == "dead" or self._is_cut(sender, receiver):
            return
        self._perform(receiver, receiver.core.frame_received(sender.core.key, frame, self.now_ms))

    def _publish(self, sender: Peer, topic: str, data: bytes) -> None:
        if sender.cheat == "dead":
            return
        for receiver in self.peers:
            if receiver is sender or self._is_cut(sender, receiver) or self._is_eclipsed(sender, receiver):
                continue
            for _ in range(self._copies(self.conditions.gossip_loss)):
                # A flood takes a few hops.
                hops = 1 + int(self.luck.random() * 3)
                self.at(
                    self._latency_ms() * hops,
                    partial(self._deliver_gossip, receiver, sender, topic, data),
                )

    def _deliver_gossip(self, receiver: Peer, sender: Peer, topic: str, data: bytes) -> None:
        if receiver.cheat == "dead" or self._is_cut(sender, receiver):
            return
        ruling, why = receiver.core.judge(topic, data, self.now_ms)
        if ruling is Ruling.ACCEPT:
            acts = receiver.core.gossip_received(topic, data, sender.core.key, self.now_ms)
            self._perform(receiver, acts)
        elif ruling is Ruling.REJECT:
            receiver.penalties.append((sender.core.key, 10, why))

    # --- Work ------------------------------------------------------------------------------------

    def _run(self, peer: Peer, key: tuple[Any, ...], task: Task) -> None:
        peer.runs.add(key)
        if peer.index in self.without_model and not isinstance(task, Judge):
            # What it asks others to do it can't do again; but anybody can be a referee.
            missing = RunFailed(key, "model", "this peer doesn't have the model")
            self.at(0, partial(self._report, peer, missing))
            return
        if isinstance(task, Trace | OpenValues | Judge):
            self._run_dispute(peer, key, task)
            return
        if isinstance(task, Recompute):
            lies = peer.cheat == "false-verdict" and key[0] == "verify"
            digests = recompute(task, chunk_units=LM_CHUNK_UNITS, variant=b"lie" if lies else b"")
            self.at(self.work.recompute_ms, lambda: self._report(peer, RunRecomputed(key, digests, 1_000)))
            return
        if isinstance(task, FetchBlobs):
            self._fetch(peer, key, task)
            return
        if peer.cheat == "dead-executor" or isinstance(task, Prefetch):
            return
        self._execute(peer, key, task)

    def _fetch(self, peer: Peer, key: tuple[Any, ...], task: FetchBlobs) -> None:
        """Blobs are simulated by who would serve them."""
        cheats = {other.core.key: other.cheat for other in self.peers}
        is_served = any(cheats[source] != "withheld-blob" for source in task.sources)
        event = RunFetched(key) if is_served else RunFailed(key, OUTPUT_MISSING, "nobody served it")
        after_ms = self.work.recompute_ms if is_served else FETCH_PATIENCE_MS
        self.at(after_ms, partial(self._report, peer, event))

    def _run_dispute(self, peer: Peer, key: tuple[Any, ...], task: Trace | OpenValues | Judge) -> None:
        """Who lied about a digest stands by it: its trace deviates where its digest did."""
        if isinstance(task, Judge):
            finding, detail = judge(task.case, chunk_units=LM_CHUNK_UNITS)
            event: RunEvent = RunJudged(key, finding, detail, 100)
            self.at(self.work.judge_ms, partial(self._report, peer, event))
            return
        role = key[2]
        is_forged = role == "executor" and self._is_forged(task.chunk)
        variant = self._variant(peer) if is_forged else b""
        if (peer.cheat, role) == ("false-verdict", "verifier"):
            variant = b"lie"
        denies = is_forged and peer.cheat in UNIT_LIES
        if isinstance(task, Trace):
            program, digests = trace(task, chunk_units=LM_CHUNK_UNITS, variant=variant, denies=denies)
            event = RunTraced(key, program, digests, 2_000)
        else:
            values, context = open_values(task, chunk_units=LM_CHUNK_UNITS, variant=variant, denies=denies)
            event = RunOpened(key, values, context, 2_000)
        self.at(self.work.trace_ms, partial(self._report, peer, event))

    def _execute(self, peer: Peer, key: tuple[Any, ...], task: Execute) -> None:
        units_max = self._units_max(peer, key)
        units = [*task.prefix, *(derive_unit(task.input, i) for i in range(len(task.prefix), units_max))]
        if peer.cheat in UNIT_LIES:
            first_chunk = len(task.prefix) // LM_CHUNK_UNITS
            for chunk in filter(self._is_forged, range(first_chunk, chunk_count(units_max, LM_CHUNK_UNITS))):
                # The last one of a chunk: nothing after it in the chunk would show.
                units[min(units_max, (chunk + 1) * LM_CHUNK_UNITS) - 1] ^= 1
        delay = 0
        for first in range(len(task.prefix), units_max, LM_CHUNK_UNITS):
            end = min(units_max, first + LM_CHUNK_UNITS)
            delay += (end - first) * self.work.unit_ms
            output = RunOutput(key, first, tuple(units[first:end]))
            chunk = first // LM_CHUNK_UNITS
            variant = self._variant(peer) if self._is_forged(chunk) else b""
            digest = chunk_digest(task, units[:end], chunk, chunk_units=LM_CHUNK_UNITS, variant=variant)
            done = RunChunk(key, chunk, digest)
            self.at(delay, partial(self._report, peer, output))
            self.at(delay, partial(self._report, peer, done))
        self.at(delay, partial(self._report, peer, RunFinished(key, units_max, 1_000)))

    def _is_forged(self, chunk: int) -> bool:
        return chunk % self.forged_each == self.forged_each - 1

    @staticmethod
    def _variant(peer: Peer) -> bytes:
        """What a cheaper model would make of a chunk."""
        is_cheap = peer.cheat == "wrong-result" or worker_variant(peer.cheat)
        return b"cheap" if is_cheap and peer.cheat not in UNIT_LIES else b""

    @staticmethod
    def _units_max(peer: Peer, key: tuple[Any, ...]) -> int:
        return peer.core.provider.engagements[key[1]].award.body.units_max

    def _report(self, peer: Peer, event: RunEvent) -> None:
        if event.key in peer.runs and peer.cheat != "dead":
            if not isinstance(event, RunOutput | RunChunk):
                peer.runs.discard(event.key)
            self._perform(peer, peer.core.run_event(event, self.now_ms))
