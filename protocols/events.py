"""What happens to a machine: facts, in the past tense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from protocols.envelope import Signed

__all__ = [
    "Event",
    "Heard",
    "RunChunk",
    "RunEvent",
    "RunFailed",
    "RunFinished",
    "RunOutput",
    "RunRecomputed",
    "TimerFired",
]

RunKey = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Heard:
    """A signed message arrived, directly or by gossip; its signature holds."""

    message: Signed[Any]


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A timer set under ``key`` is due."""

    key: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class RunOutput:
    """A run produced ``units``, the first of them at index ``first_unit`` of the whole output."""

    key: RunKey
    first_unit: int
    units: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RunChunk:
    """A run finished a chunk of the output."""

    key: RunKey
    chunk: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class RunFinished:
    """A run produced all its output; ``units_total`` counts the prefix too."""

    key: RunKey
    units_total: int
    cpu_us: int


@dataclass(frozen=True, slots=True)
class RunRecomputed:
    """A recomputation is done: (chunk, digest) pairs."""

    key: RunKey
    digests: tuple[tuple[int, bytes], ...]
    cpu_us: int


@dataclass(frozen=True, slots=True)
class RunFailed:
    """A run ended without a result, for a typed reason."""

    key: RunKey
    reason: str
    detail: str


RunEvent = RunOutput | RunChunk | RunFinished | RunRecomputed | RunFailed
Event = Heard | TimerFired | RunEvent
