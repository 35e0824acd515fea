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
from workloads.exact.kernels import kernels
from workloads.lm.input import TOP_P_MILLI_MAX, LmInput

__all__ = ["draw_weights", "likeliest", "noise", "noise_position", "penalised", "sample"]

_WEIGHT_ONE = 2.0**30
_PROMPT_BITS = 32
_WIDTHS = (32, 512)


def noise(seed: int, position: int) -> int:
    """Uniform integer in [0, 2**64) for what `noise_position` says."""
    parts = seed.to_bytes(8, "little"), position.to_bytes(8, "little")
    return int.from_bytes(tagged("p2p-node/lm-noise/1", *parts)[:8], "little")


def noise_position(job: LmInput, prompt: int, position: int) -> int:
    """Where in the job's noise the output token at ``position`` of a prompt is drawn from.

    Args:
        job: which may be a part of a larger one; its prompts are drawn as in the whole.
        prompt: its number in the job.
        position: in the prompt's output, counted from 0.
    """
    return (job.first_prompt + prompt) << _PROMPT_BITS | position


def penalised(
    logits: NDArray[np.float64], before: Sequence[int] | NDArray[np.int64], job: LmInput
) -> NDArray[np.float64]:
    """Logits with the repetition penalty, as a new array, if there is one.

    Args:
        logits: (positions, vocabulary) of successive positions.
        before: tokens before the last of these positions: all of the first one's, then one more for each.
        job: the penalty.

    Source: Keskar et al., CTRL (2019), section 4.1; tokens of the prompt count, as in Hugging Face's.
    """
    if not job.has_penalty:
        return logits
    penalty = job.repetition_milli / 1000.0
    result = logits.copy()
    tokens = np.asarray(before, dtype=np.int64)
    first = len(tokens) - len(result) + 1
    for index, row in enumerate(result):
        seen = np.unique(tokens[: first + index])
        old = row[seen]
        row[seen] = np.where(old < 0, old * penalty, old / penalty)
    return result


def sample(logits: NDArray[np.float64], positions: Sequence[int], job: LmInput) -> list[int]:
    """The token of each output position.

    Args:
        logits: (positions, vocabulary), penalised.
        positions: of the rows, as `noise_position` gives them.
        job: seed, temperature, top-k and top-p.

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
        job: temperature, above 0, top-k and top-p.

    Raises:
        NumericsRefused: a logit is NaN or Inf.
    """
    weights = _integer_weights(logits, _best(logits), LOG2_E * 1000.0 / job.temperature_milli)
    if 0 < job.top_k < logits.shape[-1] or job.top_p_milli < TOP_P_MILLI_MAX:
        for row, values in zip(weights, logits, strict=True):
            kept = likeliest(values, row, job.top_k, job.top_p_milli)
            heavy = row[kept]
            row[:] = 0
            row[kept] = heavy
    return weights


def likeliest(
    logits: NDArray[np.float64], weights: NDArray[np.int64], count: int, share_milli: int
) -> NDArray[np.int64]:
    """The tokens among which one is drawn, likeliest first, of equal logits the lowest first.

    Args:
        logits: (vocabulary,).
        weights: (vocabulary,).
        count: of tokens that are kept; 0 for all.
        share_milli: then the fewest are kept that weigh this share together.
    """
    total = int(weights.sum())
    if 0 < count < len(logits):
        candidates = _above(logits, count)
    else:
        # The share is in a few tokens, mostly; sorting the others would cost more than all the rest.
        candidates = next(
            found
            for width in (*_WIDTHS, len(logits))
            if len(found := _above(logits, width)) == len(logits)
            or int(weights[found].sum()) * TOP_P_MILLI_MAX >= total * share_milli
        )
    # A stable sort, so that of equal logits the lowest token ids are kept.
    order = candidates[np.argsort(-logits[candidates], kind="stable")]
    heavy = weights[order]
    if count:
        order, heavy = order[:count], heavy[:count]
        total = int(heavy.sum())
    if share_milli < TOP_P_MILLI_MAX:
        before = np.cumsum(heavy) - heavy
        order = order[before * TOP_P_MILLI_MAX < total * share_milli]
    return order


def _above(logits: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Tokens, rising, whose logits are among the largest ``count``, with all that equal the last of these."""
    if count >= len(logits):
        return np.arange(len(logits))
    last = np.partition(logits, len(logits) - count)[len(logits) - count]
    found: NDArray[np.int64] = np.flatnonzero(logits >= last)
    return found


def _best(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    best: NDArray[np.float64] = np.maximum.reduce(logits, axis=-1, keepdims=True)
    if not np.isfinite(best).all():
        raise NumericsRefused("logits hold NaN or Inf")
    return best


def _integer_weights(
    logits: NDArray[np.float64], best: NDArray[np.float64], scale: float
) -> NDArray[np.int64]:
    """2**((x - best) * scale) in units of 2**-30, rounded."""
    loaded = kernels()
    if loaded is not None:
        return loaded.weights(logits, best, scale)
    powers = logits - best
    powers *= scale
    np.maximum(powers, -EXP2_LIMIT, out=powers)
    exp2_inplace(powers)
    powers *= _WEIGHT_ONE
    return np.rint(powers).astype(np.int64)
