"""Choosing tokens so that anybody with the logits can choose them again.

The noise of an output position is a hash of the job's seed and that position, so there is no generator
whose state could be lost or chosen. Probabilities are rounded to integers, and the draw is integer
arithmetic: equal logits give equal tokens on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from protocols.digest import tagged
from workloads.errors import NumericsRefused
from workloads.exact.functions import EXP2_LIMIT, LOG2_E, exp2_inplace
from workloads.lm.input import LmInput

__all__ = ["draw_weights", "noise", "sample"]

_WEIGHT_ONE = 2.0**30


def noise(seed: int, position: int) -> int:
    """Uniform integer in [0, 2**64) for the output token at ``position``, counted from 0."""
    parts = seed.to_bytes(8, "little"), position.to_bytes(8, "little")
    return int.from_bytes(tagged("p2p-node/lm-noise/1", *parts)[:8], "little")


def sample(logits: NDArray[np.float64], positions: Sequence[int], job: LmInput) -> list[int]:
    """The token of each output position.

    Args:
        logits: (positions, vocabulary).
        positions: of the rows, in the output.
        job: seed, temperature and top-k.

    Raises:
        NumericsRefused: a logit is NaN or Inf.
    """
    if job.temperature_milli == 0:
        _best(logits)
        # The first of equal logits, as numpy documents.
        return [int(token) for token in np.argmax(logits, axis=-1)]
    cumulative = np.cumsum(draw_weights(logits, job), axis=-1)
    tokens = []
    for row, position in zip(cumulative, positions, strict=True):
        # Below the total, so the search always ends inside the row, and on a token of non-zero weight.
        threshold = (noise(job.seed, position) * int(row[-1])) >> 64
        tokens.append(int(np.searchsorted(row, threshold, side="right")))
    return tokens


def draw_weights(logits: NDArray[np.float64], job: LmInput) -> NDArray[np.int64]:
    """How likely each token is drawn: (positions, vocabulary), in units of 2**-30 of the likeliest.

    Args:
        logits: (positions, vocabulary).
        job: temperature, above 0, and top-k.

    Raises:
        NumericsRefused: a logit is NaN or Inf.
    """
    weights = _integer_weights(logits - _best(logits), job.temperature_milli)
    if 0 < job.top_k < logits.shape[-1]:
        _keep_likeliest(weights, logits, job.top_k)
    return weights


def _best(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    best: NDArray[np.float64] = np.maximum.reduce(logits, axis=-1, keepdims=True)
    if not np.isfinite(best).all():
        raise NumericsRefused("logits hold NaN or Inf")
    return best


def _integer_weights(below_best: NDArray[np.float64], temperature_milli: int) -> NDArray[np.int64]:
    """exp(x / temperature) in units of 2**-30, rounded; ``below_best`` is overwritten."""
    below_best *= LOG2_E * 1000.0 / temperature_milli
    np.maximum(below_best, -EXP2_LIMIT, out=below_best)
    exp2_inplace(below_best)
    below_best *= _WEIGHT_ONE
    return np.rint(below_best).astype(np.int64)


def _keep_likeliest(weights: NDArray[np.int64], logits: NDArray[np.float64], count: int) -> None:
    # A stable sort, so that of equal logits the lowest token ids are kept.
    order = np.argsort(-logits, axis=-1, kind="stable")
    np.put_along_axis(weights, order[:, count:], 0, axis=-1)
