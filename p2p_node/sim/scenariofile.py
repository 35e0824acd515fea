"""Scenario files: a network's regions, its faults, its peers, and what is asked of them, in TOML.

The file is closed, as an operator's settings are: what is misspelt is refused with its place, since a fault
that is silently left out would make a network look better than it is.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from p2p_node.errors import UserError
from p2p_node.hostile import CHEATS as HOSTILE
from p2p_node.sim.world import CHEATS

__all__ = ["Scenario", "ScenarioRefused", "load_scenario", "parse_scenario", "ppm"]

FILE_BYTES_MAX = 256 * 1024
PEERS_MAX = 100_000
SECONDS_MAX = 7 * 86_400
REGIONS_MAX = 64

_Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=48)]
_Share = Annotated[float, Meta(ge=0, le=1)]
_Loss = Annotated[float, Meta(ge=0, le=0.9)]
_Seconds = Annotated[float, Meta(ge=0, le=SECONDS_MAX)]
_Rate = Annotated[float, Meta(ge=0, le=1_000)]
_Kbit = Annotated[int, Meta(ge=16, le=100_000_000)]
_Micros = Annotated[int, Meta(ge=0, le=10**9)]
_Ms = Annotated[int, Meta(ge=0, le=60_000)]


class ScenarioRefused(UserError):
    """A scenario names something unknown, or a value breaks its rule."""


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of the file."""


class Network(_Table, frozen=True, kw_only=True):
    """How messages travel, whatever the region."""

    neighbours: Annotated[int, Meta(ge=2, le=6)] = 4
    """Peers that each one connects to when it starts; it ends up with twice as many on average."""
    loss: _Loss = 0.0
    """Of frames on direct links."""
    gossip_loss: _Loss = 0.0
    """Of each hop of a gossip message."""
    duplication: _Loss = 0.0
    reordering: _Loss = 0.0
    """Share of frames that are held up by one to four more latencies, so that later ones overtake them."""
    jitter_ms: _Ms = 5


class Regions(_Table, frozen=True, kw_only=True):
    """Where peers are, and how far apart that is."""

    names: tuple[_Name, ...]
    shares: tuple[_Share, ...] = ()
    """Of the peers; equal if not given."""
    latency_ms: tuple[tuple[_Ms, ...], ...]
    """One way, from the row's region to the column's."""


class PeerClass(_Table, frozen=True, kw_only=True):
    """Peers of one sort."""

    name: _Name
    share: _Share
    serves: tuple[_Name, ...] = ()
    """Kinds of load that it executes and verifies."""
    asks: bool = True
    """Whether it submits jobs."""
    up_kbit: _Kbit = 100_000
    down_kbit: _Kbit = 100_000
    slots: Annotated[int, Meta(ge=1, le=64)] = 2
    price_micros: tuple[Annotated[int, Meta(ge=0, le=10**9)], Annotated[int, Meta(ge=0, le=10**9)]] = (
        50,
        150,
    )
    """What peers ask for one unit, from … to."""


class Partition(_Table, frozen=True, kw_only=True):
    """A share of the peers, or some regions, cut off from the rest for a while."""

    from_s: _Seconds
    until_s: _Seconds
    share: _Share = 0.0
    regions: tuple[_Name, ...] = ()
    direction: Literal["both", "out", "in"] = "both"
    """``out``: nothing they say gets out, but they hear; ``in``: the other way round."""


class Clock(_Table, frozen=True, kw_only=True):
    """How wrong clocks are: each peer's own, at most so much, either way."""

    skew_ms: Annotated[int, Meta(ge=0, le=600_000)] = 0
    drift_ppm: Annotated[int, Meta(ge=0, le=10_000)] = 0


class Churn(_Table, frozen=True, kw_only=True):
    """Who comes and goes, in shares of all peers for each minute, at random."""

    joins_per_minute: _Rate = 0.0
    """New peers, beside those that are there from the start."""
    leaves_per_minute: _Rate = 0.0
    """For good, after saying so to nobody; neighbours notice at once."""
    crashes_per_minute: _Rate = 0.0
    """A crash takes what isn't in the store, and neighbours notice after seconds."""
    restart_s: tuple[_Seconds, _Seconds] = (5.0, 60.0)
    """After a crash, from … to; the same store is read."""
    from_s: _Seconds = 0.0


class Gray(_Table, frozen=True, kw_only=True):
    """Peers that are neither well nor gone."""

    kind: Literal["slow", "stuck", "deaf", "mute"]
    """``deaf`` hears nothing and is heard, ``mute`` the other way round; ``stuck`` stands still meanwhile."""
    share: _Share
    from_s: _Seconds = 0.0
    until_s: _Seconds = SECONDS_MAX
    factor: Annotated[int, Meta(ge=2, le=1_000)] = 10
    """How many times as long a slow peer's work takes."""


class Load(_Table, frozen=True, kw_only=True):
    """One kind of job, at random times."""

    name: _Name
    per_peer_hour: Annotated[float, Meta(gt=0, le=100_000)]
    """Jobs that each peer that asks submits on average."""
    mode: Literal["auction", "posted"] = "auction"
    units: Annotated[int, Meta(ge=1, le=4_096)] = 64
    unit_ms: Annotated[int, Meta(ge=1, le=10_000)] = 5
    """How long one unit takes an executor."""
    check_ms: Annotated[int, Meta(ge=1, le=60_000)] = 40
    """How long a verifier's recomputation takes."""
    verifiers: Annotated[float, Meta(gt=0, le=16)] = 2.0
    """Expected of each segment."""
    samples: Annotated[int, Meta(ge=1, le=4_096)] = 4_096
    """Chunks that each verifier recomputes."""
    window_ms: Annotated[int, Meta(ge=100, le=60_000)] = 1_000
    answer_ms: Annotated[int, Meta(ge=500, le=600_000)] = 8_000
    total_s: Annotated[int, Meta(ge=5, le=3_600)] = 240


class Hostile(_Table, frozen=True, kw_only=True):
    """A share of the peers that serve attacks this way."""

    kind: str
    share: _Share
    price_micros: Annotated[int, Meta(ge=0, le=10**9)] = 40
    """What they ask: little, to win; much, so that they only verify."""


class Scenario(_Table, frozen=True, kw_only=True):
    """A whole scenario."""

    name: str = "scenario"
    seed: Annotated[int, Meta(ge=0, le=2**62)] = 1
    peers: Annotated[int, Meta(ge=4, le=PEERS_MAX)]
    minutes: Annotated[float, Meta(gt=0, le=SECONDS_MAX / 60)]
    """How long jobs are submitted; the world then runs until they have ended."""
    start_s: _Seconds = 0.0
    """Within how long the peers start, one after another; all at once if not given."""
    warm_up_s: _Seconds = 5.0
    """Adverts spread before the first job is submitted and before anything is counted."""
    network: Network = Network()
    regions: Regions = Regions(names=("here",), latency_ms=((20,),))
    classes: tuple[PeerClass, ...] = msgspec.field(name="class")
    partitions: tuple[Partition, ...] = msgspec.field(name="partition", default=())
    clock: Clock = Clock()
    churn: Churn = Churn()
    grays: tuple[Gray, ...] = msgspec.field(name="gray", default=())
    loads: tuple[Load, ...] = msgspec.field(name="load")
    hostiles: tuple[Hostile, ...] = msgspec.field(name="hostile", default=())


def load_scenario(path: Path, **changes: int | float | None) -> Scenario:
    """Read a scenario.

    Args:
        path: the file.
        changes: top-level values that replace the file's, where they aren't None.

    Raises:
        ScenarioRefused: it can't be read, isn't TOML, or breaks a rule.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ScenarioRefused(f"can't read {path}: {error.strerror}") from error
    if len(raw) > FILE_BYTES_MAX:
        raise ScenarioRefused(f"{path} has more than {FILE_BYTES_MAX} bytes")
    try:
        tree = tomllib.loads(raw.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ScenarioRefused(f"{path} is not TOML: {error}") from None
    return parse_scenario(tree | {key: value for key, value in changes.items() if value is not None})


def parse_scenario(tree: dict[str, Any]) -> Scenario:
    """A scenario from what TOML gives.

    Raises:
        ScenarioRefused: a key is unknown or a value breaks its rule; names key, rule and value.
    """
    try:
        scenario = msgspec.convert(tree, Scenario)
    except msgspec.ValidationError as error:
        raise ScenarioRefused(_explained(str(error), tree)) from None
    _check(scenario)
    return scenario


def ppm(share: float) -> int:
    """A share in parts per million: from here on nothing is a float."""
    return round(share * 1_000_000)


def _explained(message: str, tree: dict[str, Any]) -> str:
    """Msgspec's message with the key as it stands in the file, and the value."""
    rule, _, place = message.partition(" - at `$")
    steps = re.findall(r"\.([\w-]+)|\[(\d+)\]", place)
    value: Any = tree
    name = ""
    for key, index in steps:
        name += f"[{index}]" if index else f".{key}" if name else key
        try:
            value = value[int(index)] if index else value[key]
        except (KeyError, IndexError, TypeError):
            value = None
    unknown = re.search(r"unknown field `([\w-]+)`", rule)
    if unknown is not None:
        key = unknown.group(1)
        known = _keys(steps)
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        return f"{name + '.' if name else ''}{key} is not a key of a scenario; {hint}"
    missing = re.search(r"missing required field `([\w-]+)`", rule)
    if missing is not None:
        return f"{name + '.' if name else ''}{missing.group(1)} is missing"
    return f"{name}: {rule}, got {value!r}"


_TABLES: dict[str, type[_Table]] = {
    "network": Network,
    "regions": Regions,
    "class": PeerClass,
    "partition": Partition,
    "clock": Clock,
    "churn": Churn,
    "gray": Gray,
    "load": Load,
    "hostile": Hostile,
}


def _keys(steps: list[tuple[str, str]]) -> tuple[str, ...]:
    table = _TABLES.get(steps[0][0], Scenario) if steps else Scenario
    return table.__struct_encode_fields__


def _check(scenario: Scenario) -> None:
    regions = scenario.regions
    count = len(regions.names)
    _require(1 <= count <= REGIONS_MAX, f"regions.names: 1 to {REGIONS_MAX} regions", count)
    _require(len(set(regions.names)) == count, "regions.names: each once", regions.names)
    is_square = len(regions.latency_ms) == count and all(len(row) == count for row in regions.latency_ms)
    _require(is_square, f"regions.latency_ms: {count} rows of {count}", regions.latency_ms)
    if regions.shares:
        _require(len(regions.shares) == count, f"regions.shares: {count} shares", regions.shares)
        _sum_to_one("regions.shares", regions.shares)
    _sum_to_one("class.share", [sort.share for sort in scenario.classes])
    kinds = [load.name for load in scenario.loads]
    _require(len(set(kinds)) == len(kinds) > 0, "load.name: at least one, and each once", kinds)
    served = {kind for sort in scenario.classes for kind in sort.serves}
    for sort in scenario.classes:
        for kind in sort.serves:
            _require(kind in kinds, f"class.serves: one of {', '.join(kinds)}", kind)
        low, high = sort.price_micros
        _require(low <= high, "class.price_micros: from must not exceed to", sort.price_micros)
    for kind in kinds:
        _require(kind in served, "load.name: some class must serve it", kind)
    _require(any(sort.asks for sort in scenario.classes), "class.asks: some class must ask", False)
    for partition in scenario.partitions:
        _check_span("partition", partition.from_s, partition.until_s)
        for name in partition.regions:
            _require(name in regions.names, f"partition.regions: one of {', '.join(regions.names)}", name)
        is_some = bool(partition.share) != bool(partition.regions)
        _require(is_some, "partition: either share or regions", (partition.share, partition.regions))
    for gray in scenario.grays:
        _check_span("gray", gray.from_s, gray.until_s)
    _require(sum(gray.share for gray in scenario.grays) <= 1, "gray.share: at most 1 in all", "more")
    low_s, high_s = scenario.churn.restart_s
    _require(low_s <= high_s, "churn.restart_s: from must not exceed to", scenario.churn.restart_s)
    attacks = {*CHEATS, *HOSTILE}
    for hostile in scenario.hostiles:
        near = difflib.get_close_matches(hostile.kind, attacks, n=1)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(sorted(attacks))}"
        _require(hostile.kind in attacks, f"hostile.kind: {hint}", hostile.kind)
    _require(sum(h.share for h in scenario.hostiles) < 1, "hostile.share: below 1 in all", "more")


def _check_span(table: str, from_s: float, until_s: float) -> None:
    _require(from_s < until_s, f"{table}.until_s: after from_s={from_s}", until_s)


def _sum_to_one(key: str, shares: tuple[float, ...] | list[float]) -> None:
    _require(abs(sum(map(ppm, shares)) - 1_000_000) <= len(shares), f"{key}: 1 in all", tuple(shares))


def _require(holds: bool, rule: str, value: object) -> None:
    if not holds:
        raise ScenarioRefused(f"{rule}, got {value!r}")
