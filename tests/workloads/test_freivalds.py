"""Freivalds' check: right products always pass, wrong ones don't, whatever is wrong with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workloads.errors import NumericsRefused
from workloads.exact.freivalds import (
    CLAIM_MAX,
    DIFFERENCE_MAX,
    ENTRY_MAX,
    INNER_BLOCK,
    PRIMES,
    SOUNDNESS,
    VECTORS,
    challenge,
    holds,
    project,
)


def integers(seed: int, rows: int, columns: int, magnitude: int) -> Tensor:
    generator = np.random.Generator(np.random.Philox(key=[seed, rows]))
    drawn = generator.integers(-magnitude, magnitude + 1, (rows, columns))
    return torch.from_numpy(drawn.astype(np.float64))


def check(a: Tensor, b: Tensor, c: Tensor, seed: bytes = bytes(32)) -> bool:
    vectors = challenge(seed + c.numpy().tobytes(), c.shape[1])
    return holds(a, project(b, vectors), c, vectors)


def test_the_moduli_are_primes_and_cover_every_difference_of_32_bit_integers() -> None:
    for prime in PRIMES:
        assert prime < 2**21
        assert all(prime % divisor for divisor in range(2, int(prime**0.5) + 1))
    assert len(set(PRIMES)) == len(PRIMES)
    assert DIFFERENCE_MAX >= 2**32
    assert SOUNDNESS < 2.0**-83


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 40), st.integers(1, 9), st.data())
def test_right_products_pass_and_any_changed_entry_does_not(
    seed: int, rows: int, inner: int, columns: int, data: st.DataObject
) -> None:
    a, b = integers(seed, rows, inner, 1_023), integers(seed + 1, inner, columns, 1_023)
    c = a @ b
    assert check(a, b, c)
    row, column = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    off = data.draw(
        st.sampled_from([1, -1, 2**16, *PRIMES, -PRIMES[0], 2 * PRIMES[1], 2**31])
        | st.integers(-(2**31), 2**31).filter(bool)
    )
    c[row, column] += off
    assert not check(a, b, c)


def test_a_product_that_is_right_modulo_one_prime_is_caught_by_the_other() -> None:
    a, b = integers(1, 4, 8, 100), integers(2, 8, 4, 100)
    for prime in PRIMES:
        assert not check(a, b, a @ b + prime * integers(3, 4, 4, 50))


def test_sums_longer_than_a_block_are_exact_at_the_largest_entries() -> None:
    inner = 2 * INNER_BLOCK + 3
    a, b = integers(4, 3, inner, ENTRY_MAX), integers(5, inner, 2, ENTRY_MAX)
    vectors = challenge(bytes(32), 2)
    once = project(a, project(b, vectors))
    # Python's own integers, which have no size.
    left, right, drawn = (np.array(x.to(torch.int64).tolist(), dtype=object) for x in (a, b, vectors))
    moduli = np.array([prime for prime in PRIMES for _ in range(VECTORS)], dtype=object)
    assert once.to(torch.int64).tolist() == (left @ right @ drawn % moduli).tolist()


def test_a_challenge_is_spread_over_its_primes_and_follows_from_its_seed() -> None:
    drawn = challenge(b"seed", 4_000)
    assert torch.equal(drawn, challenge(b"seed", 4_000))
    assert not torch.equal(drawn, challenge(b"other", 4_000))
    for column in range(drawn.shape[1]):
        prime = PRIMES[column // VECTORS]
        assert 0 <= int(drawn[:, column].min()) < prime // 100
        assert prime - prime // 100 < int(drawn[:, column].max()) < prime


def test_entries_that_could_overflow_are_refused() -> None:
    vectors = challenge(bytes(32), 1)
    for entry in (ENTRY_MAX + 1.0, -ENTRY_MAX - 1.0, float("nan"), float("inf")):
        with pytest.raises(NumericsRefused, match="magnitude above 2097151"):
            project(torch.tensor([[entry]], dtype=torch.float64), vectors)
    one = torch.ones(1, 1, dtype=torch.float64)
    for claimed in (CLAIM_MAX + 1.0, float("nan")):
        with pytest.raises(NumericsRefused, match="claim holds an entry of magnitude above 4294967296"):
            holds(one, project(one, vectors), one * claimed, vectors)


def test_the_largest_claims_are_compared_exactly() -> None:
    width = 1_025
    a, b = integers(6, 2, 1, 1), torch.full((1, width), 2.0**21 - 1, dtype=torch.float64)
    a[:] = 2**11
    c = a @ b
    assert check(a, b, c)
    c[1, width - 1] -= 1
    assert not check(a, b, c)
