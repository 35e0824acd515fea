"""Escape odds: the formula, a simulation of what it stands for, and the choice built on it."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verification.odds import Sampling, choose_sampling, escape_probability

ESCAPE: dict[str, Any] = {"expected_verifiers": 4.0, "samples_per_verifier": 3, "forged_share": 0.1}
CHOICE: dict[str, Any] = {
    "escape_target": 1e-3,
    "forged_share": 0.2,
    "chunks": 32,
    "expected_verifiers_max": 100.0,
}


def test_the_formula() -> None:
    escape = escape_probability(**ESCAPE, colluding_share=0.25, lazy_share=0.5)
    assert escape == pytest.approx(math.exp(-4 * 0.75 * 0.5 * (1 - 0.9**3)), rel=1e-12)
    assert escape_probability(**{**ESCAPE, "forged_share": 1.0}) == pytest.approx(math.exp(-4))
    assert escape_probability(**ESCAPE, colluding_share=1.0) == 1.0
    assert escape_probability(**ESCAPE, lazy_share=1.0) == 1.0


def test_a_sliver_of_forgery_keeps_its_digits() -> None:
    escape = escape_probability(expected_verifiers=1.0, samples_per_verifier=1, forged_share=1e-17)
    assert -math.log(escape) == pytest.approx(0.0, abs=1e-15)
    many = escape_probability(expected_verifiers=1e17, samples_per_verifier=1, forged_share=1e-17)
    assert many == pytest.approx(math.exp(-1))


def test_the_formula_is_what_happens() -> None:
    rng = random.Random(8123)
    peers, colluders, lazy, trials = 100, 20, 0.25, 4_000
    forged, chunks, samples, expected = 4, 40, 3, 5.0
    escapes = 0
    for _ in range(trials):
        caught = False
        for _honest in range(peers - colluders):
            if rng.random() < expected / peers and rng.random() >= lazy:
                caught |= any(rng.randrange(chunks) < forged for _ in range(samples))
        escapes += not caught
    formula = escape_probability(
        expected_verifiers=expected,
        samples_per_verifier=samples,
        forged_share=forged / chunks,
        colluding_share=colluders / peers,
        lazy_share=lazy,
    )
    # Standard deviation of the estimate: 0.0078.
    assert escapes / trials == pytest.approx(formula, abs=0.04)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("expected_verifiers", 0.0, "expected_verifiers must be finite and > 0, got 0.0"),
        ("expected_verifiers", math.inf, "expected_verifiers must be finite and > 0, got inf"),
        ("expected_verifiers", math.nan, "expected_verifiers must be finite and > 0, got nan"),
        ("samples_per_verifier", 0, "samples_per_verifier must be >= 1, got 0"),
        ("forged_share", 0.0, r"forged_share must be in \(0, 1\], got 0.0"),
        ("forged_share", 1.1, r"forged_share must be in \(0, 1\], got 1.1"),
        ("forged_share", math.nan, r"forged_share must be in \(0, 1\], got nan"),
        ("colluding_share", -0.1, r"colluding_share must be in \[0, 1\], got -0.1"),
        ("colluding_share", 1.1, r"colluding_share must be in \[0, 1\], got 1.1"),
        ("lazy_share", -0.1, r"lazy_share must be in \[0, 1\], got -0.1"),
        ("lazy_share", 2.0, r"lazy_share must be in \[0, 1\], got 2.0"),
    ],
)
def test_escape_refuses_arguments_outside_their_interval(field: str, value: float, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        escape_probability(**{**ESCAPE, field: value})


@given(
    escape_target=st.floats(1e-9, 0.5),
    forged_share=st.floats(0.01, 1.0),
    chunks=st.integers(1, 40),
    colluding_share=st.floats(0.0, 0.8),
    overhead=st.floats(0.0, 10.0),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_the_choice_meets_its_target_at_the_least_cost(
    escape_target: float, forged_share: float, chunks: int, colluding_share: float, overhead: float
) -> None:
    choice = choose_sampling(
        escape_target=escape_target,
        forged_share=forged_share,
        chunks=chunks,
        expected_verifiers_max=1e6,
        colluding_share=colluding_share,
        verifier_overhead_chunks=overhead,
    )
    assert 1 <= choice.samples <= chunks
    assert choice.escape_probability <= escape_target * (1 + 1e-9)
    cost = choice.expected_milli * (overhead + choice.samples)
    for samples in range(1, chunks):
        # The most verifiers that would be strictly cheaper, whatever the division rounds to.
        fewer_milli = math.ceil(cost / (overhead + samples) * (1 - 1e-9)) - 1
        if fewer_milli >= 1:
            cheaper = escape_probability(
                expected_verifiers=fewer_milli / 1_000,
                samples_per_verifier=samples,
                forged_share=forged_share,
                colluding_share=colluding_share,
            )
            assert cheaper > escape_target * (1 - 1e-9)


def test_without_overhead_one_chunk_each_is_cheapest() -> None:
    assert choose_sampling(**CHOICE, verifier_overhead_chunks=0.0).samples == 1


def test_costly_verifiers_look_at_more() -> None:
    few = choose_sampling(**CHOICE, verifier_overhead_chunks=1.0)
    many = choose_sampling(**CHOICE, verifier_overhead_chunks=50.0)
    assert many.samples > few.samples
    assert many.expected_milli < few.expected_milli


def test_whoever_recomputes_all_misses_nothing() -> None:
    choice = choose_sampling(escape_target=1e-2, forged_share=0.01, chunks=4, expected_verifiers_max=5.0)
    assert choice == Sampling(expected_milli=4_606, samples=4, escape_probability=math.exp(-4.606))


def test_a_target_out_of_reach_says_what_is_reachable() -> None:
    with pytest.raises(ValueError, match=r"out of reach: 2.0 expected verifiers.*all 32 chunks leave 0.135"):
        choose_sampling(**{**CHOICE, "expected_verifiers_max": 2.0})
    with pytest.raises(ValueError, match=r"leave 1$"):
        choose_sampling(**CHOICE, colluding_share=1.0)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("escape_target", 0.0, r"escape_target must be in \(0, 1\), got 0.0"),
        ("escape_target", 1.0, r"escape_target must be in \(0, 1\), got 1.0"),
        ("chunks", 0, "chunks must be >= 1, got 0"),
        ("expected_verifiers_max", 0.0, "expected_verifiers_max must be finite and > 0, got 0.0"),
        ("expected_verifiers_max", math.inf, "expected_verifiers_max must be finite and > 0, got inf"),
        ("verifier_overhead_chunks", -1.0, "verifier_overhead_chunks must be finite and >= 0, got -1.0"),
        ("verifier_overhead_chunks", math.inf, "verifier_overhead_chunks must be finite and >= 0, got inf"),
        ("colluding_share", 1.5, r"colluding_share must be in \[0, 1\], got 1.5"),
        ("lazy_share", -1.0, r"lazy_share must be in \[0, 1\], got -1.0"),
        ("forged_share", 0.0, r"forged_share must be in \(0, 1\], got 0.0"),
    ],
)
def test_choice_refuses_arguments_outside_their_interval(field: str, value: float, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        choose_sampling(**{**CHOICE, "chunks": 1, field: value})
