"""The counting behind the tables of attacks: intervals, odds, and one run of each sort."""

from __future__ import annotations

import pytest

from benchmarks.attacks import Sampled, attack_row, count_honest, odds_of, sampled_row, wilson
from benchmarks.verification import receipt_of, signatures_in
from p2p_node.sim.world import Conditions


def test_an_interval_holds_what_was_counted_and_narrows() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(50, 100)
    assert low < 0.5 < high
    narrower = wilson(500, 1_000)
    assert low < narrower[0] < 0.5 < narrower[1] < high
    assert wilson(0, 200)[0] == 0.0
    # Of 200 without one case: 3.2% at 99%.
    assert wilson(0, 200)[1] == pytest.approx(0.0321, abs=1e-4)


def test_the_exact_odds_of_one_electorate_lie_below_the_formula() -> None:
    for case in (Sampled("quantized-weights", 4, 2, 2), Sampled("sybil-swarm", 1, 2, 8, colluders=3)):
        formula, exact = odds_of(case)
        assert 0 < exact < formula < 1
    # Whoever recomputes everything misses nothing, and without a verifier nothing is accepted.
    assert odds_of(Sampled("quantized-weights", 8, 3, 8))[1] == pytest.approx(0, abs=1e-12)


def test_a_row_counts_what_happened() -> None:
    row = sampled_row(Sampled("quantized-weights", 1, 9, 8), runs=2)
    assert (row[0], row[5], row[6], row[7]) == ("quantized-weights", "2", "2", "0.000")
    assert attack_row("equivocation", runs=2)[:4] == ["equivocation", "conviction", "2", "2"]


def test_honest_jobs_are_counted_whole() -> None:
    count = count_honest(12, Conditions(loss=0.05))
    assert (count.jobs, count.verified, count.wrong, count.convictions) == (12, 12, 0, 0)


def test_every_envelope_of_a_receipt_is_found() -> None:
    job = receipt_of(4, 2)
    assert job.receipt is not None
    found = signatures_in(job.receipt.raw)
    assert found[0] == job.receipt.raw
    assert job.attempts[0].award.raw in found
    # Offers, auction, bids, contract, commitment, draws, opening and vouchers.
    assert len(found) > 20
