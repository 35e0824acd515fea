"""What a client asks for: the job file.

Durations become milliseconds, sizes bytes, and fractions thousandths, since floats never enter
a signed message. Everything but the name and the task has a default. `docs/jobspec.md` tells the
same to those who write job files.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from msgspec import Struct
from msgspec.structs import replace

from p2p_node.errors import UserError
from p2p_node.taskspec import TASK, LmTask, Task, TrainingTask
from p2p_node.yamltree import (
    DOCUMENT_BYTES_MAX,
    Fault,
    Field,
    boolean,
    choice,
    duration_ms,
    identifier,
    integer,
    line_of,
    listing,
    mapping,
    milli,
    parse,
    share,
    size_bytes,
    text,
)
from protocols import limits
from protocols.identity import peer_key
from verification.findings import PROFILES

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
    total_micros_max: int = 0
    """Ceiling for everything, verifiers included; 0 is none."""


class VerifySpec(Struct, frozen=True, kw_only=True):
    """How the result is checked."""

    profile: str = "exact14"
    verifiers: int = 2
    """Expected verifiers of each segment."""
    chunks: int | str = "auto"
    """Chunks each verifier recomputes; auto is all, or fewer of an executor that has proved itself."""
    escape_ppb: int = 0
    """Accepted chance that a forged share goes unnoticed, in parts per billion; 0 if none is asked for."""
    forged_ppm: int = 100_000
    """The share of chunks meant, in parts per million."""
    colluding_ppm: int = 200_000
    """Electors assumed to keep silent for a cheater."""
    lazy_ppm: int = 0
    """Of the others, those assumed not to answer."""
    reveal_ms: int = 30_000


class TimeoutsSpec(Struct, frozen=True, kw_only=True):
    """How long the client waits for each phase, and for all."""

    queue_ms: int = 30_000
    stall_ms: int = 20_000
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
    parts: int | str | None = None
    """Jobs that it is split into for several peers, ``auto`` to leave the number to the node."""
    encrypt: bool = False
    """Whether what it names and leaves is for its parties only, and sealed where it lies."""


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
        if isinstance(spec.task, TrainingTask) and spec.task.peers > 1:
            # Each peer's turn in each round is a part.
            spec = replace(spec, parts="auto")
        if spec.parts is not None and not line_of(root, "auction.mode"):
            # A part is short, and while an auction is open its bidders wait.
            spec = replace(spec, auction=replace(spec.auction, mode="posted"))
    except Fault as fault:
        raise JobSpecError(source, fault) from None
    return spec


def _check_together(spec: JobSpec, root: yaml.Node) -> None:
    """Rules between fields: a phase can't outlast what contains it."""
    if spec.verify.escape_ppb:
        _check_escape(root)
    if isinstance(spec.task, TrainingTask):
        _check_rounds(spec.task, root)
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


def _check_escape(root: yaml.Node) -> None:
    """A chance of escape is what the node chooses verifiers and chunks for."""
    for name in ("verify.verifiers", "verify.chunks"):
        if line := line_of(root, name):
            raise Fault(line, name, "must not be given together with verify.escape", "both")


def _check_rounds(task: TrainingTask, root: yaml.Node) -> None:
    """What only a run by several peers has needs them, and such a run has its own parts."""
    if task.peers > 1 and (line := line_of(root, "parts")):
        raise Fault(line, "parts", "must not be given together with task.peers", "both")
    needs = (
        ("peers more than 1", task.peers > 1, ("rounds", "outer")),
        ("outer: nesterov", task.outer == "nesterov", ("outer_learning_rate", "outer_momentum")),
    )
    for rule, is_kept, names in needs:
        for name in names:
            if not is_kept and (line := line_of(root, f"task.{name}")):
                raise Fault(line, f"task.{name}", f"needs {rule}")


def _chunks(node: yaml.Node, path: str) -> int | str:
    if isinstance(node, yaml.ScalarNode) and node.value in ("all", "auto"):
        return str(node.value)
    try:
        return integer(1, limits.SEGMENT_CHUNKS_MAX)(node, path)
    except Fault as fault:
        raise Fault(fault.line, fault.field, f"{fault.rule}, or all, or auto", fault.value) from None


def _parts(node: yaml.Node, path: str) -> int | str:
    if isinstance(node, yaml.ScalarNode) and node.value == "auto":
        return "auto"
    try:
        return integer(1, limits.PARTS_MAX)(node, path)
    except Fault as fault:
        raise Fault(fault.line, fault.field, f"{fault.rule}, or auto", fault.value) from None


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
        "max_total": Field("total_micros_max", integer(0, limits.INTEGER_MAX)),
    },
)
_VERIFY_FIELDS = mapping(
    VerifySpec,
    {
        "profile": Field("profile", choice(*PROFILES)),
        "escape": Field("escape_ppb", share(10**9, "1e-9", "0.5")),
        "forged_share": Field("forged_ppm", share(10**6, "0.001", "1")),
        "assumed_colluding": Field("colluding_ppm", share(10**6, "0", "0.9")),
        "lazy": Field("lazy_ppm", share(10**6, "0", "0.9")),
        "verifiers": Field("verifiers", integer(1, limits.VERIFIERS_PER_SEGMENT_MAX)),
        "chunks": Field("chunks", _chunks),
        "reveal": Field("reveal_ms", _TIMEOUT),
    },
)


def _verify(node: yaml.Node, path: str) -> VerifySpec:
    """Reads ``full``, by which every verifier recomputes everything, or the fields."""
    if isinstance(node, yaml.ScalarNode) and node.value == "full":
        return VerifySpec(chunks="all")
    return _VERIFY_FIELDS(node, path)


_TIMEOUTS = mapping(
    TimeoutsSpec,
    {
        "queue": Field("queue_ms", _TIMEOUT),
        "stall": Field("stall_ms", _TIMEOUT),
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
        "verify": Field("verify", _verify),
        "timeouts": Field("timeouts", _TIMEOUTS),
        "retry": Field("retry", _RETRY),
        "parts": Field("parts", _parts),
        "encrypt": Field("encrypt", boolean()),
    },
)
