"""The heap simulator: many `NodeCore`s, one clock, one seeded source of bad luck.

Every delivery, timer and run is an event in a heap, ordered by time and then by number, so the same
seed gives the same trace. What carries messages is given (`Carrier`): it delays, loses, doubles and cuts
them off; what honest peers say must still never be rejected by honest peers.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol

from blake3 import blake3

from p2p_node.core.keyring import Keyring, RealCrypto
from p2p_node.core.node import Act, Capability, NodeCore
from p2p_node.core.outbox import Transmit
from p2p_node.core.request import JobRequest
from p2p_node.core.rooms import COMMON
from p2p_node.hostile import CHEATS as HOSTILE_CHEATS
from p2p_node.hostile import hostile_core
from p2p_node.sim.crypto import SimCrypto, SimKeys
from p2p_node.sim.even import Conditions, EvenCarrier
from p2p_node.sim.peer import Peer
from p2p_node.sim.reader import RememberingReader
from p2p_node.sim.restart import restarted
from p2p_node.sim.work import Workshop
from p2p_node.sim.workload import SimTask
from protocols.digest import tagged
from protocols.effects import (
    CancelRun,
    Greet,
    HangUp,
    Join,
    Leave,
    Notify,
    Penalise,
    Persist,
    Publish,
    Run,
    SetTimer,
)
from protocols.events import RunChunk, RunEvent, RunOutput
from protocols.limits import GRAYLIST_MS, GRAYLIST_POINTS
from protocols.rulings import Ruling

__all__ = ["CHEATS", "NETWORK", "START_MS", "Carrier", "Conditions", "Peer", "World"]

CHEATS = (
    "wrong-result",
    "false-unit",
    "withheld-opening",
    "false-verdict",
    "silent-verifier",
    "dead-executor",
)
"""Kinds that many small worlds are played with; beside them a world takes those of `p2p_node.hostile`."""

WORLD_CHEATS = frozenset({"wrong-result", "false-unit", "false-verdict", "dead-executor", "dead"})
"""Kinds that the world mounts itself: they lie in what they compute, and must lie again in a dispute."""

START_MS = 1_700_000_000_000
NETWORK = "sim"
PPM = 1_000_000
START_SPREAD_MS = 200
GREET_MS = 100
"""Until a dial has made a link."""

LINKS_MAX = 64
LINK_LOST_MS = 6_700
"""How long a link to a peer that vanished seems to live."""


class Carrier(Protocol):
    """What carries messages between the peers of a world."""

    def transmit(self, world: World, sender: Peer, receiver: Peer, frame: bytes) -> None:
        """Put a frame on its way: `World.deliver_frame`, later or never or twice."""
        ...

    def publish(self, world: World, sender: Peer, topic: str, data: bytes) -> None:
        """Put gossip on its way to everybody: `World.deliver_gossip`."""
        ...

    def is_cut(self, world: World, sender: Peer, receiver: Peer) -> bool:
        """Whether nothing gets from one to the other now."""
        ...

    def neighbours(self, world: World, peer: Peer) -> list[Peer]:
        """Whom a peer that starts connects to."""
        ...

    def is_apart(self, one: Peer, other: Peer) -> bool:
        """Whether two peers can't find each other."""
        ...


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
        work_by_model: Mapping[bytes, SimTask] | None = None,
        forged_each: int = 1,
        eclipsed: Mapping[int, frozenset[int]] | None = None,
        real_keys: bool = False,
        without_model: frozenset[int] = frozenset(),
        carrier: Carrier | None = None,
        starts_ms: Mapping[int, int] | None = None,
        has_graylists: bool = False,
        keeps_notes: bool = True,
    ) -> None:
        """Make a world and start its peers.

        Args:
            seed: everything random follows from it.
            capabilities: one for each peer.
            conditions: how bad the network is, if no carrier is given.
            cheats: what some peers do wrong, by index.
            neighbours: how many peers each one is connected to, for anti-entropy.
            work: how long simulated work takes.
            work_by_model: how long it takes for some models.
            forged_each: executors that compute something else do so in each so many-th chunk.
            eclipsed: peers that hear and are heard by gossip only from these others, by index.
            real_keys: Ed25519 and ECVRF instead of their fast stand-ins.
            without_model: peers that can't recompute or trace anything, by index.
            carrier: what carries messages; `EvenCarrier` if not given.
            starts_ms: when some peers start, by index; below 0 for not by themselves.
            has_graylists: whether peers stop hearing whoever has sent them too much rubbish.
            keeps_notes: whether everything that peers tell is kept in `notes`.
        """
        self.now_ms = START_MS
        self.seed = seed
        self.workshop = Workshop(
            task=work or SimTask(),
            by_model=work_by_model or {},
            forged_each=forged_each,
            without_model=without_model,
        )
        self.luck = random.Random(seed)  # noqa: S311 - the point is that it repeats
        self.carrier: Carrier = carrier or EvenCarrier(
            conditions or Conditions(), neighbours=neighbours, eclipsed=eclipsed or {}
        )
        self.peers: list[Peer] = []
        self.by_key: dict[bytes, Peer] = {}
        self.links: list[set[int]] = [set() for _ in capabilities]
        self.present: dict[str, set[int]] = {}
        """Who is in each room, by topic."""
        self.absent: dict[str, set[int]] = {}
        """Who has left a topic that everybody begins on."""
        self.moves_total = 0
        """How often somebody joined or left a topic, or has other links."""
        self.relinked: set[int] = set(range(len(capabilities)))
        """Peers that came, went, or have other links than when their carrier last looked."""
        self.notes: list[tuple[int, int, Notify]] = []
        self.on_step: Callable[[Peer, list[Act]], None] = lambda peer, acts: None
        self.on_event: Callable[[Peer, str, Any], None] | None = None
        """Told of what reaches a peer before it is dealt with: which peer, what sort of thing, and it."""
        self.events_total = 0
        self.steps_total = 0
        self.frames_total = 0
        self._has_graylists = has_graylists
        self._keeps_notes = keeps_notes
        self._trace = blake3(b"p2p-node/sim-trace/2" + seed.to_bytes(8, "little", signed=True))
        self._heap: list[tuple[int, int, Callable[[], object]]] = []
        self._number = 0
        self._performers = self._performed_by()
        self._real_keys = real_keys
        self._crypto = RealCrypto() if real_keys else SimCrypto()
        self._reader = RememberingReader(network=NETWORK, crypto=self._crypto)
        for index, capability in enumerate(capabilities):
            cheat = (cheats or {}).get(index, "")
            peer = Peer(index, self._make_core(index, capability, cheat), cheat)
            peer.is_up = not (starts_ms or {}).get(index, 0)
            self.peers.append(peer)
            self.by_key[peer.core.key] = peer
        for peer in self.peers:
            after_ms = (starts_ms or {}).get(peer.index, 0)
            spread_ms = self.luck.randint(0, START_SPREAD_MS)
            if after_ms >= 0:
                self.at(after_ms + spread_ms, partial(self.start, peer))

    def _make_core(self, index: int, capability: Capability, cheat: str) -> NodeCore:
        seed = self.seed.to_bytes(8, "little", signed=True)
        key_seed = tagged("p2p-node/sim-seed/1", seed, index.to_bytes(4, "little"))
        keys = Keyring(key_seed) if self._real_keys else SimKeys(key_seed)
        make = hostile_core(cheat) if cheat in HOSTILE_CHEATS.keys() - WORLD_CHEATS else NodeCore
        return make(
            keys=keys,
            crypto=self._crypto,
            secret=tagged("p2p-node/sim-secret/1", keys.public),
            network=NETWORK,
            capability=capability,
            jitter=random.Random(self.seed * 1_000_003 + index),  # noqa: S311
            reader=self._reader,
        )

    # --- Driving ---------------------------------------------------------------------------------

    def at(self, after_ms: int, action: Callable[[], object]) -> None:
        """Do ``action`` ``after_ms`` from now."""
        self._number += 1
        heapq.heappush(self._heap, (self.now_ms + max(0, after_ms), self._number, action))

    def submit(self, peer: Peer, request: JobRequest) -> bytes:
        """Have a peer offer a job now; returns the job's id."""
        nonce = self.luck.randbytes(16)
        job_id, acts = peer.core.submit(request, nonce=nonce, now_ms=self.clock_ms(peer))
        self._perform(peer, acts)
        return job_id

    def run(self, *, until_ms: int, stop: Callable[[], bool] = lambda: False) -> None:
        """Go on until ``until_ms`` after the start, or until ``stop`` says so."""
        heap, end_ms = self._heap, START_MS + until_ms
        while heap and heap[0][0] <= end_ms and not stop():
            self.now_ms, number, action = heapq.heappop(heap)
            self.events_total += 1
            self._trace.update(self.now_ms.to_bytes(8, "little") + number.to_bytes(8, "little"))
            action()

    @property
    def trace(self) -> bytes:
        """Digest of everything that happened so far: when, and in which order."""
        return self._trace.digest()

    @property
    def elapsed_ms(self) -> int:
        """Since the world began."""
        return self.now_ms - START_MS

    def clock_ms(self, peer: Peer) -> int:
        """What a peer's own clock shows."""
        if not peer.drift_ppm:
            return self.now_ms + peer.skew_ms
        return self.now_ms + peer.skew_ms + (self.now_ms - START_MS) * peer.drift_ppm // PPM

    # --- Lives of peers --------------------------------------------------------------------------

    def start(self, peer: Peer) -> None:
        """A peer begins, for the first time or again with what its store has, and connects."""
        peer.is_up = True
        self.relinked.add(peer.index)
        peer.lives += 1
        if peer.lives > 1:
            self._restore(peer)
        self._perform(peer, peer.core.start(self.clock_ms(peer)))
        for other in self.carrier.neighbours(self, peer):
            self.connect(peer, other)

    def connect(self, one: Peer, other: Peer) -> None:
        """Two peers have a link."""
        self.links[one.index].add(other.index)
        self.links[other.index].add(one.index)
        self._relink(one.index, other.index)
        self._perform(one, one.core.peer_connected(other.core.key, self.clock_ms(one)))
        self._perform(other, other.core.peer_connected(one.core.key, self.clock_ms(other)))

    def _relink(self, *indices: int) -> None:
        self.relinked.update(indices)
        self.moves_total += 1

    def crash(self, peer: Peer, *, noticed_ms: int = LINK_LOST_MS) -> None:
        """A peer vanishes: nothing reaches it or leaves it any more, and what it didn't keep is gone.

        Args:
            peer: which.
            noticed_ms: how long its neighbours take it to be there.
        """
        peer.is_up = False
        for topic in [*self.present, *self.absent]:
            # Whoever starts again begins in the common room, and in no other.
            self.present.get(topic, set()).discard(peer.index)
            self.absent.get(topic, set()).discard(peer.index)
        self._relink(peer.index, *self.links[peer.index])
        peer.timers.clear()
        peer.runs.clear()
        for index in sorted(self.links[peer.index]):
            self.links[index].discard(peer.index)
            self.at(noticed_ms, partial(self._miss, self.peers[index], peer, peer.lives))
        self.links[peer.index].clear()

    def _miss(self, peer: Peer, gone: Peer, life: int) -> None:
        if peer.is_up and not (gone.is_up and gone.lives > life and gone.index in self.links[peer.index]):
            self._perform(peer, peer.core.peer_disconnected(gone.core.key, self.clock_ms(peer)))

    def _restore(self, peer: Peer) -> None:
        """A new process over the old store, as a node that starts has it."""
        peer.core = self._make_core(peer.index, peer.core.capability, peer.cheat)
        acts, peer.cut_short = restarted(peer.core, peer.store, self.clock_ms(peer))
        self._perform(peer, acts)

    # --- Performing acts -------------------------------------------------------------------------

    def _perform(self, peer: Peer, acts: list[Act]) -> None:
        self.steps_total += 1
        performers = self._performers
        for act in acts:
            performers[type(act)](peer, act)
        if peer.is_up:
            self.on_step(peer, acts)

    def _performed_by(self) -> dict[type, Callable[[Peer, Any], object]]:
        """What performs each sort of act; found by its type, as most of a world's time goes by here."""
        return {
            Transmit: lambda peer, act: self._transmit(peer, act.peer, act.frame),
            SetTimer: lambda peer, act: self._set_timer(peer, act.key, act.at_ms),
            Persist: self._persist,
            Join: lambda peer, act: self._move(peer, act.topic, is_in=True),
            Leave: lambda peer, act: self._move(peer, act.topic, is_in=False),
            Greet: lambda peer, act: self._greet(peer, act.peer),
            HangUp: lambda peer, act: self._hang_up(peer, act.peer),
            Publish: lambda peer, act: self._publish(peer, act.topic, act.message.raw),
            Run: lambda peer, act: self.workshop.run(self, peer, act.key, act.task),
            CancelRun: lambda peer, act: peer.runs.discard(act.key),
            Penalise: lambda peer, act: self._penalise(peer, act.peer, act.points, act.reason),
            Notify: self._note,
        }

    def _persist(self, peer: Peer, act: Persist) -> None:
        if act.value is None:
            peer.store.pop((act.table, act.key), None)
        else:
            peer.store[(act.table, act.key)] = act.value

    def _note(self, peer: Peer, act: Notify) -> None:
        if self._keeps_notes:
            self.notes.append((self.now_ms, peer.index, act))

    def _set_timer(self, peer: Peer, key: tuple[Any, ...], at_ms: int) -> None:
        peer.timers[key] = at_ms
        after_ms = at_ms - self.clock_ms(peer)
        if peer.drift_ppm:
            after_ms = -(-after_ms * PPM // (PPM + peer.drift_ppm))
        self.at(after_ms, partial(self._fire, peer, key, at_ms))

    def _fire(self, peer: Peer, key: tuple[Any, ...], at_ms: int) -> None:
        if peer.timers.get(key) != at_ms:
            return
        if peer.stuck_until_ms > self.now_ms:
            self.at(peer.stuck_until_ms - self.now_ms, partial(self._fire, peer, key, at_ms))
            return
        del peer.timers[key]
        if self.on_event is not None:
            self.on_event(peer, "timer", key)
        self._perform(peer, peer.core.timer_fired(key, self.clock_ms(peer)))

    def _penalise(self, peer: Peer, offender: bytes, points: int, reason: str) -> None:
        if not self._has_graylists:
            peer.penalties.append((offender, points, reason))
            return
        before = peer.offences.get(offender, 0)
        if before < 0 or not points:
            return
        peer.penalties.append((offender, points, reason))
        peer.offences[offender] = before + points
        if before + points >= GRAYLIST_POINTS:
            peer.offences[offender] = -1
            self.at(GRAYLIST_MS, partial(peer.offences.pop, offender, None))

    # --- Network ---------------------------------------------------------------------------------

    def _transmit(self, sender: Peer, to: bytes, frame: bytes) -> None:
        receiver = self.by_key.get(to)
        if receiver is not None and sender.is_up:
            self.carrier.transmit(self, sender, receiver, frame)

    def _deliver_frame(self, receiver: Peer, sender: Peer, frame: bytes) -> None:
        if not receiver.is_up or receiver.offences.get(sender.core.key, 0) < 0:
            return
        if self.carrier.is_cut(self, sender, receiver):
            return
        if receiver.stuck_until_ms > self.now_ms:
            again = partial(self._deliver_frame, receiver, sender, frame)
            self.at(receiver.stuck_until_ms - self.now_ms, again)
            return
        if self.on_event is not None:
            self.on_event(receiver, "frame", (sender, frame))
        self._perform(receiver, receiver.core.frame_received(sender.core.key, frame, self.clock_ms(receiver)))

    def deliver_frame(self, after_ms: int, receiver: Peer, sender: Peer, frame: bytes) -> None:
        """Have a frame arrive after a while."""
        self.frames_total += 1
        self.at(after_ms, partial(self._deliver_frame, receiver, sender, frame))

    def _move(self, peer: Peer, topic: str, *, is_in: bool) -> None:
        """A peer begins or ceases to hear a topic. Those who left the common room are known, not those in."""
        listed = self.absent if topic == COMMON else self.present
        if is_in != (listed is self.absent):
            listed.setdefault(topic, set()).add(peer.index)
        else:
            listed.get(topic, set()).discard(peer.index)
        self.moves_total += 1

    def hears(self, peer: Peer, topic: str) -> bool:
        """Whether a peer is on a topic."""
        if topic.startswith("room-"):
            return peer.index in self.present.get(topic, ())
        return peer.index not in self.absent.get(topic, ())

    def _greet(self, peer: Peer, key: bytes) -> None:
        other = self.by_key.get(key)
        if other is None or not (peer.is_up and other.is_up) or other.index in self.links[peer.index]:
            return
        if self.carrier.is_cut(self, peer, other) or self.carrier.is_cut(self, other, peer):
            return
        if len(self.links[other.index]) < LINKS_MAX and not self.carrier.is_apart(peer, other):
            self.at(GREET_MS, partial(self._meet, peer, other))

    def _meet(self, one: Peer, other: Peer) -> None:
        if one.is_up and other.is_up and other.index not in self.links[one.index]:
            self.connect(one, other)

    def _hang_up(self, peer: Peer, key: bytes) -> None:
        other = self.by_key.get(key)
        if other is None or other.index not in self.links[peer.index]:
            return
        self.links[peer.index].discard(other.index)
        self.links[other.index].discard(peer.index)
        self._relink(peer.index, other.index)
        self.at(0, partial(self._part, peer, other))
        self.at(GREET_MS, partial(self._part, other, peer))

    def _part(self, peer: Peer, other: Peer) -> None:
        if peer.is_up and other.index not in self.links[peer.index]:
            self._perform(peer, peer.core.peer_disconnected(other.core.key, self.clock_ms(peer)))

    def _publish(self, sender: Peer, topic: str, data: bytes) -> None:
        if sender.is_up:
            self.carrier.publish(self, sender, topic, data)

    def _deliver_gossip(self, receiver: Peer, sender: Peer, topic: str, data: bytes) -> Ruling:
        """Have gossip arrive; gives what its receiver makes of it."""
        if not receiver.is_up:
            return Ruling.IGNORE
        if receiver.offences and receiver.offences.get(sender.core.key, 0) < 0:
            return Ruling.IGNORE
        if not self.hears(receiver, topic):
            return Ruling.IGNORE
        if self.carrier.is_cut(self, sender, receiver):
            return Ruling.IGNORE
        if receiver.stuck_until_ms > self.now_ms:
            again = partial(self._deliver_gossip, receiver, sender, topic, data)
            self.at(receiver.stuck_until_ms - self.now_ms, again)
            return Ruling.IGNORE
        now_ms = self.clock_ms(receiver)
        ruling, why = receiver.core.judge(topic, data, now_ms)
        if ruling is Ruling.ACCEPT:
            if self.on_event is not None:
                self.on_event(receiver, "gossip", (sender, data))
            self._perform(receiver, receiver.core.gossip_received(topic, data, sender.core.key, now_ms))
        elif ruling is Ruling.REJECT:
            self._penalise(receiver, sender.core.key, 10, why)
        return ruling

    def deliver_gossip(
        self, after_ms: int, receivers: Iterable[Peer], sender: Peer, topic: str, data: bytes
    ) -> None:
        """Have gossip arrive at some peers after a while."""
        self.at(after_ms, partial(self._deliver_all, list(receivers), sender, topic, data))

    def _deliver_all(self, receivers: list[Peer], sender: Peer, topic: str, data: bytes) -> None:
        for receiver in receivers:
            self._deliver_gossip(receiver, sender, topic, data)

    # --- Work ------------------------------------------------------------------------------------

    def report(self, peer: Peer, after_ms: int, event: RunEvent) -> None:
        """Have a peer's worker report after a while."""
        self.at(after_ms, partial(self._report, peer, peer.lives, event))

    def _report(self, peer: Peer, life: int, event: RunEvent) -> None:
        if event.key not in peer.runs or not peer.is_up or peer.lives != life:
            return
        if peer.stuck_until_ms > self.now_ms:
            self.at(peer.stuck_until_ms - self.now_ms, partial(self._report, peer, life, event))
            return
        if not isinstance(event, RunOutput | RunChunk):
            peer.runs.discard(event.key)
        if self.on_event is not None:
            self.on_event(peer, "run", event)
        self._perform(peer, peer.core.run_event(event, self.clock_ms(peer)))
