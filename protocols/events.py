"""What happens to a machine: facts, in the past tense."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from protocols.envelope import Signed
from protocols.messages import OpenedValue

__all__ = [
    "INPUT_MISSING",
    "NO_ROOM",
    "OUTPUT_MISSING",
    "DisputeEnded",
    "Event",
    "Finding",
    "Heard",
    "RunChunk",
    "RunEvent",
    "RunFailed",
    "RunFetched",
    "RunFinished",
    "RunJudged",
    "RunOpened",
    "RunOutput",
    "RunProgress",
    "RunRecomputed",
    "RunTraced",
    "TimerFired",
]

RunKey = tuple[Any, ...]

INPUT_MISSING = "input-missing"
"""A run's reason to fail: nobody who should have a blob that it needs gave it."""

OUTPUT_MISSING = "output-missing"
"""A fetch's reason to fail: a blob that the output names can't be had, or can't be a blob."""

NO_ROOM = "no-room"
"""A fetch's reason to fail: this peer can't hold the blobs."""


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
class RunTraced:
    """A chunk's program was run: the digest of every value, inputs first, the chunk's digest last."""

    key: RunKey
    program: bytes
    """The program's digest."""
    digests: tuple[bytes, ...]
    cpu_us: int


@dataclass(frozen=True, slots=True)
class RunOpened:
    """What it takes to judge one value of a trace: see `protocols.effects.Case`."""

    key: RunKey
    values: tuple[OpenedValue, ...]
    """The inputs of the operator, each once, by index; empty where the value is an input of the program."""
    context: bytes
    """The workload's own evidence: the model's configuration, and the proof of a parameter."""
    cpu_us: int


class Finding(enum.Enum):
    """What a referee finds of a value that somebody signed."""

    GUILTY = "guilty"
    """It isn't what the operator, the contract or the model gives."""
    ACQUITTED = "acquitted"
    """It is."""
    INCONCLUSIVE = "inconclusive"
    """The case can't be judged: a part doesn't fit the rest, or the workload has no such program."""


@dataclass(frozen=True, slots=True)
class RunJudged:
    """A referee's finding; ``detail`` names operator and rule, for people."""

    key: RunKey
    finding: Finding
    detail: str
    cpu_us: int


@dataclass(frozen=True, slots=True)
class RunProgress:
    """What a run is at, and how far; units of ``done`` and ``total`` depend on the phase, 0 is unknown."""

    key: RunKey
    phase: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class RunFetched:
    """All blobs that were to be fetched are here."""

    key: RunKey


@dataclass(frozen=True, slots=True)
class RunFailed:
    """A run ended without a result, for a typed reason."""

    key: RunKey
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class DisputeEnded:
    """A dispute between the executor and one verifier is over."""

    key: RunKey
    """``("dispute", commitment id, verifier)``."""
    chunk: int
    verifier: bytes
    loser: bytes
    """Who lost; empty if nothing could be decided."""
    is_proved: bool
    """Whether a referee convicted the loser; else it was silent, which proves nothing to others."""


RunEvent = (
    RunOutput
    | RunChunk
    | RunFinished
    | RunRecomputed
    | RunTraced
    | RunOpened
    | RunJudged
    | RunProgress
    | RunFetched
    | RunFailed
)
Event = Heard | TimerFired | RunEvent | DisputeEnded
