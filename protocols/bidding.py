"""Whether a peer bids on an offer, and the signed reason when it doesn't.

Pure decisions of one provider: what it can hold, what it asks, and the smallest change of an offer
that would have got a bid. `job explain` adds these reasons up.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocols.limits import LM_CHUNK_UNITS, RESERVATION_MS_MAX
from protocols.messages import Offer, Offering

__all__ = ["Ability", "BidPlan", "Capacity", "DeclineReason", "consider"]


@dataclass(frozen=True, slots=True)
class Ability:
    """One model this peer runs, with the bounds that its advert doesn't carry."""

    offering: Offering
    device: str
    context_units_max: int
    """Input and output units together."""
    ram_bytes: int
    chunk_units: int = LM_CHUNK_UNITS
    """Output units of one chunk, as the workload cuts them."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What is free now."""

    slots_free: int
    slots_total: int
    busy_for_ms: int
    is_paused: bool = False


@dataclass(frozen=True, slots=True)
class BidPlan:
    """A bid, before it's signed."""

    price_micros: int
    eta_ms: int
    rate_milli: int
    device: str
    warm: bool


@dataclass(frozen=True, slots=True)
class DeclineReason:
    """Why not, with the value there is and the value there would have to be."""

    reason: str
    have: int = 0
    need: int = 0
    detail: str = ""


def consider(
    offer: Offer, *, own_key: bytes, abilities: tuple[Ability, ...], capacity: Capacity
) -> BidPlan | DeclineReason:
    """Decide on an offer.

    Args:
        offer: what is asked for.
        own_key: this peer's public key.
        abilities: the models it runs.
        capacity: what is free now.
    """
    if own_key in offer.exclude:
        return DeclineReason("excluded", detail="the offer excludes this peer")
    ability = next(
        (a for a in abilities if (a.offering.workload, a.offering.model) == (offer.workload, offer.model)),
        None,
    )
    if ability is None:
        known = any(a.offering.workload == offer.workload for a in abilities)
        reason = "model" if known else "workload"
        return DeclineReason(reason, have=0, need=1, detail=f"doesn't run {offer.workload!r} with this model")
    offering = ability.offering
    if offer.profile not in offering.profiles:
        return DeclineReason("profile", detail=f"runs {', '.join(offering.profiles)}, not {offer.profile}")
    units = offer.input_units + offer.units_max
    if units > ability.context_units_max:
        return DeclineReason("context", have=ability.context_units_max, need=units)
    if ability.ram_bytes < offer.ram_bytes_min:
        return DeclineReason("ram", have=ability.ram_bytes, need=offer.ram_bytes_min)
    if offering.rate_milli < offer.rate_milli_min:
        return DeclineReason("rate", have=offering.rate_milli, need=offer.rate_milli_min)
    if offering.price_micros > offer.price_micros_max:
        return DeclineReason("price", have=offer.price_micros_max, need=offering.price_micros)
    window_ms = offer.bids_close_ms - offer.sent_ms
    if window_ms > RESERVATION_MS_MAX:
        return DeclineReason("window", have=RESERVATION_MS_MAX, need=window_ms)
    if capacity.is_paused:
        return DeclineReason("paused", detail="the owner paused this peer")
    if capacity.slots_free < 1:
        return DeclineReason("busy", have=0, need=1, detail=f"{capacity.slots_total} slots, none free")
    work_ms = 1_000_000 * offer.units_max // max(1, offering.rate_milli)
    return BidPlan(
        offering.price_micros,
        work_ms + capacity.busy_for_ms,
        offering.rate_milli,
        ability.device,
        offering.warm,
    )
