"""The bound on what several executors can give, from processor time alone."""

from __future__ import annotations

import pytest

from benchmarks.spent import Spent, mean, ratio_bound

ONE = Spent(wall_s=10.6, computed_s=10.0, verified_s=1.25, workers_s=11.25, nodes_s=0.25)
TWO = Spent(wall_s=6.4, computed_s=10.0, verified_s=1.25, workers_s=11.5, nodes_s=0.5)


def test_verifiers_take_their_share_of_the_same_cores() -> None:
    assert ratio_bound(ONE, TWO, 2, cores=2, is_verified=True) == pytest.approx(12.0 / 2 / 10.0)
    assert ratio_bound(ONE, TWO, 2, cores=2, is_verified=False) == pytest.approx(10.75 / 2 / 10.0)


def test_with_cores_to_spare_the_executors_share_is_the_bound() -> None:
    assert ratio_bound(ONE, TWO, 2, cores=8, is_verified=True) == pytest.approx(0.5)
    # More executors than cores give no more than the cores.
    assert ratio_bound(ONE, TWO, 4, cores=2, is_verified=True) == pytest.approx(0.6)


def test_figures_are_averaged_one_by_one() -> None:
    both = mean([Spent(wall_s=1, others_s=2), Spent(wall_s=3, others_s=6)])
    assert (both.wall_s, both.others_s, both.others_cores) == (2, 4, 2)
