"""How far a token lies from its draw, in probability.

So machines whose logits differ a little can tell bad luck from another token.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from workloads.fingerprint import PPB
from workloads.lm.input import TOP_P_MILLI_MAX, LmInput
from workloads.lm.sampling import draw_weights, noise

__all__ = ["misses_ppb"]

_CLOSE_RANKS = 1e-3
"""Of two logits closer than this, either may be the last that top-k or top-p keeps."""


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
            misses.append(PPB)
        elif job.temperature_milli == 0:
            misses.append(round(PPB * -float(np.expm1(row[token] - row.max()))))
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
    return PPB if weights[token] == 0 else -(-outside * PPB // total)
