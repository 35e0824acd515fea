"""What a machine asks the world to do, and what it is told.

A machine is ``handle(event, now_ms) -> list[Effect]``. Effects are requests; their results come
back as events. The runtime persists before it sends, so a peer never says what it could forget.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from protocols.envelope import Signed

__all__ = [
    "CancelRun",
    "Effect",
    "Execute",
    "Notify",
    "Penalise",
    "Persist",
    "Publish",
    "Recompute",
    "Run",
    "Send",
    "SetTimer",
]


@dataclass(frozen=True, slots=True)
class Publish:
    """Gossip ``message`` on ``topic`` (its short name, e.g. ``"jobs"``)."""

    topic: str
    message: Signed[Any]


@dataclass(frozen=True, slots=True)
class Send:
    """Deliver ``message`` to ``peer``, again and again until it acknowledges or ``until_ms``."""

    peer: bytes
    message: Signed[Any]
    until_ms: int


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Have `TimerFired(key)` at ``at_ms``. Setting a key again replaces it."""

    key: tuple[Any, ...]
    at_ms: int


@dataclass(frozen=True, slots=True)
class Execute:
    """Produce output units from ``input`` after ``prefix``, with a digest for each chunk."""

    workload: str
    model: bytes
    profile: str
    input: bytes
    prefix: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Recompute:
    """Compute the digests of ``chunks`` again, given all the output units."""

    workload: str
    model: bytes
    profile: str
    input: bytes
    units: tuple[int, ...]
    chunks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """Start ``task`` in a worker; its events carry ``key``."""

    key: tuple[Any, ...]
    task: Execute | Recompute


@dataclass(frozen=True, slots=True)
class CancelRun:
    """Stop a run; nothing more comes from it."""

    key: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Persist:
    """Write ``value`` under ``key`` in ``table`` (None deletes) before anything is sent."""

    table: str
    key: bytes
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Penalise:
    """Lower a peer's standing at the network layer."""

    peer: bytes
    points: int
    reason: str


@dataclass(frozen=True, slots=True)
class Notify:
    """Tell whoever watches ``subject`` (a job id, or empty for the node) what happened."""

    subject: bytes
    event: str
    details: dict[str, Any] = field(default_factory=dict)


Effect = Publish | Send | SetTimer | Run | CancelRun | Persist | Penalise | Notify
