"""What a node has been doing since it started, counted, and why it isn't earning right now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from protocols.effects import Notify

__all__ = ["Activity", "idle_reason"]


@dataclass(slots=True)
class Activity:
    """Counts of what happened to this node as a worker."""

    bids: int = 0
    engagements: int = 0
    """Contracts taken on."""
    declines: Counter[str] = field(default_factory=Counter)
    """Offers that this node didn't bid on, by reason."""
    last_decline: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The newest decline of each reason."""
    worker_deaths: int = 0

    def hear(self, note: Notify) -> None:
        """Count an event of the node; one that isn't counted is fine."""
        match note.event:
            case "bid":
                self.bids += 1
            case "engaged":
                self.engagements += 1
            case "declined":
                reason = note.details["reason"]
                self.declines[reason] += 1
                self.last_decline[reason] = note.details


def idle_reason(
    activity: Activity,
    *,
    models: int,
    connected: int,
    running: int,
    is_stopping: bool = False,
    paused: Collection[str] = (),
    is_in_use: bool = False,
    measuring: Collection[str] = (),
) -> str:
    """Why a node isn't earning, with the way out where its operator has one; empty while it works.

    Args:
        activity: what has happened.
        models: how many it offers.
        connected: peers it is connected to.
        running: contracts it works on.
        is_stopping: whether it takes on nothing new any more.
        paused: devices that its owner has taken back.
        is_in_use: whether it waits for its owner to leave the machine alone.
        measuring: models that it will offer once it knows how fast it is with them.
    """
    if running:
        return ""
    if is_stopping:
        return "it is stopping and takes on nothing new"
    if is_in_use:
        return "its owner uses the machine, and it was started with --idle-only"
    if paused:
        return f"its owner paused {', '.join(sorted(paused))}: p2p-node resume"
    if not models and measuring:
        return f"it is measuring how fast it is with {', '.join(measuring)}"
    if not models:
        return "it offers no model"
    if not connected:
        return "no peer is connected: give --bootstrap, or check --network and --mdns"
    declined = activity.declines.total()
    if not activity.bids and not declined:
        return "no job has been offered since it started"
    if activity.bids and not activity.engagements:
        return f"it bid {activity.bids} times and others won: a lower --price makes winning likelier"
    if activity.bids:
        return "every job it took on is done; the next offer has yet to come"
    reason, count = activity.declines.most_common(1)[0]
    why = _decline_text(activity.last_decline[reason])
    return f"it didn't bid on any of {declined} offers; {count} times because {why}"


def _decline_text(details: dict[str, Any]) -> str:
    have, need = details.get("have", 0), details.get("need", 0)
    match details["reason"]:
        case "price":
            return f"its price of {need} is above the ceiling, last {have}: lower --price"
        case "busy":
            return "every slot was taken"
        case "ram":
            return f"the job wants {need} bytes of memory, and it has {have}"
        case "storage":
            return f"the job's files have {need} bytes, and it has room for {have}: raise blob_bytes_max"
        case "rate":
            return f"the job wants a rate of {need}, and it has {have}"
        case "context":
            return f"the job needs a context of {need} units, and its model has {have}"
        case "standing":
            return "the requester failed it before"
    return str(details.get("detail") or details["reason"])
