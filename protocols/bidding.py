"""Whether a peer bids on an offer, and the signed reason when it doesn't.

Pure decisions of one provider: what it can hold, what it asks, and the smallest change of an offer
that would have got a bid. `job explain` adds these reasons up.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocols.limits import INTEGER_MAX, LM_CHUNK_UNITS, RESERVATION_MS_MAX
from protocols.messages import EQUAL_BITS, Award, Offer, Offering, Tolerance

__all__ = ["Ability", "BidPlan", "Capacity", "DeclineReason", "consider", "find_ability", "fits"]


_GIB = 1 << 30


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
    tolerance: Tolerance = EQUAL_BITS
    """The model's calibrated bounds, in the native profile."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What is free now."""

    slots_free: int
    slots_total: int
    busy_for_ms: int
    is_paused: bool = False
    blob_bytes_free: int = INTEGER_MAX
    """Room for what a job's input names."""
    devices_paused: frozenset[str] = frozenset()
    """Devices that take on nothing new, where the others do."""


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


def find_ability(abilities: tuple[Ability, ...], job: Offer | Award) -> Ability | None:
    """The ability that does a job: its workload and model, in its profile."""
    return next(
        (
            ability
            for ability in abilities
            if (ability.offering.workload, ability.offering.model) == (job.workload, job.model)
            and job.profile in ability.offering.profiles
        ),
        None,
    )


def fits(ability: Ability | None, terms: Award) -> bool:
    """Whether what this peer computes is comparable with what the terms are about.

    Chunks cut in another way, another class of machines, or other bounds would make honest findings
    look false.
    """
    return (
        ability is not None
        and terms.chunk_units == ability.chunk_units
        and terms.numeric_class == (ability.offering.numeric_class if terms.profile == "homogeneous" else "")
        and (terms.profile != "homogeneous" or terms.numeric_class != "")
        and terms.tolerance == (ability.tolerance if terms.profile == "native" else EQUAL_BITS)
    )


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
    ability = find_ability(abilities, offer)
    if ability is None:
        ours = [ability.offering for ability in abilities]
        same = [o for o in ours if (o.workload, o.model) == (offer.workload, offer.model)]
        if same:
            profiles = ", ".join(dict.fromkeys(name for offering in same for name in offering.profiles))
            return DeclineReason("profile", detail=f"runs {profiles}, not {offer.profile}")
        known = any(a.offering.workload == offer.workload for a in abilities)
        reason = "model" if known else "workload"
        return DeclineReason(reason, have=0, need=1, detail=f"doesn't run {offer.workload!r} with this model")
    offering = ability.offering
    units = offer.input_units + offer.units_max
    if units > ability.context_units_max:
        return DeclineReason("context", have=ability.context_units_max, need=units)
    if ability.ram_bytes < offer.ram_bytes_min:
        have, need = ability.ram_bytes, offer.ram_bytes_min
        detail = f"memory {have / _GIB:.1f} GiB < {need / _GIB:.1f} GiB"
        return DeclineReason("ram", have=have, need=need, detail=detail)
    blob_bytes = sum(blob.size_bytes for blob in offer.blobs)
    if capacity.blob_bytes_free < blob_bytes:
        return DeclineReason("storage", have=capacity.blob_bytes_free, need=blob_bytes)
    if offering.rate_milli < offer.rate_milli_min:
        return DeclineReason("rate", have=offering.rate_milli, need=offer.rate_milli_min)
    if offering.price_micros > offer.price_micros_max:
        return DeclineReason("price", have=offer.price_micros_max, need=offering.price_micros)
    window_ms = offer.bids_close_ms - offer.sent_ms
    if window_ms > RESERVATION_MS_MAX:
        return DeclineReason("window", have=RESERVATION_MS_MAX, need=window_ms)
    if capacity.is_paused:
        return DeclineReason("paused", detail="the owner paused this peer")
    if ability.device in capacity.devices_paused:
        return DeclineReason("paused", detail=f"the owner paused {ability.device}")
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
