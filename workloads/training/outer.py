"""The step between rounds: one state out of those that a round's turns ended in.

Each number is summed in float64 in the order of the peers, and rounded to float32 once. Additions, products
and the division are IEEE operations on single elements, so everybody gets the same bits, and a start has one
name. Moments of the optimiser are averaged like parameters (ADR 28).

Files are read a stretch at a time: a round of many peers needs no more memory than its result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from protocols.blobs import Blob
from protocols.digest import tagged
from workloads.blobs import Blobs
from workloads.errors import InputRefused, NumericsRefused
from workloads.training.rounds import Rounds, Turn
from workloads.training.statefile import MOMENTUM, SECTIONS, state_header

__all__ = ["Merged", "merge"]

_STRETCH = 1 << 20
_MICRO = 1_000_000
_FLOAT32 = np.dtype("<f4")
_FLOAT32_BYTES = 4

_Float32 = NDArray[np.float32]
_Float64 = NDArray[np.float64]


class Merged(NamedTuple):
    """What a round starts from.

    Args:
        state: its file.
        momentum: of the step that led to it, as a file; empty if there is none.
        inner: a digest of the numbers before they were rounded, which the files don't give away.
    """

    state: bytes
    momentum: bytes
    inner: bytes


def merge(
    turn: Turn,
    rounds: Rounds,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    steps: int,
    round_steps: int,
    blobs: Blobs,
) -> Merged:
    """The state that a turn after the first round starts from.

    Args:
        turn: names what it follows from.
        rounds: says how.
        shapes: of the parameters by name, sorted.
        steps: that led to the states which the last round ended in.
        round_steps: of one round.
        blobs: where the states are.

    Raises:
        InputRefused: a state isn't here, or isn't one.
        NumericsRefused: a number leaves float32.
    """
    count = sum(map(math.prod, shapes.values()))
    header = state_header(shapes, steps)
    ends = [_Numbers(blobs, end, header, len(SECTIONS) * count) for end in turn.ends]
    state = np.empty(len(SECTIONS) * count, dtype=_FLOAT32)
    momentum = np.empty(0 if rounds.nesterov is None else count, dtype=_FLOAT32)
    digests: list[bytes] = []
    step = _Step(turn, rounds, shapes, count, steps=steps, round_steps=round_steps, blobs=blobs)
    for start, stop in _stretches(count, len(SECTIONS)):
        exact = _mean(ends, start, stop)
        if start < count and step.is_needed:
            pushed, exact = step.take(exact, start, stop)
            momentum[start:stop] = _rounded(pushed, digests)
        state[start:stop] = _rounded(exact, digests)
    momentum_header = state_header(shapes, steps, MOMENTUM)
    return Merged(
        header + state.tobytes(),
        momentum_header + momentum.tobytes() if len(momentum) else b"",
        tagged("p2p-node/training-merge/1", *digests),
    )


class _Numbers:
    """The numbers of a file with a known header."""

    def __init__(self, blobs: Blobs, blob: Blob, header: bytes, count: int) -> None:
        size = len(header) + _FLOAT32_BYTES * count
        if blob.size_bytes != size or blobs.read_range(blob, 0, len(header)) != header:
            raise InputRefused(f"blob {blob.digest.hex()} is no such state, which has {size} bytes")
        self._blobs, self._blob, self._first = blobs, blob, len(header)

    def read(self, start: int, stop: int) -> _Float64:
        """Some of them, as float64."""
        at, end = (self._first + _FLOAT32_BYTES * place for place in (start, stop))
        return np.frombuffer(self._blobs.read_range(self._blob, at, end), dtype=_FLOAT32).astype(np.float64)


class _Step:
    """Nesterov's step on stretches of the parameters; see `workloads.training.rounds.Nesterov`."""

    def __init__(
        self,
        turn: Turn,
        rounds: Rounds,
        shapes: Mapping[str, tuple[int, ...]],
        count: int,
        *,
        steps: int,
        round_steps: int,
        blobs: Blobs,
    ) -> None:
        self.is_needed = rounds.nesterov is not None
        if rounds.nesterov is None or turn.before is None:
            return
        self._rate = rounds.nesterov.rate_micro / _MICRO
        self._kept = rounds.nesterov.momentum_micro / _MICRO
        earlier = steps - round_steps
        self._before = _Numbers(blobs, turn.before, state_header(shapes, earlier), len(SECTIONS) * count)
        self._momentum = (
            None
            if turn.momentum is None
            else _Numbers(blobs, turn.momentum, state_header(shapes, earlier, MOMENTUM), count)
        )

    def take(self, mean: _Float64, start: int, stop: int) -> tuple[_Float64, _Float64]:
        """The new momentum and the new parameters, neither rounded."""
        before = self._before.read(start, stop)
        slope = before - mean
        pushed = slope
        if self._momentum is not None:
            pushed = self._kept * self._momentum.read(start, stop) + slope
        return pushed, before - self._rate * (slope + self._kept * pushed)


def _stretches(count: int, sections: int) -> list[tuple[int, int]]:
    """All numbers in stretches, none of which holds both parameters and moments."""
    bounds = [*range(0, count, _STRETCH), *range(count, sections * count, _STRETCH), sections * count]
    return list(pairwise(bounds))


def _mean(ends: list[_Numbers], start: int, stop: int) -> _Float64:
    total = ends[0].read(start, stop)
    for end in ends[1:]:
        total += end.read(start, stop)
    total /= len(ends)
    return total


def _rounded(exact: _Float64, digests: list[bytes]) -> _Float32:
    with np.errstate(over="ignore"):
        rounded: _Float32 = exact.astype(_FLOAT32)
    if not np.isfinite(rounded).all():
        raise NumericsRefused("states of several peers can't be made one: a number leaves float32")
    digests.append(tagged("p2p-node/training-stretch/1", exact.astype("<f8", copy=False).tobytes()))
    return rounded
