"""A network with places: latency by region, bandwidth by peer, and faults that come and go.

Direct frames queue at their sender's uplink and their receiver's downlink. Gossip floods over the links as
gossipsub's mesh does: who has a message passes it on to all neighbours but the one it came from. When it
reaches whom is found for all peers at once, as shortest paths over the links with integers, so one message
costs one event for each tick in which somebody hears it, and not one for each hop. Its bytes are counted
hop by hop, but don't queue behind frames.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from p2p_node.sim.world import Peer, World
from protocols.rulings import Ruling

__all__ = ["FRAME_OVERHEAD_BYTES", "GOSSIP_OVERHEAD_BYTES", "Cut", "RegionalCarrier", "Traffic"]

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

FRAME_OVERHEAD_BYTES = 90
"""TCP/IP, Noise, Yamux and our own frame around one message."""

GOSSIP_OVERHEAD_BYTES = 250
"""The same, and gossipsub's author, number, topic and signature."""

MESH_MAX = 16
"""Neighbours to which a peer passes gossip on."""

TICK_MS = 10
"""Gossip arrives in steps of this."""

NEVER = np.int32(2**28)
"""Later than anything; twice that still fits 32 bits."""
_NEVER = int(NEVER)
PARTS = 2**32
_LUCK_BYTES = 1 << 21
_FORWARDED_MAX = 8_192
SKEW_MS_TRUSTED = 10_000
"""What a peer says whose clock is further off may be refused, so each hop judges it."""


@dataclass(slots=True)
class Traffic:
    """What went over the links, by peer."""

    frames: list[int]
    frame_bytes: list[int]
    gossip_sent: Integers
    gossip_bytes: Integers
    gossip_heard: dict[str, Integers] = field(default_factory=dict)
    """Copies that reached each peer, repeats included, by topic."""
    published: Counter[str] = field(default_factory=Counter)
    published_bytes: Counter[str] = field(default_factory=Counter)
    reach_ppm: list[int] = field(default_factory=list)
    """Of each message: the share of the peers that are up which the flood reached."""
    spread_ms: list[int] = field(default_factory=list)
    """Of each message: until the last of those had it."""
    room_reach_ppm: list[int] = field(default_factory=list)
    """Of each message in a room: the share of its members."""
    room_spread_ms: list[int] = field(default_factory=list)

    @staticmethod
    def of(peers: int) -> Traffic:
        """None yet."""
        return Traffic([0] * peers, [0] * peers, np.zeros(peers, np.int64), np.zeros(peers, np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A partition while it lasts."""

    inside: Flags
    direction: str
    """``both``, ``out`` (what they say is lost) or ``in`` (what is said to them is)."""

    def stops(self, sender: int, receiver: int) -> bool:
        """Whether nothing gets from one to the other."""
        out, back = bool(self.inside[sender]), bool(self.inside[receiver])
        if out == back:
            return False
        return self.direction == "both" or (self.direction == "out") == out


class RegionalCarrier:
    """Carries between regions; see the module."""

    def __init__(
        self,
        *,
        seed: int,
        region: list[int],
        latency_ms: list[list[int]],
        up_kbit: list[int],
        down_kbit: list[int],
        neighbours: int,
        loss: float = 0.0,
        gossip_loss: float = 0.0,
        duplication: float = 0.0,
        reordering: float = 0.0,
        jitter_ms: int = 0,
        surrounded: Mapping[int, frozenset[int]] | None = None,
    ) -> None:
        """A network without faults.

        Args:
            seed: luck of gossip's hops follows from it.
            region: of each peer.
            latency_ms: one way, from region to region.
            up_kbit: each peer's uplink in kbit/s.
            down_kbit: each peer's downlink.
            neighbours: peers that each one connects to when it starts.
            loss: of frames.
            gossip_loss: of each hop.
            duplication: of frames.
            reordering: of frames.
            jitter_ms: at most so much more on each hop.
            surrounded: peers that know only these others, by index.
        """
        peers = len(region)
        self.traffic = Traffic.of(peers)
        self.cuts: list[Cut] = []
        self.deaf = np.zeros(peers, np.bool_)
        self.mute = np.zeros(peers, np.bool_)
        self._has_gray = False
        self._region, self._latency = region, latency_ms
        self._up, self._down = up_kbit, down_kbit
        self._up_free_us, self._down_free_us = [0] * peers, [0] * peers
        self._neighbours = neighbours
        self._loss, self._duplication, self._reordering = loss, duplication, reordering
        self._jitter_ms = jitter_ms
        self._surrounded = surrounded or {}
        self._forwarded: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        # The last row and entry stand for nobody.
        self._mesh = np.full((peers, MESH_MAX), peers, np.int32)
        self._base_ms = np.full((peers, MESH_MAX), NEVER, np.int32)
        self._regions = np.array([*region, 0], np.int32)
        self._matrix = np.array(latency_ms, np.int32)
        self._byte_ns = np.array([8_000_000 // kbit for kbit in up_kbit] + [0], np.int64)
        self._degree = np.zeros(peers, np.int64)
        self._is_up = np.zeros(peers + 1, np.bool_)
        self._luck = _luck_table(seed)
        self._lost_below = np.uint32(int(gossip_loss * (PARTS - 1)))
        self._messages = 0
        self._near: dict[str, dict[int, list[int]]] = {}
        self._near_of = -1

    def gray(self, peer: int, *, deaf: bool, mute: bool) -> None:
        """A peer ceases to hear or to be heard, or begins again."""
        self.deaf[peer], self.mute[peer] = deaf, mute
        self._has_gray = bool(self.deaf.any() or self.mute.any())

    # --- Direct ----------------------------------------------------------------------------------

    def transmit(self, world: World, sender: Peer, receiver: Peer, frame: bytes) -> None:
        """As `Carrier.transmit`."""
        source, target = sender.index, receiver.index
        size = len(frame) + FRAME_OVERHEAD_BYTES
        self.traffic.frames[source] += 1
        self.traffic.frame_bytes[source] += size
        now_us = 1_000 * world.elapsed_ms
        sent_us = max(now_us, self._up_free_us[source]) + 8_000 * size // self._up[source]
        self._up_free_us[source] = sent_us
        if self.is_cut(world, sender, receiver):
            return
        luck = world.luck.random
        copies = 1
        if self._loss and luck() < self._loss:
            return
        if self._duplication and luck() < self._duplication:
            copies = 2
        for _ in range(copies):
            latency_ms = self._latency[self._region[source]][self._region[target]]
            late_ms = latency_ms + int(luck() * (self._jitter_ms + 1))
            if self._reordering and luck() < self._reordering:
                late_ms += (latency_ms + 1) * (1 + int(luck() * 4))
            there_us = max(sent_us + 1_000 * late_ms, self._down_free_us[target])
            there_us += 8_000 * size // self._down[target]
            self._down_free_us[target] = there_us
            world.deliver_frame((there_us - now_us + 999) // 1_000, receiver, sender, frame)

    def is_cut(self, world: World, sender: Peer, receiver: Peer) -> bool:
        """As `Carrier.is_cut`."""
        if not self._has_gray and not self.cuts:
            return False
        source, target = sender.index, receiver.index
        if self._has_gray and (self.mute[source] or self.deaf[target]):
            return True
        return any(cut.stops(source, target) for cut in self.cuts)

    # --- Who knows whom --------------------------------------------------------------------------

    def neighbours(self, world: World, peer: Peer) -> list[Peer]:
        """As `Carrier.neighbours`: anybody who is up, at random."""
        wanted = self._neighbours - len(world.links[peer.index])
        if wanted <= 0:
            return []
        known = world.links[peer.index]
        others = [
            other
            for other in world.peers
            if other.is_up
            and other is not peer
            and other.index not in known
            and self._may_know(peer.index, other.index)
            and len(world.links[other.index]) < MESH_MAX
        ]
        return world.luck.sample(others, min(wanted, len(others)))

    def _may_know(self, one: int, other: int) -> bool:
        for victim, friend in ((one, other), (other, one)):
            if victim in self._surrounded and friend not in self._surrounded[victim]:
                return False
        return True

    def is_apart(self, one: Peer, other: Peer) -> bool:
        """As `Carrier.is_apart`."""
        return not self._may_know(one.index, other.index)

    def _update_mesh(self, world: World) -> None:
        for index in sorted(world.relinked):
            linked = sorted(world.links[index])[:MESH_MAX]
            self._mesh[index] = len(self._region)
            self._base_ms[index] = NEVER
            self._mesh[index, : len(linked)] = linked
            latency = [self._latency[self._region[other]][self._region[index]] for other in linked]
            self._base_ms[index, : len(linked)] = latency
            self._degree[index] = len(linked)
            self._is_up[index] = world.peers[index].is_up
        world.relinked.clear()

    # --- Gossip ----------------------------------------------------------------------------------

    def publish(self, world: World, sender: Peer, topic: str, data: bytes) -> None:
        """As `Carrier.publish`."""
        counted = "rooms" if topic.startswith("room-") else topic
        self.traffic.published[counted] += 1
        self.traffic.published_bytes[counted] += len(data)
        if sender.cheat or abs(world.clock_ms(sender) - world.now_ms) > SKEW_MS_TRUSTED:
            # Each hop judges: what its neighbours refuse gets no further.
            for index in sorted(world.links[sender.index]):
                if not world.hears(world.peers[index], topic):
                    continue
                delay_ms = self._latency[self._region[sender.index]][self._region[index]]
                hop = partial(self._hop, world, world.peers[index], sender, topic, data)
                world.at(delay_ms, hop)
            return
        self._flood(world, sender, topic, data)

    def _hop(self, world: World, receiver: Peer, sender: Peer, topic: str, data: bytes) -> None:
        if world._deliver_gossip(receiver, sender, topic, data) is not Ruling.ACCEPT:
            return
        if (topic, data) in self._forwarded:
            return
        self._forwarded[(topic, data)] = None
        while len(self._forwarded) > _FORWARDED_MAX:
            self._forwarded.popitem(last=False)
        self._flood(world, receiver, topic, data)

    def _flood(self, world: World, source: Peer, topic: str, data: bytes) -> None:
        if world.relinked:
            self._update_mesh(world)
        size = len(data) + GOSSIP_OVERHEAD_BYTES
        if topic.startswith("room-"):
            reached, ticks = self._flood_room(world, source.index, topic, size)
        else:
            arrival, parent = self._arrivals(source.index, size)
            reached = np.flatnonzero(arrival < NEVER)
            self._count(topic, source.index, size, arrival, parent)
            ticks = arrival[reached] // TICK_MS
        order = np.argsort(ticks, kind="stable")
        ticks, reached = ticks[order], reached[order]
        starts = [0, *(np.flatnonzero(np.diff(ticks)) + 1).tolist(), len(reached)]
        indices = reached.tolist()
        peers = world.peers
        for first, end in itertools.pairwise(starts):
            receivers = [peers[index] for index in indices[first:end] if index != source.index]
            if receivers:
                world.deliver_gossip(TICK_MS * (int(ticks[first]) + 1), receivers, source, topic, data)

    def _flood_room(
        self, world: World, source: int, topic: str, size: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """Whom gossip of a room reaches, and in which tick: over the links between its members only.

        A room is small, so the members are gone through one by one, soonest first (Dijkstra).
        """
        members = world.present.get(topic, set())
        near = self._near_in(world, topic)
        peers, region = world.peers, self._region
        is_faultless = not (self._lost_below or self._has_gray or self.cuts)
        soonest, heap = {source: 0}, [(0, source, -1)]
        done: dict[int, int] = {}
        heard: Counter[int] = Counter()
        while heap:
            now_ms, index, parent = heapq.heappop(heap)
            if index in done:
                continue
            done[index] = now_ms
            linked = near.get(index)
            if linked is None:
                linked = near[index] = [i for i in sorted(world.links[index]) if i in members][:MESH_MAX]
            serial_ms = size * int(self._byte_ns[index]) * (len(linked) + 1) // 2_000_000
            latency_ms = self._latency[region[index]]
            sent = 0
            for other in linked:
                if other == parent:
                    continue
                sent += 1
                self._messages += 1
                if not peers[other].is_up or (not is_faultless and self._is_lost(world, index, other)):
                    continue
                heard[other] += 1
                there_ms = now_ms + serial_ms + latency_ms[region[other]]
                if there_ms < soonest.get(other, _NEVER):
                    soonest[other] = there_ms
                    heapq.heappush(heap, (there_ms, other, index))
            self.traffic.gossip_sent[index] += sent
            self.traffic.gossip_bytes[index] += sent * size
        totals: Any = self.traffic.gossip_heard.setdefault("rooms", np.zeros(len(self._region), np.int64))
        for index, count in heard.items():
            totals[index] += count
        self.traffic.room_reach_ppm.append(1_000_000 * len(done) // max(1, len(members | {source})))
        self.traffic.room_spread_ms.append(max(done.values()))
        ticks = np.array([due_ms // TICK_MS for due_ms in done.values()], np.int32)
        return np.array(list(done), np.int64), ticks

    def _near_in(self, world: World, topic: str) -> dict[int, list[int]]:
        """Of members of a room: to whom they pass its gossip on. Kept while nobody moves or relinks."""
        if self._near_of != world.moves_total:
            self._near_of = world.moves_total
            self._near.clear()
        return self._near.setdefault(topic, {})

    def _is_lost(self, world: World, sender: int, receiver: int) -> bool:
        if self._luck[self._messages % len(self._luck)] < self._lost_below:
            return True
        return self.is_cut(world, world.peers[sender], world.peers[receiver])

    def _arrivals(self, source: int, size: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """When a message reaches each peer, in ms from now, and over which of its links.

        Bellman and Ford's relaxation, all peers at once: each asks its neighbours.
        """
        peers = len(self._region)
        mesh = self._mesh
        # A neighbour sends its copies one after another; on average half of them go first.
        serial_ms = size * self._byte_ns * np.append(self._degree + 1, 0) // 2_000_000
        cost = self._base_ms + serial_ms[mesh].astype(np.int32)
        self._messages += 1
        first = self._messages * 40_503 % (len(self._luck) - mesh.size)
        luck = self._luck[first : first + mesh.size].reshape(mesh.shape)
        if self._jitter_ms:
            cost = cost + (luck % np.uint32(self._jitter_ms + 1)).astype(np.int32)
        lost = luck < self._lost_below
        if self._has_gray or self.cuts:
            lost |= self._blocked()
        cost[lost] = NEVER
        cost[~self._is_up[:peers]] = NEVER
        arrival = np.full(peers + 1, NEVER, np.int32)
        arrival[source] = 0
        while True:
            by_link = arrival[mesh] + cost
            soonest = np.minimum(by_link.min(axis=1), arrival[:peers])
            if np.array_equal(soonest, arrival[:peers]):
                break
            arrival[:peers] = soonest
        arrival = arrival[:peers]
        arrival[~self._is_up[:peers]] = NEVER
        return arrival, by_link.argmin(axis=1)

    def _blocked(self) -> Flags:
        mesh = self._mesh
        mute, none = np.append(self.mute, False), np.zeros(1, np.bool_)
        blocked: Flags = mute[mesh] | self.deaf[:, None]
        for cut in self.cuts:
            there = np.append(cut.inside, none)[mesh]
            here = np.broadcast_to(cut.inside[:, None], mesh.shape)
            if cut.direction == "both":
                blocked |= there != here
            elif cut.direction == "out":
                blocked |= there & ~here
            else:
                blocked |= ~there & here & (mesh < len(here))
        return blocked

    def _count(
        self,
        topic: str,
        source: int,
        size: int,
        arrival: npt.NDArray[np.int32],
        parent: npt.NDArray[np.int64],
    ) -> None:
        """Who has it sends it to all neighbours but the one it came from."""
        peers = len(arrival)
        has = np.append(arrival < NEVER, False)
        came_from = self._mesh[np.arange(peers), parent]
        sends = np.where(has[:peers], self._degree - 1, 0)
        sends[source] += 1
        fed = np.bincount(came_from[has[:peers] & (np.arange(peers) != source)], minlength=peers + 1)[:peers]
        heard = np.where(self._is_up[:peers], has[self._mesh].sum(axis=1) - fed, 0)
        self.traffic.gossip_sent += sends
        self.traffic.gossip_bytes += sends * size
        totals: Any = self.traffic.gossip_heard.setdefault(topic, np.zeros(peers, np.int64))
        totals += heard
        up = int(self._is_up[:peers].sum())
        self.traffic.reach_ppm.append(1_000_000 * int(has.sum()) // max(1, up))
        self.traffic.spread_ms.append(int(arrival[has[:peers]].max()))


def _luck_table(seed: int) -> npt.NDArray[np.uint32]:
    """Random numbers by splitmix64: the same on every machine and with every release of numpy."""
    with np.errstate(over="ignore"):
        state = np.arange(1, _LUCK_BYTES + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        state += np.uint64(seed)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((state ^ (state >> np.uint64(31))) >> np.uint64(32)).astype(np.uint32)
