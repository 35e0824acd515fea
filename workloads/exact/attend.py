"""Attention over tensors: the same bits as the decoder's, however queries are split or batched.

A query's result depends on its own row and on the keys and values it may see, never on other queries or on
later positions. A value row keeps its own scale, a power of two that is multiplied into the probabilities
instead, and a query's row of those is rounded over what it sees: `workloads.exact.attention` gives the
reasons, and the same bits from a cache.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workloads.exact.contraction import contract, product, round_along, round_rows
from workloads.exact.elementary import raw_exp2_short
from workloads.exact.functions import EXP2_LIMIT, LOG2_E, exp2_inplace
from workloads.exact.quantise import EXACT21, Precision
from workloads.exact.reductions import exact_sum
from workloads.exact.slices import blocks
from workloads.exact.tensors import BLOCK_ELEMENTS, Rounded

__all__ = ["attention", "attention_backward"]

# Probabilities are multiples of 2**-30 of the largest, so that their sum is exact.
_PROBABILITY_ROUNDER = 1.5 * 2.0 ** (52 - 30)
# Any block of queries gives the same bits; this bounds the memory that scores take.
_SCORES_MAX = 1 << 18
_CAUSAL_ROWS = 64
_MASKED = -(2.0**600)


def attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    base_two: bool = False,
    precision: Precision = EXACT21,
) -> Tensor:
    """softmax(scale * queries @ keys.T) @ values.

    Args:
        queries: (..., heads, count, head_dim).
        keys: (..., key heads, length, head_dim); key heads divide heads, and head h looks at key head
            ``h * key heads // heads``. Leading dimensions are those of ``queries``.
        values: (..., key heads, length, value_dim).
        causal: query i sees keys up to ``i + length - count``: the queries are the last positions.
        scale: of the scores; None for ``1 / sqrt(head_dim)``.
        base_two: the queries already carry ``scale * log2(e)``, as the decoder's do; ``scale`` must be None.
        precision: `EXACT14` or `EXACT21`.

    Returns:
        (..., heads, count, value_dim) float64. Probabilities under 2**-31 of the largest count as zero.

    Raises:
        NumericsRefused: an operand holds NaN, Inf or a magnitude above 2**500.
        ValueError: the shapes don't fit.
    """
    group = _check_shapes(queries, keys, values, causal)
    if not base_two:
        queries = queries.detach().to(torch.float64) * (_scale(queries, scale) * LOG2_E)
    elif scale is not None:
        raise ValueError("scale must be None where the queries carry it")
    bits = precision.bits
    lead, (heads, count, _) = queries.shape[:-3], queries.shape[-3:]
    rounded = round_along("queries", queries, -1, bits)
    transposed = round_along("keys", keys, -1, bits).transpose()
    rounded_values = round_along("values", values, -1, bits)
    # A row's scale is the decoder's: the power of two at the exponent of its rounder.
    value_scale = rounded_values.grain * 2.0**52
    unit_values = rounded_values.values * (1.0 / value_scale)
    unit = Rounded(unit_values, unit_values.new_full((1, 1), 2.0**-52))
    value_scale = value_scale.transpose(-1, -2)

    length = keys.shape[-2]
    rows = max(1, _SCORES_MAX // max(1, length * heads * lead.numel()))
    if causal:
        rows = min(rows, _CAUSAL_ROWS)
    result = unit_values.new_empty((*lead, heads, count, values.shape[-1]))
    for start, stop in blocks(count, rows):
        # Keys that none of these queries sees would only add zeros.
        seen = length - count + stop if causal else length
        part = Rounded(*(_fold(each[..., start:stop, :], group) for each in rounded))
        scores = product(part, Rounded(*(each[..., :seen] for each in transposed)), precision)
        if causal:
            scores[..., seen - (stop - start) :].masked_fill_(_later(stop - start, group, scores), _MASKED)
        weights = _weights(scores)
        total = weights.sum(-1, keepdim=True)
        weights *= value_scale[..., :seen]
        mixed = product(
            round_rows(weights, -1, bits), Rounded(unit.values[..., :seen, :], unit.grain), precision
        )
        mixed /= total
        result[..., start:stop, :] = _unfold(mixed, group)
    return result


def attention_backward(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    precision: Precision = EXACT21,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``attention`` in its queries, keys and values.

    Args:
        grad: (..., heads, count, value_dim), of the result.
        queries: as of `attention`, and so are the others.
        keys: see there.
        values: see there.
        causal: see there.
        scale: see there.
        precision: see there.

    Returns:
        Three gradients, each in its operand's shape.
    """
    group = _check_shapes(queries, keys, values, causal)
    factor = _scale(queries, scale)
    count, length = queries.shape[-2], keys.shape[-2]
    # One matrix for each key head, a few at a time: they don't depend on each other.
    q, g = (_fold(each.detach().to(torch.float64), group).flatten(0, -3) for each in (queries, grad))
    k, v = (each.detach().to(torch.float64).flatten(0, -3) for each in (keys, values))
    step = max(1, _SCORES_MAX // max(1, group * count * length))
    parts = []
    for start, stop in blocks(len(q), step):
        one = slice(start, stop)
        scores = contract(("queries", q[one] * (factor * LOG2_E)), ("keys", k[one].mT), precision)
        if causal:
            scores[..., length - count :].masked_fill_(_later(count, group, scores), _MASKED)
        weights = _weights(scores)
        weights /= weights.sum(-1, keepdim=True)
        by_weights = contract(("grad", g[one]), ("values", v[one].mT), precision)
        by_scores = weights * (by_weights - exact_sum(weights * by_weights, -1).unsqueeze(-1))
        by_scores *= factor
        parts.append(
            (
                contract(("slopes", by_scores), ("keys", k[one]), precision),
                contract(("slopes", by_scores.mT), ("queries", q[one]), precision),
                contract(("weights", weights.mT), ("grad", g[one]), precision),
            )
        )
    by_q, by_k, by_v = (torch.cat(each) for each in zip(*parts, strict=True))
    return (
        _unfold(by_q.view(*queries.shape[:-3], -1, group * count, queries.shape[-1]), group),
        by_k.view(keys.shape),
        by_v.view(values.shape),
    )


def _weights(scores: Tensor) -> Tensor:
    """Powers of two of the scores less their row's largest, to 30 bits; overwrites the scores."""
    scores -= scores.amax(-1, keepdim=True)
    weights = _powers(scores)
    weights += _PROBABILITY_ROUNDER
    weights -= _PROBABILITY_ROUNDER
    return weights


def _powers(exponents: Tensor) -> Tensor:
    """`raw_exp2_short` of what isn't positive; overwrites it."""
    if exponents.device.type != "cpu":
        return raw_exp2_short(exponents)
    flat = exponents.view(-1).clamp_(min=-EXP2_LIMIT)
    for start, stop in blocks(len(flat), BLOCK_ELEMENTS):
        exp2_inplace(flat[start:stop].numpy())
    return exponents


def _check_shapes(queries: Tensor, keys: Tensor, values: Tensor, causal: bool) -> int:
    """How many query heads look at one key head."""
    fits = (
        queries.dim() == keys.dim() == values.dim() >= 3
        and queries.shape[:-3] == keys.shape[:-3] == values.shape[:-3]
        and keys.shape[-3:-1] == values.shape[-3:-1]
        and keys.shape[-1] == queries.shape[-1]
        and queries.shape[-3] % max(1, keys.shape[-3]) == 0
        and keys.shape[-2] >= (queries.shape[-2] if causal else 1)
    )
    if not fits:
        raise ValueError(
            f"attention can't combine queries {tuple(queries.shape)}, keys {tuple(keys.shape)} "
            f"and values {tuple(values.shape)}{', causal' if causal else ''}"
        )
    return queries.shape[-3] // keys.shape[-3]


def _scale(queries: Tensor, scale: float | None) -> float:
    # The root of a float64 is the processor's, correctly rounded.
    return 1.0 / math.sqrt(queries.shape[-1]) if scale is None else scale


def _fold(x: Tensor, group: int) -> Tensor:
    """(..., heads, count, width) as (..., key heads, group * count, width)."""
    key_heads = x.shape[-3] // group
    return x.reshape(*x.shape[:-3], key_heads, group * x.shape[-2], x.shape[-1])


def _unfold(x: Tensor, group: int) -> Tensor:
    heads = x.shape[-3] * group
    return x.reshape(*x.shape[:-3], heads, x.shape[-2] // group, x.shape[-1])


def _later(count: int, group: int, scores: Tensor) -> Tensor:
    """(group * count, count): True where a key comes after its query, both among the last ``count``."""
    later = torch.ones((count, count), dtype=torch.bool, device=scores.device).triu_(1)
    return later.repeat(group, 1)
