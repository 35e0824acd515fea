"""What a job would be checked by and cost, by what this node knows now. Nothing is offered to anybody."""

from __future__ import annotations

from typing import Any

from p2p_node.core.node import NodeCore
from p2p_node.core.request import JobRequest
from p2p_node.core.requester import offer_of
from p2p_node.core.sampling import SamplingPlan, plan_sampling
from protocols.auction import Candidate, price_to_pay
from protocols.envelope import Signed
from protocols.identity import peer_id
from protocols.messages import Offer
from protocols.standing import PPM, PROVEN_CONTRACTS
from protocols.units import chunk_count
from verification.draw_odds import OutOfReach
from verification.findings import HOMOGENEOUS
from verification.odds import escape_probability

__all__ = ["quote"]

CANDIDATES_SHOWN_MAX = 5


def quote(core: NodeCore, request: JobRequest, now_ms: int) -> dict[str, Any]:
    """The checking that would be chosen for a job, its worth and its cost.

    Prices of an auction are estimates: peers' standing asks stand for the bids they would make.

    Returns:
        ``reason``, empty if the job can be done as asked, else why not and what would help; who could
        run it and verify it; ``verifiers``, ``samples`` and ``escape`` of the choice, and what is
        assumed; expected costs in micro-units.
    """
    offer = core.sign(
        offer_of(request, nonce=bytes(16), sent_ms=now_ms, expires_ms=now_ms + request.total_ms)
    )
    candidates = core.market.posted_candidates(offer, ranking=request.ranking, now_ms=now_ms)
    if request.profile == HOMOGENEOUS:
        candidates = [c for c in candidates if core.market.numeric_class(offer.body, c.peer, now_ms)]
    policy = request.policy
    chunks = chunk_count(request.units_max, request.chunk_units)
    facts: dict[str, Any] = {
        "reason": "" if candidates else "no peer that is known runs this model in this profile at this price",
        "profile": request.profile,
        "numeric_class": "",
        "peers_able": len(candidates),
        "best_asks": [_ask(core, c) for c in candidates[:CANDIDATES_SHOWN_MAX]],
        "executor": peer_id(candidates[0].peer) if candidates else None,
        "chunks": chunks,
        "segments": chunk_count(chunks, request.segment_chunks),
        "assumed": {
            "forged": policy.forged_ppm / PPM,
            "colluding": policy.colluding_ppm / PPM,
            "lazy": policy.lazy_ppm / PPM,
        },
    }
    checking = _checking(core, request, offer, candidates, now_ms)
    if not core.market.able(offer.body, now_ms):
        checking["reason"] = _nobody_has(core, request, now_ms)
    return facts | checking


def _nobody_has(core: NodeCore, request: JobRequest, now_ms: int) -> str:
    """Why nobody can do a job at any price, and whose models can be had instead, or can be pulled."""
    others: set[bytes] = set()
    sharing: set[str] = set()
    for advert in core.registry.current(now_ms):
        if advert.signer == core.key:
            continue
        others |= {o.model for o in advert.body.offerings if o.workload == request.workload}
        sharing |= {model.name for model in advert.body.models if model.model == request.model}
    name = request.model_name or request.model.hex()
    told = f"nobody known here has model {name} for {request.workload} in profile {request.profile}"
    if request.model in others:
        return f"{told}; peers run it in other profiles"
    if sharing:
        return f"{told}; peers share its files as {', '.join(sorted(sharing))}, but don't run it"
    return f"{told}; {len(others)} other models of this kind are offered"


def _ask(core: NodeCore, candidate: Candidate) -> dict[str, Any]:
    standing = core.standings.of(candidate.peer)
    return {
        "peer": peer_id(candidate.peer),
        "price_micros": candidate.ask_micros,
        "score_micros": candidate.score_micros,
        "eta_ms": candidate.eta_ms,
        "is_proven": standing.streak >= PROVEN_CONTRACTS,
        "checked_share": standing.check_share_ppm() / PPM,
    }


def _checking(
    core: NodeCore, request: JobRequest, offer: Signed[Offer], candidates: list[Candidate], now_ms: int
) -> dict[str, Any]:
    """Choice, worth and cost, with the best candidate as the executor."""
    executor = candidates[0].peer if candidates else b""
    electorate = core.market.electorate(offer.body, executor, now_ms)
    if electorate is None:
        return {"reason": "no peer is known that could verify this job", "electors": 0}
    found: dict[str, Any] = {"electors": electorate.count, "electorate_weight": electorate.total_weight}
    share = core.standings.of(executor).check_share_ppm()
    try:
        plan = plan_sampling(request, [m.weight for m in electorate.members], check_share_ppm=share)
    except OutOfReach as error:
        return found | {"reason": f"verify.escape: {error}", "escape": error.escape, "needed": error.needed}
    if request.profile == HOMOGENEOUS and candidates:
        found["numeric_class"] = core.market.numeric_class(offer.body, executor, now_ms)
    return found | _worth(request, plan) | _cost(request, plan, candidates)


def _worth(request: JobRequest, plan: SamplingPlan) -> dict[str, Any]:
    policy, choice = request.policy, plan.choice
    return {
        "verifiers": round(choice.verifiers, 3),
        "expected_milli": choice.expected_milli,
        "samples": choice.samples,
        "segment_chunks": plan.segment_chunks,
        "escape": choice.escape,
        "escape_accepted": plan.accepted,
        "escape_formula": escape_probability(
            expected_verifiers=choice.expected_milli / 1_000,
            samples_per_verifier=choice.samples,
            forged_share=policy.forged_ppm / PPM if choice.samples < plan.segment_chunks else 1.0,
            colluding_share=policy.colluding_ppm / PPM,
            lazy_share=policy.lazy_ppm / PPM,
        ),
        "is_every_chunk_recomputed": choice.samples >= plan.segment_chunks,
    }


def _cost(request: JobRequest, plan: SamplingPlan, candidates: list[Candidate]) -> dict[str, Any]:
    chunks = chunk_count(request.units_max, request.chunk_units)
    whole, last = divmod(chunks, request.segment_chunks)
    recomputed = whole * min(plan.choice.samples, request.segment_chunks) + min(plan.choice.samples, last)
    verification = round(plan.choice.verifiers * recomputed * request.verifier_fee_micros)
    if not candidates:
        return {"verification_micros": verification}
    price = candidates[0].ask_micros
    if request.mode == "auction":
        price = price_to_pay(candidates, 0, price_max=request.price_micros_max)
    execution = price * request.units_max
    return {
        "price_micros": price,
        "execution_micros": execution,
        "execution_micros_max": request.price_micros_max * request.units_max,
        "verification_micros": verification,
        "total_micros": execution + verification,
    }
