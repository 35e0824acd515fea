"""A peer's dealings with rooms: what it says in which, whom it asks about them, and whom it keeps close.

`Rooms` knows where a peer belongs and `Searches` what it asks; this turns both into messages.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from p2p_node.core.company import GREETED_MAX, Company
from p2p_node.core.gossip import GossipBook
from p2p_node.core.registry import check_advert
from p2p_node.core.rooms import COMMON, ROOM_MERGE, ROOM_SPLIT, Room
from p2p_node.core.search import Question
from protocols.effects import Effect, Greet, Publish, Send, SetTimer
from protocols.envelope import Signed
from protocols.errors import Rejected
from protocols.limits import ROOM_MEMBERS_TOLD_BYTES_MAX, ROOM_MEMBERS_TOLD_MAX
from protocols.messages import Advert, Entrusted, Headcount, Members, MembersWant, Offer, Widening

if TYPE_CHECKING:
    from p2p_node.core.node import NodeCore

__all__ = ["Society"]

ENTRUSTED_TO = 4
"""Members who are handed gossip for a room that we aren't in: one that keeps it to itself does no harm."""

ENTRUST_MS = 10_000
ASK_MS = 2_000
ROOM_LINKS = 4
"""Links that a peer wants to members of each of its rooms: gossip finds its way over them."""

COMPANY_MAX = 64
"""With so many links a peer looks for no more of them."""

LOOK_AROUND_MS = 60_000
"""How often a peer that seems alone in its room asks for others."""

TOLD_EACH_MS = 60_000
TOLD_MAX = 64
"""Answers that one peer gets from us in that time: a question is small, an answer isn't."""

ASKERS_MAX = 4_096


class Society:
    """Of one peer."""

    def __init__(self, node: NodeCore, gossip: GossipBook, luck: random.Random) -> None:
        self._node = node
        self._gossip = gossip
        self._luck = luck
        self.company = Company(node.connected)
        self._told: OrderedDict[bytes, tuple[int, int]] = OrderedDict()
        self._looked_ms: dict[tuple[str, bytes], int] = {}
        self._home: list[str] = []

    # --- What is said where ----------------------------------------------------------------------

    def say(self, message: Signed[Any], now_ms: int) -> Publish | list[Send]:
        """Gossip about a job goes to the job's room: we publish it there, or hand it to some who can."""
        rooms = self._node.rooms
        in_common = Publish(COMMON, message)
        if rooms.is_undivided:
            return in_common
        home = self._home_of(message)
        room = rooms.room_of(*home) if home is not None else None
        if room is None:
            return in_common if rooms.is_in_common else []
        if room.topic in rooms.joined:
            return Publish(room.topic, message)
        assert home is not None  # noqa: S101 - a message without a home has no room
        entrusted = self._node.sign(Entrusted(home[0], room.depth, message.raw))
        return [Send(key, entrusted, now_ms + ENTRUST_MS) for key in self._members(room, ENTRUSTED_TO)]

    def _home_of(self, message: Signed[Any]) -> tuple[bytes, Any] | None:
        if isinstance(message.body, Widening):
            contract = self._node.own_contract(message.body.commitment_id)
            if contract is not None:
                return contract.terms.job_id, contract.terms
        return self._gossip.home(message)

    def _members(self, room: Room, count: int) -> list[bytes]:
        adverts = self._node.registry.draw(
            room.workload, room.model, room.depth, room.prefix, count=4 * count, luck=self._luck
        )
        keys = [advert.signer for advert in adverts if advert.signer != self._node.key]
        # A link that is there saves a dial.
        return sorted(keys, key=lambda key: key not in self._node.connected)[:count]

    def topic_of(self, message: Signed[Any], default: str) -> str:
        """Under which topic a message counts that came over a link.

        Raises:
            PeerFault: a part of it isn't properly signed.
        """
        rooms = self._node.rooms
        if default != COMMON or not rooms.is_wide:
            return default
        home = self._gossip.home(message)
        room = self._joined(home) if home is not None else None
        if room is not None:
            return room.topic
        return COMMON if rooms.is_in_common else "room-"

    def _joined(self, home: tuple[bytes, Any], depth: int | None = None) -> Room | None:
        fitting = (room for room in self._node.rooms.joined.values() if room.holds(*home))
        return next((room for room in fitting if depth in (None, room.depth)), None)

    def room_for(self, message: Signed[Any], entrusted: Entrusted) -> Room | None:
        """The room into which we were asked to pass a message; None if we aren't in it.

        Raises:
            PeerFault: a part of it isn't properly signed.
        """
        home = self._gossip.home(message)
        if home is None or home[0] != entrusted.job_id:
            return None
        return self._joined(home, entrusted.depth)

    def note(self, topic: str, message: Signed[Any]) -> None:
        """Gossip was accepted: count its signer, or remember where its job lives."""
        rooms = self._node.rooms
        if isinstance(message.body, Advert) and topic == "peers":
            rooms.census.hear(message.signer, message.body.sent_ms)
        elif isinstance(message.body, Offer) and not rooms.is_placed(message.id):
            room = rooms.joined.get(topic)
            rooms.place(message.id, room.depth if room is not None else 0)

    # --- Asking and telling ----------------------------------------------------------------------

    def greeting(self, peer: bytes, advert: Signed[Advert], now_ms: int) -> list[Effect]:
        """What a new neighbour is told in a large network, where our advert doesn't reach it otherwise."""
        count = self._node.sign(Headcount(self._node.rooms.census.peers))
        return [Send(peer, message, now_ms + ASK_MS) for message in (advert, count)]

    def ask(self, questions: Iterable[Question], now_ms: int) -> list[Effect]:
        """Send questions about rooms."""
        return [Send(peer, self._node.sign(want), now_ms + ASK_MS) for peer, want in questions]

    def tell_members(self, message: Signed[MembersWant], now_ms: int) -> list[Effect]:
        """Answer with the adverts that we know, within bounds."""
        since_ms, count = self._told.pop(message.signer, (now_ms, 0))
        if now_ms >= since_ms + TOLD_EACH_MS:
            since_ms, count = now_ms, 0
        self._told[message.signer] = (since_ms, count + 1)
        while len(self._told) > ASKERS_MAX:
            self._told.popitem(last=False)
        if count >= TOLD_MAX:
            return []
        node, want = self._node, message.body
        room = Room(want.workload, want.model, want.depth, want.prefix)
        ours = node.own_advert(now_ms)
        known = node.registry.draw(
            want.workload,
            want.model,
            want.depth,
            want.prefix,
            count=ROOM_MEMBERS_TOLD_MAX - 1,
            luck=self._luck,
        )
        told: list[bytes] = []
        bytes_total = 0
        for advert in [*([ours] if room.has(ours) else []), *known]:
            bytes_total += len(advert.raw)
            if bytes_total > ROOM_MEMBERS_TOLD_BYTES_MAX:
                break
            if advert.body.expires_ms > now_ms and advert.signer != message.signer:
                told.append(advert.raw)
        is_able = any(room.is_for(offering) for offering in ours.body.offerings)
        depth = node.rooms.depth_of(want.workload, want.model) if is_able else None
        answer = node.sign(Members(want.workload, want.model, depth or 0, tuple(told)))
        return [Send(message.signer, answer, now_ms + ASK_MS)]

    def hear_members(self, message: Signed[Members], now_ms: int) -> list[Effect]:
        """Get to know those whom somebody named to us.

        Raises:
            PeerFault: one of the adverts isn't properly signed, or of another ability.
        """
        answer = message.body
        effects = self.introduce(answer.adverts, now_ms, ability=(answer.workload, answer.model))
        known = self._node.registry.get(message.signer)
        offerings = known.body.offerings if known is not None else ()
        if answer.depth and any((o.workload, o.model) == (answer.workload, answer.model) for o in offerings):
            self._node.rooms.learn(answer.workload, answer.model, answer.depth, now_ms)
        return effects

    def introduce(
        self, adverts: Iterable[bytes], now_ms: int, *, ability: tuple[str, bytes] | None = None
    ) -> list[Effect]:
        """Get to know peers that we looked for, wherever their adverts were found.

        Raises:
            PeerFault: one isn't a properly signed advert, or lacks the ability.
        """
        effects: list[Effect] = []
        for raw in adverts:
            advert = self._gossip.reader.envelope(raw)
            if not isinstance(advert.body, Advert):
                raise Rejected(f"{advert.body.KIND!r} among adverts")
            if ability and not any((o.workload, o.model) == ability for o in advert.body.offerings):
                raise Rejected("advert of a peer without the ability that was asked for")
            if advert.signer != self._node.key and check_advert(advert, now_ms):
                self._node.registry.meet(advert.signer)
                effects += self._node.registry.hear(advert, now_ms)
        return effects

    # --- Company ---------------------------------------------------------------------------------

    def keep_company(self, now_ms: int) -> list[Effect]:
        """Be in the right rooms, know their members, and be linked to some of each."""
        rooms = self._node.rooms
        effects = rooms.review(now_ms)
        rooms.forget(now_ms)
        before, self._home = self._home, rooms.home_topics()
        if rooms.is_wide and before != self._home:
            # Those in the new room don't know us yet. Not all at once: many move at the same time.
            effects.append(SetTimer(("advert",), now_ms + self._luck.randint(1_000, 5_000)))
        if rooms.is_wide:
            effects += self._look_around(now_ms)
        if rooms.census.peers >= ROOM_SPLIT // 2:
            effects += self._approach(now_ms)
        keep = max(GREETED_MAX, ROOM_LINKS * len(rooms.joined))
        return [*effects, *self.company.review(now_ms, keep=keep, is_near=self._is_near)]

    def _is_near(self, peer: bytes) -> bool:
        advert = self._node.registry.get(peer)
        return advert is not None and any(room.has(advert) for room in self._node.rooms.joined.values())

    def _look_around(self, now_ms: int) -> list[Effect]:
        effects: list[Effect] = []
        for room in (self._node.rooms.joined[topic] for topic in self._home):
            ability = (room.workload, room.model)
            count = self._node.registry.count_in(*ability, room.depth, room.prefix)
            if count >= ROOM_MERGE // 2 or now_ms < self._looked_ms.get(ability, 0) + LOOK_AROUND_MS:
                continue
            self._looked_ms[ability] = now_ms
            effects += self.ask(self._node.searches.for_own_room(*ability, now_ms), now_ms)
        return effects

    def _approach(self, now_ms: int) -> list[Effect]:
        node = self._node
        if len(node.connected) >= COMPANY_MAX:
            return []
        wanted: dict[bytes, None] = {}
        for room in node.rooms.joined.values():
            linked = sum(advert.signer in node.connected for advert in self._neighbours(room))
            if linked >= ROOM_LINKS:
                continue
            members = node.registry.draw(
                room.workload, room.model, room.depth, room.prefix, count=COMPANY_MAX, luck=self._luck
            )
            near = [advert.signer for advert in members if advert.signer not in node.connected]
            wanted.update(dict.fromkeys(near[: ROOM_LINKS - linked]))
        wanted.pop(node.key, None)
        for key in wanted:
            self.company.greeted(key, now_ms)
        return [Greet(key) for key in wanted]

    def _neighbours(self, room: Room) -> list[Signed[Advert]]:
        known = (self._node.registry.get(key) for key in sorted(self._node.connected))
        return [advert for advert in known if advert is not None and room.has(advert)]
