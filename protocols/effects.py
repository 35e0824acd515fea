"""What a machine asks the world to do, and what it is told.

A machine is ``handle(event, now_ms) -> list[Effect]``. Effects are requests; their results come
back as events. The runtime persists before it sends, so a peer never says what it could forget.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from protocols.blobs import Blob
from protocols.envelope import Signed
from protocols.messages import OpenedValue

__all__ = [
    "PROGRAM_INDEX",
    "CancelRun",
    "Case",
    "Effect",
    "Execute",
    "FetchBlobs",
    "Greet",
    "HangUp",
    "Join",
    "Judge",
    "Leave",
    "Notify",
    "OpenValues",
    "Penalise",
    "Persist",
    "Prefetch",
    "Publish",
    "Recompute",
    "Run",
    "Send",
    "SetTimer",
    "Sources",
    "Task",
    "Trace",
]


Sources = tuple[bytes, ...]
"""Peers that may have the blobs which a task's input and units name: not part of what the task is."""


@dataclass(frozen=True, slots=True)
class Publish:
    """Gossip ``message`` on ``topic`` (its short name, e.g. ``"jobs"``)."""

    topic: str
    message: Signed[Any]


@dataclass(frozen=True, slots=True)
class Join:
    """Hear gossip on ``topic`` from now on."""

    topic: str


@dataclass(frozen=True, slots=True)
class Leave:
    """Don't hear gossip on ``topic`` any more."""

    topic: str


@dataclass(frozen=True, slots=True)
class Greet:
    """Have a link to ``peer``, if it can be had."""

    peer: bytes


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
    sources: Sources = field(default=(), compare=False)
    private_to: bytes = field(default=b"", compare=False)
    """The requester's key, if what the task names and leaves is for the job's parties only."""


@dataclass(frozen=True, slots=True)
class Recompute:
    """Compute the digests of ``chunks`` again, given all the output units."""

    workload: str
    model: bytes
    profile: str
    input: bytes
    units: tuple[int, ...]
    chunks: tuple[int, ...]
    sources: Sources = field(default=(), compare=False)
    private_to: bytes = field(default=b"", compare=False)


@dataclass(frozen=True, slots=True)
class Trace:
    """Run the program of ``chunk`` operator by operator; answered by `RunTraced` with all digests."""

    workload: str
    model: bytes
    profile: str
    input: bytes
    units: tuple[int, ...]
    """All output units up to the end of the chunk's segment, or more; those after the chunk don't count."""
    chunk: int
    sources: Sources = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class OpenValues:
    """Have at hand what it takes to judge value ``index`` of a chunk's trace; answered by `RunOpened`."""

    workload: str
    model: bytes
    profile: str
    input: bytes
    units: tuple[int, ...]
    chunk: int
    index: int
    """Of the value; `PROGRAM_INDEX` for the program itself."""
    sources: Sources = field(default=(), compare=False)


PROGRAM_INDEX = -1
"""In place of a value's index: what is judged is the program that a trace states."""


@dataclass(frozen=True, slots=True)
class Case:
    """One value of one signed trace, with all that a referee needs to judge it without the model.

    The referee rebuilds the program from workload, profile, input, units, chunk and the model's
    configuration in ``context``, which it checks against ``model``. What it then asks depends on
    ``index``:

    - of a step's output: does the operator, run on ``values``, give the digest ``claimed``?
    - of an input from the job: does the contract give it?
    - of an input from the model: does the parameter proof in ``context`` give it?
    - `PROGRAM_INDEX`: is it the program ``program`` with ``values_total`` values?
    """

    workload: str
    model: bytes
    profile: str
    input: bytes
    units: tuple[int, ...]
    chunk: int
    program: bytes
    """Digest of the program as the accused states it."""
    values_total: int
    """Values of the trace as the accused states it."""
    index: int
    claimed: bytes
    """The accused's digest of value ``index``; 32 zero bytes for `PROGRAM_INDEX`."""
    values: tuple[OpenedValue, ...]
    """The operator's inputs, each once, by index: their digests are the accused's. Empty but for a step."""
    context: bytes
    """What the workload adds, from `RunTraced` or `RunOpened`: the configuration and a parameter's proof."""


@dataclass(frozen=True, slots=True)
class Judge:
    """Judge ``case`` as a referee; needs no model; answered by `RunJudged`."""

    case: Case
    sources: Sources = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class FetchBlobs:
    """Have here every blob that the output ``units`` name; answered by `RunFetched` or `RunFailed`."""

    workload: str
    input: bytes
    units: tuple[int, ...]
    sources: Sources = field(default=(), compare=False)
    private_job: bytes = field(default=b"", compare=False)
    """Our job, if what it leaves is for its parties only."""


@dataclass(frozen=True, slots=True)
class Prefetch:
    """Begin to fetch blobs that a task may name soon. Nothing is answered."""

    blobs: tuple[Blob, ...]
    sources: Sources = field(default=(), compare=False)


Task = Execute | Recompute | Trace | OpenValues | Judge | FetchBlobs | Prefetch


@dataclass(frozen=True, slots=True)
class Run:
    """Start ``task`` in a worker; its events carry ``key``."""

    key: tuple[Any, ...]
    task: Task


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
class HangUp:
    """End the link with ``peer``: it was there for a question that is answered. Nobody is blamed."""

    peer: bytes


@dataclass(frozen=True, slots=True)
class Notify:
    """Tell whoever watches ``subject`` (a job id, or empty for the node) what happened."""

    subject: bytes
    event: str
    details: dict[str, Any] = field(default_factory=dict)


Effect = (
    Publish | Join | Leave | Greet | Send | SetTimer | Run | CancelRun | Persist | Penalise | HangUp | Notify
)
