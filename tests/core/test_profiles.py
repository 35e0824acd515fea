"""Profiles are offered, priced, agreed to and judged apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from p2p_node.config import NodeConfig, load_config
from p2p_node.core.requester import Job
from p2p_node.offerings import PROFILE_PERCENT, abilities_of
from p2p_node.sim.scenario import MODEL, job_request
from protocols.bidding import Ability, BidPlan, Capacity, DeclineReason, consider, find_ability, fits
from protocols.messages import EQUAL_BITS, Offering, Proposal, Refusal, Tolerance
from tests.support.builders import (
    ELECTORATE,
    EXECUTOR,
    INPUT,
    NOW_MS,
    REQUESTER,
    VERIFIERS,
    advert,
    award,
    changed,
    committed,
    contract,
    key,
    offer,
    signed,
)
from tests.support.machines import core, sent, the
from tests.support.swarm import Swarm, request
from workloads.registry import KINDS

BOUNDS = Tolerance(agree_steps=10, convict_steps=40, agree_margin_ppb=5, convict_margin_ppb=9)
CLASS = "x86_64-avx2-torch2-00000000"


def ability(profile: str, price: int, **fields: Any) -> Ability:
    numeric_class = CLASS if profile == "homogeneous" else ""
    offering = Offering("sim.hash", MODEL, (profile,), price, 200_000, True, numeric_class)
    return Ability(offering, "cpu", 4_096, 1 << 30, **fields)


ABILITIES = (
    ability("exact14", 100),
    ability("exact21", 200),
    ability("homogeneous", 90),
    ability("native", 80, tolerance=BOUNDS),
)


@pytest.mark.parametrize(
    ("profile", "price"), [("exact14", 100), ("exact21", 200), ("homogeneous", 90), ("native", 80)]
)
def test_each_profile_has_its_own_price(profile: str, price: int) -> None:
    job = changed(offer().body, profile=profile)
    plan = consider(job, own_key=key(1), abilities=ABILITIES, capacity=Capacity(1, 1, 0))
    assert isinstance(plan, BidPlan) and plan.price_micros == price


def test_a_profile_that_is_not_offered_is_named_beside_those_that_are() -> None:
    job = changed(offer().body, profile="bf16")
    why = consider(job, own_key=key(1), abilities=ABILITIES, capacity=Capacity(1, 1, 0))
    assert isinstance(why, DeclineReason)
    assert why.detail == "runs exact14, exact21, homogeneous, native, not bf16"


@pytest.mark.parametrize(
    ("fields", "do_fit"),
    [
        ({}, True),
        ({"numeric_class": CLASS}, False),
        ({"tolerance": BOUNDS}, False),
        ({"chunk_units": 16}, False),
        ({"profile": "homogeneous", "numeric_class": CLASS}, True),
        ({"profile": "homogeneous"}, False),
        ({"profile": "homogeneous", "numeric_class": "arm64"}, False),
        ({"profile": "native", "tolerance": BOUNDS}, True),
        ({"profile": "native"}, False),
        # Tightened bounds would convict the honest.
        ({"profile": "native", "tolerance": changed(BOUNDS, convict_steps=1)}, False),
        ({"profile": "bf16"}, False),
    ],
)
def test_only_comparable_terms_fit(fields: dict[str, Any], do_fit: bool) -> None:
    terms = award(**fields).body
    assert fits(find_ability(ABILITIES, terms), terms) is do_fit


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        (
            {"profile": "homogeneous", "numeric_class": "arm64"},
            "numeric_class='arm64' or the tolerance isn't ours",
        ),
        ({"profile": "native", "tolerance": changed(BOUNDS, convict_steps=1)}, "the tolerance isn't ours"),
    ],
)
def test_an_executor_refuses_what_it_could_be_framed_by(fields: dict[str, Any], detail: str) -> None:
    node = core(EXECUTOR, knows=VERIFIERS)
    node.provider.abilities = ABILITIES
    job = offer(mode="posted", profile=fields["profile"])
    terms = award(job_id=job.id, **fields)
    body = Proposal(terms.raw, job.raw, INPUT, (), ELECTORATE.members, 0)
    refusal = the(sent(node.provider.hear_proposal(signed(REQUESTER, body), NOW_MS), Refusal))
    assert refusal.body.reason == "terms" and detail in refusal.body.detail


def test_a_verifier_of_another_class_takes_no_part_and_judges_nothing() -> None:
    node = core(2)
    node.verifier.abilities = ABILITIES
    for numeric_class, is_able in ((CLASS, True), ("arm64", False)):
        agreed = contract(profile="homogeneous", numeric_class=numeric_class)
        _, commitment = committed(agreed)
        assert bool(node.verifier.hear_commitment(agreed, commitment, NOW_MS)) is is_able


def test_the_award_names_the_executors_class() -> None:
    node = core(REQUESTER, serves=False)
    for number, numeric_class in ((1, "a"), (2, "a"), (3, "b"), (4, "b"), (5, "")):
        body = changed(
            advert(number).body.offerings[0],
            profiles=("homogeneous",),
            numeric_class=numeric_class,
            price_micros=100 - number,
        )
        node.registry.hear(advert(number, offerings=(body,)), NOW_MS)
    job = replace(job_request(1, mode="posted"), profile="homogeneous")
    job_id, _ = node.submit(job, nonce=bytes(16), now_ms=NOW_MS)
    [attempt] = node.jobs[job_id].attempts
    terms = attempt.award.body
    # Peer 5 asks least and names no class: nobody could judge it.
    assert (terms.executor, terms.numeric_class, terms.electorate_count) == (key(4), "b", 1)


def test_a_native_job_runs_to_its_receipt() -> None:
    job: Job = Swarm(4).run_job(request(profile="native", samples=2))
    assert job.state.value == "verified"
    round_ = next(iter(job.attempts[0].rounds.values()))
    assert round_.commitment.body.profile == "native"
    assert all(entry.reveal and entry.reveal.body.profile == "native" for entry in round_.entries.values())


def test_a_node_offers_what_it_can_run_at_the_operators_prices() -> None:
    kind = KINDS["lm.generate"]
    [model] = kind.models()
    config = NodeConfig(price_micros=1_000, profile_percent={"exact21": 150})
    measured = {"memory_bytes": 1 << 30, "numeric_class": CLASS}
    found = abilities_of(
        kind, model, profiles=kind.profiles, rate_milli=1_000, config=config, measured=measured
    )
    asks = {a.offering.profiles: a.offering.price_micros for a in found}
    assert asks == {("exact14",): 1_000, ("exact21",): 1_500, ("homogeneous",): 900, ("native",): 800}
    assert {a.offering.numeric_class for a in found} == {"", CLASS}
    assert [a.tolerance != EQUAL_BITS for a in found] == [False, False, False, True]
    # A machine whose class isn't known offers none.
    less = abilities_of(
        kind, model, profiles=kind.profiles, rate_milli=1_000, config=config, measured={"memory_bytes": 1}
    )
    assert ("homogeneous",) not in {a.offering.profiles for a in less}
    assert set(PROFILE_PERCENT) == {"exact14", "exact21", "homogeneous", "native"}


def test_prices_by_profile_come_from_the_settings(tmp_path: Any) -> None:
    path = tmp_path / "config.toml"
    path.write_text("elector_age_s = 60\n[profile_percent]\nnative = 70\n")
    config = load_config(path, {})
    assert (config.profile_percent, config.elector_age_s) == ({"native": 70}, 60)
