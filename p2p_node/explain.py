"""Why peers didn't take a job: reasons added up, each with the smallest change that would have helped.

In an auction peers sign their reasons. A posted job asks nobody, so its reasons follow from the
adverts: each peer's ask and measures, held against the offer by the rule that the peer itself uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from p2p_node.core.requester import Job
from protocols.bidding import Ability, Capacity, DeclineReason, consider
from protocols.envelope import Signed
from protocols.identity import peer_id
from protocols.limits import INTEGER_MAX
from protocols.messages import Advert

__all__ = ["add_up", "reasons"]


def reasons(job: Job, adverts: Iterable[Signed[Advert]]) -> Iterator[tuple[bytes, DeclineReason]]:
    """Every (peer, reason) known of a job.

    Args:
        job: over or not.
        adverts: current ones, of other peers.
    """
    for decline in job.declines():
        body = decline.body
        yield decline.signer, DeclineReason(body.reason, body.have, body.need, body.detail)
    if job.request.mode != "posted":
        return
    offer = job.offers[-1].body
    for advert in adverts:
        # An advert doesn't tell the context; and whoever is busy is asked all the same, only last.
        abilities = tuple(
            Ability(offering, "", INTEGER_MAX, advert.body.ram_bytes) for offering in advert.body.offerings
        )
        capacity = Capacity(slots_free=1, slots_total=1, busy_for_ms=0)
        plan = consider(offer, own_key=advert.signer, abilities=abilities, capacity=capacity)
        # Who serves nothing at all wasn't expected to.
        if abilities and isinstance(plan, DeclineReason):
            yield advert.signer, plan


def add_up(found: Iterable[tuple[bytes, DeclineReason]]) -> list[dict[str, Any]]:
    """Group reasons by their kind, in the order of its name.

    Returns:
        For each kind ``reason``, ``count`` and ``peers`` that gave it, ``change``, the smallest one
        that would have won one of them over (empty if there is none), and ``details`` they told.
    """
    groups: dict[str, list[tuple[bytes, DeclineReason]]] = {}
    for peer, why in found:
        groups.setdefault(why.reason, []).append((peer, why))
    return [
        {
            "reason": reason,
            "count": len({peer for peer, _ in members}),
            "peers": sorted({peer_id(peer) for peer, _ in members}),
            "change": _change(reason, [why for _, why in members]),
            "details": sorted({why.detail for _, why in members if why.detail}),
        }
        for reason, members in sorted(groups.items())
    ]


def _change(reason: str, members: list[DeclineReason]) -> str:
    # The lowest ask, or the peer that has most.
    nearest = min(members, key=lambda why: why.need if reason == "price" else -why.have)
    match reason:
        case "price":
            return f"raise auction.max_price from {nearest.have} to {nearest.need}"
        case "ram":
            return f"lower resources.ram from {nearest.need}B to {nearest.have}B"
        case "storage":
            return f"send less: files of {nearest.need} bytes, the roomiest peer has {nearest.have} left"
        case "rate":
            return f"lower resources.min_rate from {_per_second(nearest.need)} to {_per_second(nearest.have)}"
        case "context":
            return f"shorten prompt and max_tokens together from {nearest.need} to {nearest.have} tokens"
        case "busy":
            return "wait, or raise timeouts.queue: every slot was taken"
        case "model" | "workload":
            return "name a model that peers offer (see: p2p-node peers)"
        case "profile":
            return "choose another verify.profile"
        case "excluded":
            return "drop the peer from placement.exclude"
    return ""


def _per_second(rate_milli: int) -> str:
    """A rate as a job file has it: thousandths become decimals."""
    return f"{rate_milli // 1_000}.{rate_milli % 1_000:03d}".rstrip("0").rstrip(".")
