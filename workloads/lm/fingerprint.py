"""What the native profile states of a chunk: projections of its hidden states, close on all honest machines.

A projection adds up a whole hidden state with signs, so that no part of it can be left out, and takes
four integers in place of the state. How far a token lies from its draw is measured in probability, so
that machines whose logits differ a little can tell bad luck from another token.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from protocols.digest import tagged
from workloads.lm.input import TOP_P_MILLI_MAX, LmInput
from workloads.lm.sampling import draw_weights, noise

__all__ = ["PROJECTIONS", "fingerprint", "misses_ppb", "projection_signs"]

PROJECTIONS = 4
_STEP = 2.0**-20
_INT32_MAX = 2**31 - 1
_PPB = 1_000_000_000
_CLOSE_RANKS = 1e-3
"""Of two logits closer than this, either may be the last that top-k or top-p keeps."""


def projection_signs(model: bytes, hidden: int) -> NDArray[np.float64]:
    """Signs (PROJECTIONS, hidden), +1 or -1, the same for everybody who runs the model."""
    rows = []
    for index in range(PROJECTIONS):
        seed = tagged("p2p-node/fingerprint/1", model, index.to_bytes(8, "little"))
        stream = np.frombuffer(blake3(seed).digest(length=-(-hidden // 8)), dtype=np.uint8)
        bits = np.unpackbits(stream, count=hidden, bitorder="little")
        rows.append(bits.astype(np.float64) * 2 - 1)
    return np.stack(rows)


def fingerprint(states: NDArray[np.float32], signs: NDArray[np.float64]) -> bytes:
    """Four 32-bit integers for each hidden state.

    Args:
        states: (tokens, hidden).
        signs: of `projection_signs`.
    """
    scale = 1 / (_STEP * np.sqrt(states.shape[-1]))
    steps = np.rint(states.astype(np.float64) @ signs.T * scale)
    values: NDArray[np.int32] = np.clip(steps, -_INT32_MAX, _INT32_MAX).astype("<i4")
    return values.tobytes()


def misses_ppb(
    logits: NDArray[np.float64], tokens: Sequence[int], positions: Sequence[int], job: LmInput
) -> list[int]:
    """By how much probability each token misses its draw, in parts per billion; 0 where it is drawn.

    Args:
        logits: (positions, vocabulary).
        tokens: claimed, one for each position; any integers.
        positions: of the rows, as `noise_position` gives them.
        job: seed, temperature, top-k and top-p.

    Raises:
        NumericsRefused: a logit is NaN or Inf.
    """
    vocabulary = logits.shape[-1]
    misses = []
    for row, token, position in zip(logits, tokens, positions, strict=True):
        if not 0 <= token < vocabulary:
            misses.append(_PPB)
        elif job.temperature_milli == 0:
            misses.append(round(_PPB * -float(np.expm1(row[token] - row.max()))))
        else:
            possible = [weights for close in _close_jobs(job) for weights in _possible(row, close)]
            misses.append(min(_miss_ppb(weights, token, position, job) for weights in possible))
    return misses


def _close_jobs(job: LmInput) -> list[LmInput]:
    """Whether a token is inside top-p is won by a hair at times, too."""
    if job.top_p_milli == TOP_P_MILLI_MAX:
        return [job]
    shares = (job.top_p_milli, max(1, job.top_p_milli - 1), job.top_p_milli + 1)
    return [msgspec.structs.replace(job, top_p_milli=share) for share in shares]


def _possible(row: NDArray[np.float64], job: LmInput) -> list[NDArray[np.int64]]:
    """The weights that an honest machine may draw from: the last place kept is won by a hair at times."""
    weights = [draw_weights(row[None], job)[0]]
    kept = int(np.count_nonzero(weights[0]))
    if kept < len(row) and (0 < job.top_k < len(row) or job.top_p_milli < TOP_P_MILLI_MAX):
        order = np.argsort(-row, kind="stable")
        last, next_ = order[kept - 1], order[kept]
        if row[last] - row[next_] < _CLOSE_RANKS:
            swapped = row.copy()
            swapped[last], swapped[next_] = row[next_], row[last]
            # The later of two equal logits must lose.
            swapped[last] -= _CLOSE_RANKS
            weights.append(draw_weights(swapped[None], job)[0])
    return weights


def _miss_ppb(weights: NDArray[np.int64], token: int, position: int, job: LmInput) -> int:
    cumulative = np.cumsum(weights)
    total = int(cumulative[-1])
    threshold = (noise(job.seed, position) * total) >> 64
    start, end = int(cumulative[token]) - int(weights[token]), int(cumulative[token])
    outside = max(start - threshold, threshold - end + 1, 0)
    # An honest machine gives a token that can't be drawn no draw, however near.
    return _PPB if weights[token] == 0 else -(-outside * _PPB // total)
