"""Counter-based random numbers: the published answers, and what they are used for."""

from __future__ import annotations

import numpy as np
import pytest

from workloads.philox import philox, uniforms

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "seed", "words"),
    [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0xA4093822 | 0x299F31D0 << 32,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers_of_the_authors(counter: tuple[int, ...], seed: int, words: tuple[int, ...]) -> None:
    assert philox(seed, np.array([counter], dtype=np.uint64)).tolist() == [list(words)]


def test_a_number_does_not_depend_on_the_batch_it_is_drawn_in() -> None:
    counters = np.arange(40, dtype=np.uint64).reshape(10, 4)
    whole = philox(7, counters)
    assert np.array_equal(np.concatenate([philox(7, counters[:3]), philox(7, counters[3:])]), whole)
    assert not np.array_equal(philox(8, counters), whole)
    assert whole.max() < 2**32


def test_uniforms_lie_strictly_between_0_and_1() -> None:
    assert uniforms(np.array([0, 2**32 - 1], dtype=np.uint64)).tolist() == [2.0**-33, 1 - 2.0**-33]
