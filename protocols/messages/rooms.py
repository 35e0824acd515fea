"""Rooms: how large the network is, who is in a room, and gossip handed to one who is."""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta

from protocols import limits
from protocols.messages.fields import Body, Digest, Name, Raw, Small

__all__ = ["Entrusted", "Headcount", "Members", "MembersWant"]


class Headcount(Body, frozen=True):
    """How many peers the sender takes the network to have; told to a new neighbour in a large one."""

    KIND: ClassVar[str] = "headcount"

    peers: Small


class MembersWant(Body, frozen=True):
    """Asks for members of a room."""

    KIND: ClassVar[str] = "members-want"

    workload: Name
    model: Digest
    depth: Annotated[int, Meta(ge=1, le=limits.ROOM_DEPTH_MAX)]
    """1 for all that have the ability."""
    prefix: Annotated[int, Meta(ge=0, lt=2 ** (limits.ROOM_DEPTH_MAX - 1))]


class Members(Body, frozen=True):
    """Members of a room that the sender knows, by their own adverts."""

    KIND: ClassVar[str] = "members"

    workload: Name
    model: Digest
    depth: Annotated[int, Meta(ge=0, le=limits.ROOM_DEPTH_MAX)]
    """Of the sender's own room of this ability; 0 if it has none."""
    adverts: Annotated[tuple[Raw, ...], Meta(max_length=limits.ROOM_MEMBERS_TOLD_MAX)]


class Entrusted(Body, frozen=True):
    """Gossip for a room that the sender isn't in, to be passed on by one who is."""

    KIND: ClassVar[str] = "entrusted"

    job_id: Digest
    depth: Annotated[int, Meta(ge=1, le=limits.ROOM_DEPTH_MAX)]
    message: Raw
