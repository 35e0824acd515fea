"""Draws: exact at the threshold, fair in the long run, the same everywhere."""

from __future__ import annotations

import hashlib
from collections import Counter
from fractions import Fraction
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.limits import SEGMENT_CHUNKS_MAX, TOTAL_WEIGHT_MAX, WIDENING_MAX
from verification import sortition

quick = settings(max_examples=200, deadline=None, derandomize=True)
betas = st.binary(min_size=64, max_size=64)
DRAW: dict[str, Any] = {"weight": 1, "total_weight": 4, "expected_milli": 1_000, "widening": 0}


def beta(number: int) -> bytes:
    return hashlib.sha512(number.to_bytes(8, "little")).digest()


def test_alpha_binds_network_and_commitment() -> None:
    assert (
        sortition.alpha("main", b"c" * 32).hex()
        == "fe4540fb0c94c5390585049c78aa054d2a526113d4b6103eb32442654c75ce67"
    )
    variants = [("main", b"c"), ("main", b"d"), ("test", b"c"), ("mainc", b""), ("mai", b"nc")]
    assert len({sortition.alpha(*variant) for variant in variants}) == len(variants)


def test_the_threshold_is_exact() -> None:
    quarter = 2**510
    assert sortition.is_drawn((quarter - 1).to_bytes(64, "big"), **DRAW)
    assert not sortition.is_drawn(quarter.to_bytes(64, "big"), **DRAW)
    for widening, threshold in ((1, 2**511), (2, 2**512)):
        widened = {**DRAW, "widening": widening}
        assert sortition.is_drawn((threshold - 1).to_bytes(64, "big"), **widened)
    assert not sortition.is_drawn((2**511).to_bytes(64, "big"), **{**DRAW, "widening": 1})


@given(
    beta=betas,
    weights=st.tuples(st.integers(1, TOTAL_WEIGHT_MAX), st.integers(1, TOTAL_WEIGHT_MAX)).map(sorted),
    expected_milli=st.integers(1, sortition.EXPECTED_MILLI_MAX),
    widening=st.integers(0, WIDENING_MAX),
)
@quick
def test_draw_equals_its_definition(
    beta: bytes, weights: list[int], expected_milli: int, widening: int
) -> None:
    weight, total_weight = weights
    chance = min(Fraction(1), Fraction(expected_milli, 1_000) * 2**widening * Fraction(weight, total_weight))
    drawn = sortition.is_drawn(
        beta, weight=weight, total_weight=total_weight, expected_milli=expected_milli, widening=widening
    )
    assert drawn is (Fraction(int.from_bytes(beta, "big"), 2**512) < chance)


@given(beta=betas, expected_milli=st.integers(1, 4_000))
@quick
def test_widening_keeps_who_was_drawn(beta: bytes, expected_milli: int) -> None:
    drawn = [
        sortition.is_drawn(beta, weight=3, total_weight=17, expected_milli=expected_milli, widening=widening)
        for widening in range(WIDENING_MAX + 1)
    ]
    assert drawn == sorted(drawn)


def test_certain_where_the_chance_reaches_one() -> None:
    last = b"\xff" * 64
    assert sortition.is_drawn(last, weight=1, total_weight=1, expected_milli=1_000, widening=0)
    assert sortition.is_drawn(last, weight=1, total_weight=2, expected_milli=1_000, widening=1)
    assert not sortition.is_drawn(last, weight=1, total_weight=1, expected_milli=999, widening=0)


def test_members_are_drawn_as_often_as_expected() -> None:
    # 4,000 draws at 3/20: 600 expected, standard deviation 22.6; the margin is five of them.
    drawn = sum(
        sortition.is_drawn(beta(number), weight=3, total_weight=40, expected_milli=2_000, widening=0)
        for number in range(4_000)
    )
    assert abs(drawn - 600) < 113


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("total_weight", 0),
        ("total_weight", TOTAL_WEIGHT_MAX + 1),
        ("weight", 0),
        ("weight", 5),
        ("expected_milli", 0),
        ("expected_milli", sortition.EXPECTED_MILLI_MAX + 1),
        ("widening", -1),
        ("widening", WIDENING_MAX + 1),
    ],
)
def test_draw_refuses_numbers_out_of_bounds(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"^{field} must be in [01]\.\.\d+, got {value}$"):
        sortition.is_drawn(bytes(64), **{**DRAW, field: value})


@pytest.mark.parametrize("length", [0, 63, 65])
def test_beta_has_64_bytes(length: int) -> None:
    with pytest.raises(ValueError, match=f"beta must be 64 bytes, got {length}"):
        sortition.is_drawn(bytes(length), **DRAW)
    with pytest.raises(ValueError, match=f"beta must be 64 bytes, got {length}"):
        sortition.drawn_chunks(bytes(length), chunks=4, samples=2)


@given(beta=betas, chunks=st.integers(1, 300), samples=st.integers(1, 400))
@quick
def test_chunks_are_ascending_distinct_and_as_many_as_asked(beta: bytes, chunks: int, samples: int) -> None:
    drawn = sortition.drawn_chunks(beta, chunks=chunks, samples=samples)
    assert list(drawn) == sorted(set(drawn))
    assert len(drawn) == min(samples, chunks)
    assert all(0 <= chunk < chunks for chunk in drawn)


def test_chunk_draws_are_pinned() -> None:
    assert sortition.drawn_chunks(beta(0), chunks=1_000, samples=6) == (192, 235, 298, 490, 864, 889)


def test_all_chunks_where_samples_reach_them() -> None:
    assert sortition.drawn_chunks(beta(1), chunks=3, samples=3) == (0, 1, 2)
    assert sortition.drawn_chunks(beta(1), chunks=3, samples=10**9) == (0, 1, 2)
    everything = sortition.drawn_chunks(beta(1), chunks=SEGMENT_CHUNKS_MAX, samples=SEGMENT_CHUNKS_MAX - 1)
    assert len(everything) == SEGMENT_CHUNKS_MAX - 1


def test_every_set_of_chunks_is_equally_likely() -> None:
    draws = 6_000
    seen = Counter(sortition.drawn_chunks(beta(number), chunks=6, samples=3) for number in range(draws))
    assert set(seen) == set(combinations(range(6), 3))
    expected = draws / 20
    # Chi-squared with 19 degrees of freedom: above 60 with chance 4e-6.
    assert sum((count - expected) ** 2 / expected for count in seen.values()) < 60


def test_chunks_do_not_depend_on_being_drawn() -> None:
    """Only small betas are drawn; their chunks must still be spread evenly."""
    smallest = sorted(beta(number) for number in range(8_000))[:1_000]
    seen = Counter(chunk for low in smallest for chunk in sortition.drawn_chunks(low, chunks=8, samples=2))
    # 250 each expected; standard deviation 13.7, the margin is five of them.
    assert all(abs(seen[chunk] - 250) < 69 for chunk in range(8))


def test_words_that_would_favour_low_numbers_are_skipped() -> None:
    words = iter([2**64 - 1, 2**64 - 1, 5])
    assert sortition._below(3, words) == 2
    assert next(words, None) is None


@pytest.mark.parametrize("chunks", [0, -1, SEGMENT_CHUNKS_MAX + 1])
def test_chunks_are_bounded(chunks: int) -> None:
    with pytest.raises(ValueError, match=rf"chunks must be in 1\.\.{SEGMENT_CHUNKS_MAX}, got {chunks}"):
        sortition.drawn_chunks(bytes(64), chunks=chunks, samples=1)


@pytest.mark.parametrize("samples", [0, -1])
def test_samples_are_positive(samples: int) -> None:
    with pytest.raises(ValueError, match=f"samples must be >= 1, got {samples}"):
        sortition.drawn_chunks(bytes(64), chunks=4, samples=samples)
