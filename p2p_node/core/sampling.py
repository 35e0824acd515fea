"""How much of one contract is checked: what the client asked for, by the electors there are.

A client states its checking outright, asks for a chance of escape, or leaves it to the node. An
executor that hasn't proved itself has all its chunks checked in the last two cases; one that has is
checked less only where the client left it to us, never below what its chance of escape takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from p2p_node.core.request import JobRequest
from protocols.standing import PPM
from protocols.units import chunk_count
from verification.draw_odds import Assumptions, DrawOdds, SamplingChoice, choose_for, worst_miss

__all__ = ["PPB", "SamplingPlan", "plan_sampling"]

PPB = 1_000_000_000


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """What goes into the terms, and what it is worth by the client's assumptions."""

    choice: SamplingChoice
    accepted: float
    """The chance that a forged segment ends verified; see `DrawOdds.accepted`."""
    segment_chunks: int
    """Chunks of the job's largest segment."""


def plan_sampling(request: JobRequest, weights: Sequence[int], *, check_share_ppm: int) -> SamplingPlan:
    """The checking of one contract.

    Args:
        request: what the client asked for.
        weights: of the electors.
        check_share_ppm: of the executor's chunks, by its standing; see `PeerStanding.check_share_ppm`.

    Raises:
        OutOfReach: no choice meets the client's chance of escape with these electors.
        ValueError: there is no elector.
    """
    policy = request.policy
    assumptions = Assumptions(
        forged=policy.forged_ppm / PPM, colluding=policy.colluding_ppm / PPM, lazy=policy.lazy_ppm / PPM
    )
    odds = DrawOdds(weights, assumptions)
    segment = min(request.segment_chunks, chunk_count(request.units_max, request.chunk_units))
    sizes = range(1, segment + 1)
    by_standing = -(-check_share_ppm * segment // PPM)
    if policy.escape_ppb:
        choice = choose_for(
            weights,
            escape_target=policy.escape_ppb / PPB,
            assumptions=assumptions,
            segment_chunks=segment,
        )
        choice = replace(choice, samples=max(choice.samples, by_standing))
    else:
        samples = by_standing if policy.is_adaptive else min(request.samples, segment)
        expected = request.expected_verifiers_milli
        choice = SamplingChoice(expected, samples, 0.0, odds.verifiers(expected))
    miss = worst_miss(sizes, assumptions.forged, choice.samples)
    escape = odds.undetected(choice.expected_milli, miss)
    accepted = odds.accepted(choice.expected_milli, miss)
    return SamplingPlan(replace(choice, escape=escape), accepted, segment)
