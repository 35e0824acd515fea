"""Who is who in a scenario's world, and when they come and go: drawn once, before anything happens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from p2p_node.core.node import Capability
from p2p_node.hostile import ATTACKS, Role
from p2p_node.sim.scenariofile import Load, PeerClass, Scenario, ppm
from protocols.bidding import Ability
from protocols.digest import tagged
from protocols.messages import Offering

__all__ = ["Cast", "capability", "cast", "dealt", "model_of", "wait_ms"]

T = TypeVar("T")
HONEST_LINKS = 1
"""Of a peer that is surrounded by an eclipse."""

MINUTE_MS = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """The peers of a world, by index; those that join later come last."""

    classes: list[PeerClass]
    region: list[int]
    cheats: dict[int, str]
    capabilities: list[Capability]
    starts_ms: dict[int, int]
    skew_ms: list[int]
    drift_ppm: list[int]
    askers: list[int]
    surrounded: dict[int, frozenset[int]]


def wait_ms(luck: random.Random, mean_ms: int) -> int:
    """Time until the next of many independent events, at least 0, with this mean.

    By comparisons alone: a logarithm's last bit differs between C libraries.

    Source: J. von Neumann, "Various techniques used in connection with random digits", 1951.
    """
    whole = 0
    while True:
        first = last = luck.getrandbits(48)
        descents = 0
        while (drawn := luck.getrandbits(48)) <= last:
            last = drawn
            descents += 1
        if descents % 2 == 0:
            return ((whole << 48) + first) * mean_ms >> 48
        whole += 1


def dealt(shares: Sequence[float], count: int) -> list[int]:
    """How many of ``count`` each share gets: rounded down, and the rest to the largest remainders."""
    exact = [ppm(share) * count for share in shares]
    counts = [part // 1_000_000 for part in exact]
    missing = min(len(shares), count * sum(map(ppm, shares)) // 1_000_000 - sum(counts))
    by_rest = sorted(range(len(shares)), key=lambda i: (-(exact[i] % 1_000_000), i))
    for index in by_rest[:missing]:
        counts[index] += 1
    return counts


def model_of(load: str) -> bytes:
    """What stands for the model of one kind of load."""
    return tagged("p2p-node/sim-model/1", load.encode())


def capability(serves: Sequence[Load], *, price_micros: int, slots: int) -> Capability:
    """What a peer that runs these kinds of load says of itself."""
    offerings = [
        Offering("sim.hash", model_of(load.name), ("exact14",), price_micros, 1_000_000 // load.unit_ms, True)
        for load in serves
    ]
    abilities = tuple(Ability(offering, "cpu", 4_096, 1 << 30) for offering in offerings)
    return Capability(abilities=abilities, slots_total=slots)


def cast(scenario: Scenario, luck: random.Random) -> Cast:
    """Draw the peers of a scenario."""
    joins_ms = _joins(scenario, luck)
    total = scenario.peers + len(joins_ms)
    start_ms = round(1_000 * scenario.start_s)
    starts_ms = {index: index * start_ms // scenario.peers for index in range(scenario.peers)} | joins_ms
    classes = _spread(scenario.classes, [sort.share for sort in scenario.classes], total, luck)
    places = scenario.regions
    shares = places.shares or (1 / len(places.names),) * len(places.names)
    region = _spread(range(len(places.names)), shares, total, luck)
    cheats = _hostile(scenario, classes, luck)
    loads = {load.name: load for load in scenario.loads}
    asked = {hostile.kind: hostile.price_micros for hostile in scenario.hostiles}
    capabilities = []
    for index, sort in enumerate(classes):
        price = luck.randint(*sort.price_micros)
        capabilities.append(
            capability(
                [loads[kind] for kind in sort.serves],
                price_micros=asked.get(cheats.get(index, ""), price),
                slots=sort.slots,
            )
        )
    skew, drift = scenario.clock.skew_ms, scenario.clock.drift_ppm
    askers = [
        index
        for index, sort in enumerate(classes)
        if (sort.asks and index not in cheats) or _role(cheats.get(index, "")) is Role.REQUESTER
    ]
    return Cast(
        classes=classes,
        region=region,
        cheats=cheats,
        capabilities=capabilities,
        starts_ms=starts_ms,
        skew_ms=[luck.randint(-skew, skew) for _ in range(total)],
        drift_ppm=[luck.randint(-drift, drift) for _ in range(total)],
        askers=askers,
        surrounded=_surrounded(cheats, askers, total),
    )


def _role(cheat: str) -> Role | None:
    return ATTACKS[cheat].role if cheat in ATTACKS else None


def _spread(things: Sequence[T], shares: Sequence[float], total: int, luck: random.Random) -> list[T]:
    """Each thing as often as its share says, in random order."""
    counts = dealt(shares, total)
    counts[0] += total - sum(counts)
    dealt_out = [thing for thing, count in zip(things, counts, strict=True) for _ in range(count)]
    luck.shuffle(dealt_out)
    return dealt_out


def _joins(scenario: Scenario, luck: random.Random) -> dict[int, int]:
    """When peers join that aren't there from the start, by index."""
    share = ppm(scenario.churn.joins_per_minute) * scenario.peers
    if not share:
        return {}
    mean_ms = MINUTE_MS * 1_000_000 // share
    at_ms = round(1_000 * max(scenario.churn.from_s, scenario.warm_up_s))
    end_ms = round(MINUTE_MS * scenario.minutes) + round(1_000 * scenario.warm_up_s)
    starts: dict[int, int] = {}
    while (at_ms := at_ms + max(1, wait_ms(luck, mean_ms))) < end_ms:
        starts[scenario.peers + len(starts)] = at_ms
    return starts


def _hostile(scenario: Scenario, classes: Sequence[PeerClass], luck: random.Random) -> dict[int, str]:
    if not scenario.hostiles:
        return {}
    able = [index for index in range(scenario.peers) if classes[index].serves]
    luck.shuffle(able)
    kinds = [hostile.kind for hostile in scenario.hostiles]
    counts = dealt([hostile.share for hostile in scenario.hostiles], len(able))
    cheats = [kind for kind, count in zip(kinds, counts, strict=True) for _ in range(count)]
    return dict(sorted(zip(able, cheats, strict=False)))


def _surrounded(cheats: dict[int, str], askers: Sequence[int], total: int) -> dict[int, frozenset[int]]:
    """An eclipse closes around the first honest peer that asks; one honest neighbour is left to it."""
    ring = [index for index, cheat in cheats.items() if cheat == "eclipse"]
    if not ring:
        return {}
    victim = next(index for index in askers if index not in cheats)
    friends = [index for index in range(total) if index not in cheats and index != victim][:HONEST_LINKS]
    return {victim: frozenset({*ring, *friends})}
