"""The machines escape as often as computed, and the same seed gives the same outcome."""

from __future__ import annotations

import pytest

from p2p_node.sim.odds import Cell, Measured, measure_cell

CELLS = [
    Cell(electors=6, expected_milli=2_000, samples=1, chunks=4, forged_share=0.5),
    Cell(electors=5, expected_milli=1_000, samples=4, chunks=4, forged_share=0.25, colluding=2),
    # Some electors are certain to be drawn, and weights are uneven.
    Cell(electors=4, expected_milli=3_000, samples=2, chunks=4, forged_share=0.25, weights=(6, 1, 2, 1)),
]


@pytest.mark.parametrize("cell", CELLS, ids=["even", "colluding", "uneven"])
def test_what_is_measured_agrees_with_what_is_computed(cell: Cell) -> None:
    measured = measure_cell(cell, runs=80, seed=3)
    assert measured.agrees, measured
    assert measured.undetected_odds <= measured.formula or cell.weights
    assert measured.accepted <= measured.undetected + measured.widened


def test_honest_electors_that_recompute_everything_let_nothing_pass() -> None:
    cell = Cell(electors=4, expected_milli=500, samples=4, chunks=4, forged_share=0.25)
    measured = measure_cell(cell, runs=40, seed=8)
    # Most of them widened, since hardly anybody is drawn at first; none was accepted.
    assert measured.widened > 10
    assert measured.accepted == 0


def test_a_seed_gives_one_outcome() -> None:
    assert measure_cell(CELLS[1], runs=8, seed=5) == measure_cell(CELLS[1], runs=8, seed=5)


def test_agreeing_can_fail() -> None:
    measured = Measured(CELLS[0], 1_000, 500, 500, 0, accepted_odds=0.1, undetected_odds=0.1, formula=0.1)
    assert not measured.agrees
