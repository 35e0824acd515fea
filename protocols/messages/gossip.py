"""What neighbours compare, so that gossip that was lost is found."""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta

from protocols import limits
from protocols.messages.fields import Body, Digest

__all__ = ["SyncSummary", "SyncWant"]


class SyncSummary(Body, frozen=True):
    """Ids of recent gossip, sent to a neighbour now and then: ask me for what you missed."""

    KIND: ClassVar[str] = "sync-summary"

    ids: Annotated[tuple[Digest, ...], Meta(max_length=limits.SYNC_IDS_MAX)]


class SyncWant(Body, frozen=True):
    """Ids of gossip the sender missed."""

    KIND: ClassVar[str] = "sync-want"

    ids: Annotated[tuple[Digest, ...], Meta(max_length=limits.SYNC_IDS_MAX)]
