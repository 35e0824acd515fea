"""What a client asks for: the job file.

Durations become milliseconds, sizes bytes, and fractions thousandths, since floats never enter
a signed message. Everything but the name and the task has a default. `docs/jobspec.md` tells the
same to those who write job files.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from msgspec import Struct

from p2p_node.errors import UserError
from p2p_node.taskspec import TASK, LmTask, Task
from p2p_node.yamltree import (
    DOCUMENT_BYTES_MAX,
    Fault,
    Field,
    choice,
    duration_ms,
    identifier,
    integer,
    integer_or,
    line_of,
    listing,
    mapping,
    milli,
    parse,
    size_bytes,
    text,
)
from protocols import limits
from protocols.identity import peer_key

__all__ = [
    "AuctionSpec",
    "JobSpec",
    "JobSpecError",
    "LmTask",
    "PlacementSpec",
    "ResourcesSpec",
    "RetrySpec",
    "TimeoutsSpec",
    "VerifySpec",
    "load_job_spec",
    "parse_job_spec",
]

EXCLUDED_PEERS_MAX = 64
RATE_MAX = 1_000_000
REBIDS_MAX = 10
WINDOW_MS_MAX = 10 * 60_000


class JobSpecError(UserError):
    """A job file breaks a rule.

    Attributes:
        line: the line of the value, from 1.
        field: the dotted path of the field, such as ``task.max_tokens``; empty for the file itself.
        rule: what the value must be.
        value: the value as it stands in the file, shortened; empty where there is none.
    """

    def __init__(self, source: str, fault: Fault) -> None:
        super().__init__(f"{source}: {fault}")
        self.line = fault.line
        self.field = fault.field
        self.rule = fault.rule
        self.value = fault.value


class ResourcesSpec(Struct, frozen=True, kw_only=True):
    """What a peer must have to bid."""

    ram_bytes_min: int = 0
    rate_milli_min: int = 0
    """Output units in 1,000 seconds."""


class PlacementSpec(Struct, frozen=True, kw_only=True):
    """Which peers may run the job."""

    exclude: tuple[bytes, ...] = ()
    """Public keys of peers that must not."""


class AuctionSpec(Struct, frozen=True, kw_only=True):
    """How the executor is found, and what it may cost."""

    mode: str = "auction"
    window_ms: int = 2_000
    price_micros_max: int = 500
    """Ceiling per output unit."""
    rebids: int = 3
    """Further rounds when nobody bid."""


class VerifySpec(Struct, frozen=True, kw_only=True):
    """How the result is checked."""

    profile: str = "exact14"
    verifiers: int = 2
    """Expected verifiers of each segment."""
    chunks: int | None = None
    """Chunks each verifier recomputes; None is all."""
    reveal_ms: int = 30_000


class TimeoutsSpec(Struct, frozen=True, kw_only=True):
    """How long the client waits for each phase, and for all."""

    queue_ms: int = 30_000
    execution_ms: int = 300_000
    total_ms: int = 600_000


class RetrySpec(Struct, frozen=True, kw_only=True):
    """What happens after an executor failed."""

    retries: int = 3
    """Further executors after the first."""


class JobSpec(Struct, frozen=True, kw_only=True):
    """One job, valid by every rule of this module."""

    name: str
    task: Task
    resources: ResourcesSpec = ResourcesSpec()
    placement: PlacementSpec = PlacementSpec()
    auction: AuctionSpec = AuctionSpec()
    verify: VerifySpec = VerifySpec()
    timeouts: TimeoutsSpec = TimeoutsSpec()
    retry: RetrySpec = RetrySpec()


def load_job_spec(path: Path) -> JobSpec:
    """Read a job file.

    Raises:
        JobSpecError: the file breaks a rule.
        UserError: it can't be read.
    """
    try:
        with path.open("rb") as file:
            document = file.read(DOCUMENT_BYTES_MAX + 1)
    except OSError as error:
        raise UserError(f"can't read the job file {path}: {error.strerror}") from error
    return parse_job_spec(document, source=str(path))


def parse_job_spec(document: bytes, *, source: str = "job") -> JobSpec:
    """Read a job file's content.

    Args:
        document: YAML in UTF-8.
        source: what messages call it.

    Raises:
        JobSpecError: it breaks a rule.
    """
    try:
        root = parse(document)
        spec = _JOB(root, "")
        _check_together(spec, root)
    except Fault as fault:
        raise JobSpecError(source, fault) from None
    return spec


def _check_together(spec: JobSpec, root: yaml.Node) -> None:
    """Rules between fields: a phase can't outlast what contains it."""
    timeouts, auction = spec.timeouts, spec.auction
    bounds = [
        ("timeouts.queue", timeouts.queue_ms, "timeouts.total", timeouts.total_ms),
        ("timeouts.execution", timeouts.execution_ms, "timeouts.total", timeouts.total_ms),
        ("verify.reveal", spec.verify.reveal_ms, "timeouts.total", timeouts.total_ms),
    ]
    if auction.mode == "auction":
        bounds.append(("auction.window", auction.window_ms, "timeouts.queue", timeouts.queue_ms))
    for inner, inner_ms, outer, outer_ms in bounds:
        if inner_ms <= outer_ms:
            continue
        # Blame what the client wrote, not a default.
        if line := line_of(root, inner):
            raise Fault(line, inner, f"must be at most {outer} ({outer_ms}ms)", f"{inner_ms}ms")
        raise Fault(
            line_of(root, outer) or 1, outer, f"must be at least {inner} ({inner_ms}ms)", f"{outer_ms}ms"
        )


def _peer(node: yaml.Node, path: str) -> bytes:
    written = text(bytes_max=limits.NAME_BYTES_MAX)(node, path)
    try:
        return peer_key(written)
    except ValueError:
        raise Fault(node.start_mark.line + 1, path, "must be a peer id (12D3Koo…)", repr(written)) from None


def _job(*, api_version: str, kind: str, **fields: object) -> JobSpec:
    return JobSpec(**fields)  # type: ignore[arg-type]


_TIMEOUT = duration_ms(1, limits.OFFER_LIFETIME_MS_MAX)

_RESOURCES = mapping(
    ResourcesSpec,
    {
        "ram": Field("ram_bytes_min", size_bytes(0, 2**50)),
        "min_rate": Field("rate_milli_min", milli(0, RATE_MAX)),
    },
)
_PLACEMENT = mapping(
    PlacementSpec, {"exclude": Field("exclude", listing(_peer, length_max=EXCLUDED_PEERS_MAX))}
)
_AUCTION = mapping(
    AuctionSpec,
    {
        "mode": Field("mode", choice("auction", "posted")),
        "window": Field("window_ms", duration_ms(1, WINDOW_MS_MAX)),
        "max_price": Field("price_micros_max", integer(0, limits.PRICE_MICROS_MAX)),
        "rebids": Field("rebids", integer(0, REBIDS_MAX)),
    },
)
_VERIFY = mapping(
    VerifySpec,
    {
        "profile": Field("profile", choice("exact14", "exact21")),
        "verifiers": Field("verifiers", integer(1, limits.VERIFIERS_PER_SEGMENT_MAX)),
        "chunks": Field("chunks", integer_or("all", 1, limits.SEGMENT_CHUNKS_MAX)),
        "reveal": Field("reveal_ms", _TIMEOUT),
    },
)
_TIMEOUTS = mapping(
    TimeoutsSpec,
    {
        "queue": Field("queue_ms", _TIMEOUT),
        "execution": Field("execution_ms", _TIMEOUT),
        "total": Field("total_ms", _TIMEOUT),
    },
)
# The first attempt counts among the attempts.
_RETRY = mapping(RetrySpec, {"max": Field("retries", integer(0, limits.ATTEMPTS_MAX - 1))})
_JOB = mapping(
    _job,
    {
        "apiVersion": Field("api_version", choice("p2p/v1"), required=True),
        "kind": Field("kind", choice("Job"), required=True),
        "name": Field("name", identifier(bytes_max=limits.NAME_BYTES_MAX), required=True),
        "task": Field("task", TASK, required=True),
        "resources": Field("resources", _RESOURCES),
        "placement": Field("placement", _PLACEMENT),
        "auction": Field("auction", _AUCTION),
        "verify": Field("verify", _VERIFY),
        "timeouts": Field("timeouts", _TIMEOUTS),
        "retry": Field("retry", _RETRY),
    },
)
