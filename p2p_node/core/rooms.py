"""Rooms: who hears of which jobs in a network too large for everybody to hear of all.

While few peers are about, everybody shares the common room. When more come, each ability (a workload and a
model) has a room of its own, and a room that grows too full splits in two by a digest of its members' keys,
again and again. How often an ability's room has been split is its *depth*: 0 is the common room, 1 all that
have the ability, 2 one half of them. A peer chooses its depth by how many it hears, and is also in the room
above and below while its neighbours may disagree with it by one. A job lives in one room, named by its id.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from p2p_node.core.census import Census
from p2p_node.core.registry import Registry, shard_of
from protocols.digest import tagged
from protocols.effects import Effect, Join, Leave
from protocols.envelope import Signed
from protocols.limits import OPEN_JOBS_MAX, ROOM_DEPTH_MAX
from protocols.messages import Advert, Offering

__all__ = ["COMMON", "ROOM_MERGE", "ROOM_SPLIT", "Room", "Rooms"]

COMMON = "jobs"
"""Topic of the room at depth 0."""

ROOM_SPLIT = 256
"""A room that has more members than this is too full."""

ROOM_MERGE = 96
"""One that has fewer is too empty. Far enough below half of the other that nobody goes to and fro."""

ROOMS_FROM_PEERS = 64
"""Below so many peers nobody can take the network for a large one, and nobody needs a room of its own."""

LEARNED_MS = 10 * 60_000
"""What others say of the depth of an ability that we haven't counts for so long."""

LEARNED_MAX = 256
CLAIMS_MAX = 5
Ability = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class Room:
    """The members of an ability whose keys' digests begin with ``prefix``, in ``depth - 1`` bits."""

    workload: str
    model: bytes
    depth: int
    prefix: int

    @property
    def topic(self) -> str:
        """Its gossip topic's short name."""
        parts = (self.workload.encode(), self.model, bytes([self.depth]), self.prefix.to_bytes(2, "big"))
        return f"room-{tagged('p2p-node/room/1', *parts)[:16].hex()}"

    def has(self, advert: Signed[Advert]) -> bool:
        """Whether a peer belongs here."""
        able = any(self.is_for(offering) for offering in advert.body.offerings)
        return able and shard_of(advert.signer, self.depth) == self.prefix

    def is_for(self, named: Any) -> bool:
        """Whether a body or record names this room's ability."""
        return (named.workload, named.model) == (self.workload, self.model)

    def holds(self, job_id: bytes, named: Any) -> bool:
        """Whether a job of this ability, by its id, lives here."""
        return self.is_for(named) and prefix_of(job_id, self.depth) == self.prefix


def prefix_of(digest: bytes, depth: int) -> int:
    """The first ``depth - 1`` bits of a digest."""
    return int.from_bytes(digest[:2], "big") >> (17 - depth) if depth > 1 else 0


class Rooms:
    """The rooms that one peer is in, and those it knows of."""

    def __init__(
        self, own_key: bytes, registry: Registry, offerings: Callable[[], Iterable[Offering]]
    ) -> None:
        """In the common room, and in no other.

        Args:
            own_key: ours.
            registry: whom we know.
            offerings: what we offer now.
        """
        self.census = Census()
        self.is_wide = False
        """Whether the network is too large for one room."""
        self.joined: dict[str, Room] = {}
        self.is_in_common = True
        self._own_key = own_key
        self._registry = registry
        self._offerings = offerings
        self._depths: dict[Ability, int] = {}
        self._learned: OrderedDict[Ability, tuple[list[int], int]] = OrderedDict()
        self._depth_of_job: OrderedDict[bytes, int] = OrderedDict()

    # --- Where we are ----------------------------------------------------------------------------

    def review(self, now_ms: int) -> list[Effect]:
        """Count who is about, and move to the rooms that follow from it."""
        peers = self.census.review(now_ms, known=len(self._registry))
        self.is_wide = peers > ROOM_SPLIT or (self.is_wide and peers >= ROOM_MERGE)
        abilities = dict.fromkeys((offering.workload, offering.model) for offering in self._offerings())
        self._depths = {ability: self._settle(ability) for ability in abilities}
        wanted: dict[str, Room] = {}
        for (workload, model), depth in self._depths.items() if peers >= ROOMS_FROM_PEERS else ():
            here = self._own_room(workload, model, depth)
            wanted[here.topic] = here
            count = self._registry.count_in(workload, model, depth, here.prefix)
            if count >= ROOM_SPLIT // 2 and depth < ROOM_DEPTH_MAX:
                below = self._own_room(workload, model, depth + 1)
                wanted[below.topic] = below
            if count <= 2 * ROOM_MERGE and depth > 1:
                above = self._own_room(workload, model, depth - 1)
                wanted[above.topic] = above
        return [*self._move_common(peers), *self._move(wanted)]

    def _settle(self, ability: Ability) -> int:
        depth = self._depths.get(ability, 1)
        while True:
            count = self._registry.count_in(*ability, depth, shard_of(self._own_key, depth))
            if count > ROOM_SPLIT and depth < ROOM_DEPTH_MAX:
                depth += 1
            elif count < ROOM_MERGE and depth > 1:
                # Whoever has just come knows few, and must not take its room for an empty one.
                return depth if self._learned_depth(ability) == depth else depth - 1
            else:
                return depth

    def _own_room(self, workload: str, model: bytes, depth: int) -> Room:
        return Room(workload, model, depth, shard_of(self._own_key, depth))

    def _move_common(self, peers: int) -> list[Effect]:
        # Others may take the network for smaller than we do.
        was_in, self.is_in_common = self.is_in_common, not self.is_wide or peers < 2 * ROOM_SPLIT
        if was_in == self.is_in_common:
            return []
        return [Join(COMMON) if self.is_in_common else Leave(COMMON)]

    def _move(self, wanted: dict[str, Room]) -> list[Effect]:
        left = [Leave(topic) for topic in self.joined if topic not in wanted]
        entered = [Join(topic) for topic in wanted if topic not in self.joined]
        self.joined = wanted
        # The registry keeps the members of the rooms that we are in before others.
        self._registry.keep_members(tuple(wanted.values()))
        return [*left, *entered]

    def home_topics(self) -> list[str]:
        """Topics of our own rooms, at the depths that we take for right."""
        rooms = (self._own_room(*ability, depth) for ability, depth in self._depths.items())
        return [room.topic for room in rooms if room.topic in self.joined]

    @property
    def is_undivided(self) -> bool:
        """Whether there is only the common room, as far as we know."""
        # Whoever has just restarted hears from others how large the network is, but has jobs from before.
        return not self.is_wide and not self.joined and not any(self._depth_of_job.values())

    def depth_of(self, workload: str, model: bytes) -> int | None:
        """How deep the rooms of an ability are now; None if nobody has told us."""
        if not self.is_wide:
            return 0
        own = self._depths.get((workload, model))
        return own if own is not None else self._learned_depth((workload, model))

    def _learned_depth(self, ability: Ability) -> int | None:
        claims, _ = self._learned.get(ability, ([], 0))
        # The lower middle: it takes as many liars as honest peers to send us where nobody is.
        return sorted(claims)[(len(claims) - 1) // 2] if claims else None

    def learn(self, workload: str, model: bytes, depth: int, now_ms: int) -> None:
        """A member said how deep the rooms of its ability are."""
        ability = (workload, model)
        claims, _ = self._learned.pop(ability, ([], 0))
        self._learned[ability] = ([*claims, min(depth, ROOM_DEPTH_MAX)][-CLAIMS_MAX:], now_ms + LEARNED_MS)
        while len(self._learned) > LEARNED_MAX:
            self._learned.popitem(last=False)
        if ability in self._depths:
            self._depths[ability] = max(self._depths[ability], self._learned_depth(ability) or 1)

    def forget(self, now_ms: int) -> None:
        """Forget what was learned long ago."""
        self._learned = OrderedDict(
            (ability, entry) for ability, entry in self._learned.items() if entry[1] > now_ms
        )

    # --- Where a job is --------------------------------------------------------------------------

    def place(self, job_id: bytes, depth: int) -> None:
        """Remember in which room a job lives."""
        self._depth_of_job[job_id] = depth
        while len(self._depth_of_job) > OPEN_JOBS_MAX:
            self._depth_of_job.popitem(last=False)

    def room_of(self, job_id: bytes, named: Any) -> Room | None:
        """The room of a job with this ability; None for the common room.

        Args:
            job_id: id of its offer.
            named: names its workload and model.
        """
        depth = self._depth_of_job.get(job_id)
        if depth is None:
            depth = self.depth_of(named.workload, named.model) or 0
        if not depth:
            return None
        return Room(named.workload, named.model, depth, prefix_of(job_id, depth))

    def depth_of_job(self, job_id: bytes) -> int:
        """How deep the room is that a job was placed in; 0 if it wasn't."""
        return self._depth_of_job.get(job_id, 0)

    def is_placed(self, job_id: bytes) -> bool:
        """Whether a job's room is known, and not only supposed."""
        return job_id in self._depth_of_job

    def hearing(self, job_id: bytes, named: Any) -> Callable[[bytes], bool]:
        """Tells of a peer that has the ability whether it hears of a job.

        Args:
            job_id: id of its offer; everybody hears of an empty one.
            named: names its workload and model.
        """
        room = self.room_of(job_id, named) if job_id else None
        if room is None:
            return lambda key: True
        # Where nobody has told us, the requester may be one step ahead.
        depth = room.depth if job_id in self._depth_of_job else min(room.depth + 1, ROOM_DEPTH_MAX)
        prefix = prefix_of(job_id, depth)
        return lambda key: shard_of(key, depth) == prefix

    def shares(self, topic: str, peer: bytes) -> bool:
        """Whether a peer, by its advert, hears a topic that we hear."""
        room = self.joined.get(topic)
        if room is None:
            return not topic.startswith("room-")
        advert = self._registry.get(peer)
        return advert is not None and room.has(advert)
