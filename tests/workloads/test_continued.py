"""Checking a long output segment by segment: the same digests as from the start, without the work again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from protocols.units import FALSE_UNITS
from workloads.llama.spans import Span
from workloads.lm.continued import ContinuedPrefill, Wanted
from workloads.lm.engine import Decoder, build_decoder, load_model
from workloads.lm.generate import LmExecutor
from workloads.lm.input import LmInput

JOB = LmInput(prompts=((3, 1, 4, 1, 5),), max_tokens=160, seed=7, temperature_milli=1000)
CHUNKS = range(5)


def generated(model: Path, profile: str, job: LmInput = JOB) -> tuple[list[int], dict[int, bytes]]:
    units: list[int] = []
    digests: dict[int, bytes] = {}
    LmExecutor(model, profile).generate(
        job, (), lambda _, new: units.extend(new), digests.__setitem__, lambda: False
    )
    return units, digests


@pytest.mark.parametrize("profile", ["exact14", "exact21", "native"])
def test_segments_of_several_jobs_in_any_order_get_the_executors_digests(
    tiny_model: Path, profile: str
) -> None:
    other = LmInput(prompts=((3, 1, 4, 1, 6),), max_tokens=64, seed=8, temperature_milli=700)
    units, digests = generated(tiny_model, "exact14" if profile == "native" else profile)
    others, other_digests = generated(tiny_model, "exact14" if profile == "native" else profile, other)
    verifier = LmExecutor(tiny_model, profile)

    def check(job: LmInput, claimed: list[int], truth: dict[int, bytes], chunks: list[int]) -> None:
        fresh = LmExecutor(tiny_model, profile).recompute(job, claimed, chunks)
        assert verifier.recompute(job, claimed, chunks) == fresh
        if profile != "native":
            assert fresh == {chunk: truth[chunk] for chunk in chunks}

    check(JOB, units[:64], digests, [0, 1])
    check(JOB, units[:128], digests, [2, 3])
    check(JOB, units, digests, [4])
    check(JOB, units[:96], digests, [1])
    check(other, others, other_digests, [1])
    check(JOB, units, digests, list(CHUNKS))


def test_a_false_token_isnt_hidden_by_what_is_remembered(tiny_model: Path) -> None:
    units, digests = generated(tiny_model, "exact14")
    verifier = LmExecutor(tiny_model, "exact14")
    forged = [*units]
    forged[40] = (forged[40] + 1) % 256
    assert verifier.recompute(JOB, units, CHUNKS) == digests
    derived = verifier.recompute(JOB, forged, CHUNKS)
    assert derived == LmExecutor(tiny_model, "exact14").recompute(JOB, forged, CHUNKS)
    assert derived[0] == digests[0]
    assert derived[1] == FALSE_UNITS
    assert verifier.recompute(JOB, units, CHUNKS) == digests


class Counting:
    """A decoder that counts the positions it computes, and fails when told to."""

    def __init__(self, decoder: Decoder) -> None:
        self.config = decoder.config
        self.positions = self.passes = 0
        self.fails = False
        self._decoder = decoder

    def new_cache(self, batch: int, capacity: int) -> Any:
        return self._decoder.new_cache(batch, capacity)

    def forward(self, tokens: NDArray[np.int64], cache: Any) -> NDArray[np.float32]:
        return self.extend([Span(0, tokens[0])], cache)[None]

    def extend(self, spans: Sequence[Span], cache: Any) -> NDArray[np.float32]:
        self.positions += sum(len(tokens) for _, tokens in spans)
        self.passes += 1
        hidden = self._decoder.extend(spans, cache)
        if self.fails:
            raise ArithmeticError
        return hidden

    def logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float64]:
        return self._decoder.logits(hidden)


@pytest.fixture
def counting(tiny_model: Path) -> Counting:
    return Counting(build_decoder(*load_model(tiny_model), "exact14"))


def sequence(count: int) -> NDArray[np.int64]:
    return np.arange(count, dtype=np.int64) * 37 % 256


def only(continued: ContinuedPrefill, tokens: Any, first: int, capacity: int) -> NDArray[np.float32]:
    """The states of one sequence."""
    (states,) = continued.states([Wanted(tokens, first)], capacity)
    return states


def test_what_was_computed_for_a_common_beginning_isnt_computed_again(counting: Counting) -> None:
    continued = ContinuedPrefill(counting)
    whole = only(ContinuedPrefill(counting), sequence(100), 0, 100)
    counting.positions = 0
    for first, stop, computed in ((0, 40, 40), (40, 70, 30), (70, 100, 30), (90, 100, 10), (0, 10, 10)):
        before = counting.positions
        states = only(continued, sequence(stop), first, 100)
        assert counting.positions - before == computed
        np.testing.assert_array_equal(states, whole[first:stop])


def test_room_that_was_made_too_small_is_made_anew(counting: Counting) -> None:
    continued = ContinuedPrefill(counting)
    only(continued, sequence(40), 0, 40)
    states = only(continued, sequence(100), 40, 60)
    np.testing.assert_array_equal(states, only(ContinuedPrefill(counting), sequence(100), 40, 100))


def test_nothing_of_a_failed_prefill_is_remembered(counting: Counting) -> None:
    continued = ContinuedPrefill(counting)
    only(continued, sequence(40), 0, 100)
    other = np.concatenate((sequence(20), sequence(30)))
    counting.fails = True
    with pytest.raises(ArithmeticError):
        only(continued, other, 20, 100)
    counting.fails = False
    states = only(continued, sequence(40), 30, 100)
    np.testing.assert_array_equal(states, only(ContinuedPrefill(counting), sequence(40), 30, 100))


def test_several_sequences_share_passes_and_the_last_one_is_remembered(counting: Counting) -> None:
    """As segments come: the last sequence of one goes on in the next, and others follow it."""
    sequences = [(sequence(310) * 3 + index) % 256 for index in range(20)]
    alone = [only(ContinuedPrefill(counting), tokens, 0, 310) for tokens in sequences]
    continued = ContinuedPrefill(counting)
    counting.positions = counting.passes = 0
    wanted = [Wanted(tokens[:50], 10) for tokens in sequences[:19]]
    found = continued.states([*wanted, Wanted(sequences[19][:30], 29)], 310)
    assert (counting.positions, counting.passes) == (19 * 50 + 30, 5)
    for states, truth in zip(found[:19], alone, strict=False):
        np.testing.assert_array_equal(states, truth[10:50])
    np.testing.assert_array_equal(found[19], alone[19][29:30])
    counting.positions = 0
    found = continued.states([Wanted(sequences[19], 30), Wanted(sequences[3], 0)], 310)
    assert counting.positions == 280 + 310
    np.testing.assert_array_equal(found[0], alone[19][30:])
    np.testing.assert_array_equal(found[1], alone[3])
