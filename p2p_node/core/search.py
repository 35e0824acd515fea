"""Finding the members of a room that we aren't in: by asking those whom we know, nearer each time.

The first question, to anybody, is who has the ability at all, and how deep its rooms are. Then a member is
sought of the one room that a job lives in, and a few of its members are asked for a part of it each. Whom the
directory of the whole network names for the ability is asked like anybody who is known to have it.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from p2p_node.core.registry import Registry, shard_of
from p2p_node.core.rooms import Room, Rooms, prefix_of
from protocols.limits import OPEN_JOBS_MAX, ROOM_DEPTH_MAX
from protocols.messages import Members, MembersWant

__all__ = ["Question", "Searches"]

Question = tuple[bytes, MembersWant]
"""Whom to ask, and what."""

STRANGERS_ASKED = 3
NEAREST_ASKED = 2
PART_BITS = 2
"""A room's members are asked for in four parts, so that the answers don't overlap."""

QUESTIONS_MAX = 16
"""Of one search: nobody can send us round in circles."""

FRESH_MS = 120_000
"""A room that was asked for less than this ago is known well enough."""

MEMBERS_ENOUGH = 16


@dataclass(slots=True)
class _Search:
    workload: str
    model: bytes
    prefix_at: Callable[[int], int]
    asked: set[bytes] = field(default_factory=set)
    awaited: int = 0
    questions: int = 0
    is_done: bool = False


class Searches:
    """Those under way, by what they are for."""

    def __init__(
        self, own_key: bytes, registry: Registry, rooms: Rooms, connected: set[bytes], luck: random.Random
    ) -> None:
        self._own_key = own_key
        self._registry = registry
        self._rooms = rooms
        self._connected = connected
        self._luck = luck
        self._searches: OrderedDict[bytes, _Search] = OrderedDict()
        self._asked_ms: OrderedDict[Room, int] = OrderedDict()

    def for_job(self, job_id: bytes, workload: str, model: bytes, now_ms: int) -> list[Question]:
        """Look for the members of a job's room; nothing if they are known."""
        return self._begin(job_id, _Search(workload, model, lambda depth: prefix_of(job_id, depth)), now_ms)

    def for_own_room(self, workload: str, model: bytes, now_ms: int) -> list[Question]:
        """Look for the other members of our own room."""
        search = _Search(workload, model, lambda depth: shard_of(self._own_key, depth))
        return self._begin(self._own_key + model, search, now_ms)

    def named(self, workload: str, model: bytes, peers: Iterable[bytes], now_ms: int) -> list[Question]:
        """The directory named peers that have an ability: whoever looks for a room of it may ask them."""
        strangers = list(peers)
        questions: list[Question] = []
        for search in self._searches.values():
            if (search.workload, search.model) != (workload, model):
                continue
            if (depth := self._rooms.depth_of(workload, model)) == 0:
                continue
            depth = depth or 1
            if self._registry.count_in(workload, model, depth, search.prefix_at(depth)):
                continue
            fresh = [key for key in strangers if self._may_ask(search, key)][:STRANGERS_ASKED]
            questions += self._asked(search, [(key, MembersWant(workload, model, 1, 0)) for key in fresh])
        return questions

    def is_done(self, purpose: bytes) -> bool:
        """Whether nothing more is to be learned by asking."""
        search = self._searches.get(purpose)
        return search is None or search.is_done

    def hear(self, sender: bytes, answer: Members, now_ms: int) -> list[Question]:
        """Somebody answered; its adverts are in the registry already. Ask on."""
        questions: list[Question] = []
        for search in self._searches.values():
            if search.is_done or sender not in search.asked:
                continue
            if (search.workload, search.model) == (answer.workload, answer.model):
                search.awaited = max(0, search.awaited - 1)
                questions += self._step(search, now_ms)
        return questions

    def has_asked(self, peer: bytes) -> bool:
        """Whether an answer of this peer is one that we want."""
        return any(peer in search.asked for search in self._searches.values())

    def _begin(self, purpose: bytes, search: _Search, now_ms: int) -> list[Question]:
        self._searches[purpose] = search
        self._searches.move_to_end(purpose)
        while len(self._searches) > OPEN_JOBS_MAX // 16:
            self._searches.popitem(last=False)
        return self._step(search, now_ms)

    def _step(self, search: _Search, now_ms: int) -> list[Question]:
        depth = self._rooms.depth_of(search.workload, search.model)
        if depth == 0:
            search.is_done = True
            return []
        if search.awaited:
            return []
        return self._asked(
            search, self._first(search) if depth is None else self._next(search, depth, now_ms)
        )

    def _asked(self, search: _Search, questions: list[Question]) -> list[Question]:
        questions = questions[: QUESTIONS_MAX - search.questions]
        search.asked |= {peer for peer, _ in questions}
        search.awaited += len(questions)
        search.questions += len(questions)
        search.is_done = not search.awaited
        return questions

    def _first(self, search: _Search) -> list[Question]:
        able = [advert.signer for advert in self._draw(search, 1, 0, STRANGERS_ASKED + 1)]
        others = self._luck.sample(sorted(self._connected), min(len(self._connected), 2 * STRANGERS_ASKED))
        fresh = [key for key in dict.fromkeys([*able, *others]) if self._may_ask(search, key)]
        return [(key, MembersWant(search.workload, search.model, 1, 0)) for key in fresh[:STRANGERS_ASKED]]

    def _next(self, search: _Search, depth: int, now_ms: int) -> list[Question]:
        workload, model, prefix = search.workload, search.model, search.prefix_at(depth)
        room = Room(workload, model, depth, prefix)
        count = self._registry.count_in(workload, model, depth, prefix)
        is_fresh = now_ms < self._asked_ms.get(room, -FRESH_MS) + FRESH_MS
        if (is_fresh or room.topic in self._rooms.joined) and count >= MEMBERS_ENOUGH:
            return []
        members = [a.signer for a in self._draw(search, depth, prefix, 1 << PART_BITS)]
        members = [key for key in members if key != self._own_key and key not in search.asked]
        if members:
            self._asked_ms[room] = now_ms
            self._asked_ms.move_to_end(room)
            while len(self._asked_ms) > OPEN_JOBS_MAX // 16:
                self._asked_ms.popitem(last=False)
            bits = min(PART_BITS, ROOM_DEPTH_MAX - depth)
            return [
                (
                    members[part % len(members)],
                    MembersWant(workload, model, depth + bits, (prefix << bits) + part),
                )
                for part in range(1 << bits)
            ]
        if count:
            return []  # All whom we know there have answered.
        for nearer in range(depth - 1, 0, -1):
            near = [a.signer for a in self._draw(search, nearer, search.prefix_at(nearer), 2 * NEAREST_ASKED)]
            fresh = [key for key in near if self._may_ask(search, key)]
            if fresh:
                return [(key, MembersWant(workload, model, depth, prefix)) for key in fresh[:NEAREST_ASKED]]
        return []

    def _draw(self, search: _Search, depth: int, prefix: int, count: int) -> list[Any]:
        return self._registry.draw(search.workload, search.model, depth, prefix, count=count, luck=self._luck)

    def _may_ask(self, search: _Search, key: bytes) -> bool:
        return key not in search.asked and key != self._own_key
