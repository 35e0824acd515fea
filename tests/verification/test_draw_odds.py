"""The odds of one electorate: against the formula, against every case counted out, and the choice."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.limits import VERIFIERS_PER_SEGMENT_MAX, WIDENING_MAX
from verification.draw_odds import (
    Assumptions,
    DrawOdds,
    OutOfReach,
    choose_for,
    forged_chunks,
    miss_chance,
    worst_miss,
)
from verification.odds import escape_probability

HONEST = Assumptions(colluding=0.0)


@pytest.mark.parametrize(
    ("chunks", "share", "forged"), [(4, 0.1, 1), (10, 0.1, 1), (4, 0.3, 2), (4, 1.0, 4), (1, 0.01, 1)]
)
def test_a_share_of_few_chunks_is_at_least_one(chunks: int, share: float, forged: int) -> None:
    assert forged_chunks(chunks, share) == forged


def test_missing_is_counted_without_replacement() -> None:
    sets = list(itertools.combinations(range(6), 3))
    missing = [drawn for drawn in sets if not {0, 1} & set(drawn)]
    assert miss_chance(6, 2, 3) == pytest.approx(len(missing) / len(sets))
    assert miss_chance(4, 1, 9) == 0.0


def test_the_last_segment_may_be_the_weakest() -> None:
    # 2 of 8 forged are easier to miss with two looks than 2 of 4, and 3 of 9 than 3 of 8.
    assert worst_miss([8], 0.25, 2) == miss_chance(8, 2, 2)
    assert worst_miss([1, 8, 5], 0.25, 2) == max(miss_chance(8, 2, 2), miss_chance(5, 2, 2))


def test_a_large_even_electorate_has_the_odds_of_the_formula() -> None:
    odds = DrawOdds([1] * 4_000, Assumptions(colluding=0.25, lazy=0.5))
    formula = escape_probability(
        expected_verifiers=4, samples_per_verifier=1, forged_share=0.5, colluding_share=0.25, lazy_share=0.5
    )
    assert odds.undetected(4_000, miss_chance(400, 200, 1)) == pytest.approx(formula, rel=1e-3)


@given(
    weights=st.lists(st.integers(1, 1), min_size=2, max_size=60),
    expected=st.integers(1, 2_000),
    samples=st.integers(1, 4),
    colluding=st.floats(0, 0.9),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_formula_is_an_upper_bound_while_nobody_is_certain(
    weights: list[int], expected: int, samples: int, colluding: float
) -> None:
    odds = DrawOdds(weights, Assumptions(forged=0.25, colluding=colluding))
    formula = escape_probability(
        expected_verifiers=expected / 1_000,
        samples_per_verifier=samples,
        forged_share=0.25,
        colluding_share=colluding,
    )
    assert odds.undetected(expected, miss_chance(4, 1, samples)) <= formula * (1 + 1e-9)


def test_past_certainty_the_formula_promises_too_much() -> None:
    odds = DrawOdds([1] * 3, Assumptions(colluding=0.5))
    formula = escape_probability(
        expected_verifiers=30, samples_per_verifier=4, forged_share=1, colluding_share=0.5
    )
    assert formula < 1e-6
    assert odds.undetected(30_000, 0.0) == pytest.approx(0.125)
    assert odds.verifiers(30_000) == 3


def test_heavy_colluders_count_by_their_weight() -> None:
    odds = DrawOdds([8, 1, 1], Assumptions(colluding=0.8))
    # The heavy one is all that the share buys; one of the others must be drawn.
    assert odds.undetected(1_000, 0.0) >= (1 - 0.1) ** 2


def _accepted(weights: Sequence[int], colluding: float, lazy: float, expected: int, miss: float) -> float:
    """Every outcome counted out: for each elector its kind, the level it is drawn at, what it sees."""
    total = sum(weights)
    cases: list[list[tuple[float, int | None, bool]]] = []
    for weight in weights:
        chances = [min(1.0, expected * 2**level * weight / total) for level in range(WIDENING_MAX + 1)]
        steps = [chances[0], *(b - a for a, b in itertools.pairwise(chances))]
        of_one: list[tuple[float, int | None, bool]] = [(1 - chances[-1], None, False)]
        for level, step in enumerate(steps):
            of_one.append((step * colluding, level, False))
            of_one.append((step * (1 - colluding) * lazy, None, False))
            diligent = step * (1 - colluding) * (1 - lazy)
            of_one += [(diligent * (1 - miss), level, True), (diligent * miss, level, False)]
        cases.append(of_one)
    accepted = 0.0
    for outcome in itertools.product(*cases):
        answered = [level for _, level, _ in outcome if level is not None]
        if answered:
            final = min(answered)
            caught = any(catches for _, level, catches in outcome if level is not None and level <= final)
            accepted += math.prod(chance for chance, _, _ in outcome) * (not caught)
    return accepted


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 2, 1)])
@pytest.mark.parametrize(("colluding", "lazy"), [(0.0, 0.0), (0.3, 0.0), (0.3, 0.4)])
def test_what_is_accepted_agrees_with_every_case_counted_out(
    weights: tuple[int, ...], colluding: float, lazy: float
) -> None:
    odds = DrawOdds(weights, Assumptions(colluding=colluding, lazy=lazy))
    expected = _accepted(weights, colluding, lazy, 0.6, 0.5)
    assert odds.accepted(600, 0.5) == pytest.approx(expected, rel=1e-9)
    assert odds.accepted(600, 0.5) <= odds.undetected(600, 0.5)


def test_nothing_is_accepted_unseen() -> None:
    # Whoever answers recomputes everything and is honest; if nobody does, nothing is accepted.
    assert DrawOdds([1] * 9, HONEST).accepted(300, 0.0) == pytest.approx(0.0, abs=1e-12)


@given(
    weights=st.lists(st.integers(1, 8), min_size=8, max_size=80),
    target=st.floats(1e-6, 0.3),
    forged=st.floats(0.01, 1),
    colluding=st.floats(0, 0.5),
    chunks=st.integers(1, 8),
)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_the_choice_meets_its_target_and_no_thousandth_less_does(
    weights: list[int], target: float, forged: float, colluding: float, chunks: int
) -> None:
    assumptions = Assumptions(forged=forged, colluding=colluding)
    odds = DrawOdds(weights, assumptions)
    try:
        choice = choose_for(weights, escape_target=target, assumptions=assumptions, segment_chunks=chunks)
    except OutOfReach as error:
        assert odds.undetected(odds.expected_milli_max, 0.0) > target
        assert error.escape > target
        return
    miss = worst_miss(range(1, chunks + 1), forged, choice.samples)
    assert odds.undetected(choice.expected_milli, miss) == choice.escape <= target
    assert choice.expected_milli == 1 or odds.undetected(choice.expected_milli - 1, miss) > target


def test_out_of_reach_tells_what_would_reach() -> None:
    with pytest.raises(OutOfReach, match=r"2 electors that all recompute everything leave 0\.04; it takes 5"):
        choose_for([1, 1], escape_target=1e-3, assumptions=Assumptions(), segment_chunks=4)
    choice = choose_for([1] * 5, escape_target=1e-3, assumptions=Assumptions(), segment_chunks=4)
    assert choice.escape <= 1e-3


def test_a_large_electorate_leaves_room_in_the_round() -> None:
    with pytest.raises(OutOfReach):
        choose_for([1] * 500, escape_target=1e-15, assumptions=Assumptions(), segment_chunks=1)
    odds = DrawOdds([1] * 500, HONEST)
    assert odds.expected_milli_max == 1_000 * VERIFIERS_PER_SEGMENT_MAX // 2


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: Assumptions(forged=0.0), r"forged share must be in \(0, 1\], got 0.0"),
        (lambda: Assumptions(colluding=1.0), r"colluding share must be in \[0, 1\), got 1.0"),
        (lambda: Assumptions(lazy=-0.1), r"lazy share must be in \[0, 1\), got -0.1"),
        (lambda: DrawOdds([], HONEST), "needs electors"),
        (lambda: DrawOdds([0], HONEST), "needs electors of weight 1"),
        (lambda: DrawOdds([1], HONEST, colluding=[]), "0 colluding chances for 1 electors"),
        (
            lambda: choose_for([1], escape_target=1.0, assumptions=HONEST, segment_chunks=1),
            r"escape_target must be in \(0, 1\), got 1.0",
        ),
    ],
)
def test_refuses_what_makes_no_sense(make: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        make()
