"""How many items each part of a job gets.

Speeds are measured ones: the paces at which peers delivered to us, and before anybody did, the middle one of
the rates that adverts state, so that a boaster alone moves nothing. Who does which part is decided when a
part is offered, so that a plan needs no speed of each peer: quick peers come back for more.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from p2p_node.core.paces import Paces
from p2p_node.core.request import JobRequest
from p2p_node.errors import UserError
from protocols.auction import Candidate
from protocols.limits import INPUT_BYTES_MAX, PARTS_MAX, UNITS_MAX
from protocols.messages import Advert
from workloads.errors import InputRefused
from workloads.split import Part, Split

__all__ = [
    "PART_MS_MIN",
    "SLOTS_PER_PEER_MAX",
    "Pace",
    "following",
    "pace_of",
    "parts_of",
    "plan_counts",
    "slots",
]

PART_MS_MIN = 1_000
"""Work that is worth an offer: a peer pauses about a tenth of a second between two parts, since the last one
is verified and paid while it does the next."""

SHARE_MS_MIN = 300
"""Work that is worth a peer of its own, where a job is too short for everybody to have more."""

PARTS_PER_SLOT = 3
"""Parts for each slot as long as nobody's pace is known: whoever is slow then keeps a third of a share."""

SLOTS_PER_PEER_MAX = 8
"""Slots are claimed, not measured: a claim of a thousand must not send a thousand offers out."""


def plan_counts(split: Split, whole: bytes, *, parts: int | None, slots: int, pace: Pace) -> tuple[int, ...]:
    """Items of each part, in order.

    Args:
        split: how the work falls into items.
        whole: input of the whole.
        parts: how many are wanted, or None to choose.
        slots: parts that the peers known could do at once.
        pace: of the peers known.

    Raises:
        UserError: such parts would break a rule of the workload or a limit of the protocol.
    """
    items = split.items(whole)
    if split.order is not None:
        if parts not in (None, items):
            raise UserError(f"parts: {parts} must be {items}: each of the job's {split.items_name} is one")
        _check(split, whole, (1,) * items)
        return (1,) * items
    if parts is not None:
        if parts > items:
            raise UserError(f"parts: {parts} must be at most the job's {items} {split.items_name}")
        counts = [items // parts + (number < items % parts) for number in range(parts)]
        _check(split, whole, counts)
        return tuple(counts)
    slots = max(1, slots)
    item_us = max(1, pace.unit_us * split.part(whole, 0, 1).units_max)
    share = -(-items // slots)
    items_min = min(-(-1_000 * PART_MS_MIN // item_us), max(share, -(-1_000 * SHARE_MS_MIN // item_us)))
    if not pace.is_observed:
        # An advert's rate is of a probe, which may be lighter work: parts for everybody in any case.
        items_min = min(items_min, -(-items // (PARTS_PER_SLOT * slots)))
    counts = []
    for count in _shrinking(items, slots=slots, items_min=items_min):
        counts += _fitting(split, whole, sum(counts), count)
    if len(counts) > PARTS_MAX:
        raise UserError(f"parts: {len(counts)} would be needed, more than {PARTS_MAX}")
    return tuple(counts)


def _shrinking(items: int, *, slots: int, items_min: int) -> list[int]:
    """Sizes that shrink, so that whoever takes the last one keeps nobody waiting for long.

    Source: Polychronopoulos and Kuck, "Guided self-scheduling", IEEE Transactions on Computers 36, 1987; half
    their sizes, since a peer may turn out slow.
    """
    items_min = max(items_min, -(-items // PARTS_MAX))
    counts: list[int] = []
    while items:
        count = min(items, max(items_min, -(-items // (2 * slots))))
        # A rest that isn't worth a part goes with the last one.
        count = items if items - count < (items_min + 1) // 2 else count
        counts.append(count)
        items -= count
    return counts


def _fitting(split: Split, whole: bytes, first: int, count: int) -> list[int]:
    """``count`` items as parts that keep the limits, by halving."""
    try:
        _part(split, whole, first, count)
    except UserError:
        if count == 1:
            raise
        half = count // 2
        return [
            *_fitting(split, whole, first, count - half),
            *_fitting(split, whole, first + count - half, half),
        ]
    return [count]


def _check(split: Split, whole: bytes, counts: Sequence[int]) -> None:
    first = 0
    for count in counts:
        _part(split, whole, first, count)
        first += count


def _part(split: Split, whole: bytes, first: int, count: int) -> Part:
    where = f"parts: {split.label(whole, first, count)}"
    try:
        part = split.part(whole, first, count)
    except InputRefused as error:
        raise UserError(f"{where}: {error}") from error
    if part.units_max > UNITS_MAX:
        raise UserError(f"{where} have {part.units_max} output units, more than {UNITS_MAX}")
    if len(part.input) > INPUT_BYTES_MAX:
        raise UserError(f"{where} take {len(part.input)} bytes of input, more than {INPUT_BYTES_MAX}")
    return part


def parts_of(split: Split, whole: bytes, counts: Sequence[int]) -> list[Part]:
    """The parts of a plan; those that start from others' output as far as they are known beforehand.

    Raises:
        UserError: one breaks a rule.
    """
    firsts = [sum(counts[:number]) for number in range(len(counts))]
    return [_part(split, whole, first, count) for first, count in zip(firsts, counts, strict=True)]


def following(split: Split, whole: bytes, item: int, needed: Sequence[Sequence[int]]) -> Part:
    """A part that starts from others' output.

    Args:
        split: with an order.
        whole: input of the whole.
        item: of the part.
        needed: the units of those that it needs.

    Raises:
        UserError: it doesn't follow from these.
    """
    if split.order is None:
        raise UserError(f"parts: {split.items_name} don't follow from each other")
    try:
        return split.order.part(whole, item, needed)
    except InputRefused as error:
        raise UserError(f"parts: {split.label(whole, item, 1)}: {error}") from error


def slots(candidates: Sequence[Candidate]) -> int:
    """Parts that these peers could do at once."""
    return sum(min(max(1, _advert(peer).slots_total), SLOTS_PER_PEER_MAX) for peer in candidates)


@dataclass(frozen=True, slots=True)
class Pace:
    """How long an output unit takes, as far as it is known.

    Args:
        unit_us: microseconds; 0 if nothing is known.
        is_observed: whether peers delivered to us at this pace, rather than claim it.
    """

    unit_us: int
    is_observed: bool


def pace_of(paces: Paces, request: JobRequest, candidates: Sequence[Candidate]) -> Pace:
    """The pace to plan a job with."""
    seen = paces.observed((request.workload, request.model, request.profile))
    if seen:
        return Pace(round(statistics.median(seen)), is_observed=True)
    rates = [
        offering.rate_milli
        for peer in candidates
        for offering in _advert(peer).offerings
        if (offering.workload, offering.model) == (request.workload, request.model) and offering.rate_milli
    ]
    return Pace(round(10**9 / statistics.median(rates)) if rates else 0, is_observed=False)


def _advert(candidate: Candidate) -> Advert:
    advert: Advert = candidate.basis.body
    return advert
