"""Causal attention over quantised keys and values, the same bits whether decoded, prefilled or batched.

Two things make it so. A key or value row is quantised once, by its own position's scale, before it enters
the cache. And the mix ``P @ V`` contracts over positions, whose scales differ, so each value row is stored
divided by a power of two that is multiplied into the probabilities instead; a row of those is then quantised
over the positions its query may see, never over later ones.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from workloads.exact.functions import EXP2_LIMIT, exp2_inplace
from workloads.exact.linear import contract
from workloads.exact.quantise import Float64, Precision, power_of_two, rounders

__all__ = ["LayerCache", "attend", "rotate_inplace"]

# Probabilities are multiples of 2**-30 of the largest, so that their sum is exact.
_PROBABILITY_ROUNDER = 1.5 * 2.0 ** (52 - 30)
# Any block of queries gives the same bits; this one keeps the scores in the processor's cache.
_QUERY_BLOCK = 64


class LayerCache:
    """Quantised keys and values of one layer, preallocated.

    Args:
        batch: sequences.
        heads: key-value heads.
        capacity: positions.
        head_dim: width of a head.
    """

    def __init__(self, batch: int, heads: int, capacity: int, head_dim: int) -> None:
        self.keys: Float64 = np.zeros((batch, heads, capacity, head_dim))
        self.values: Float64 = np.zeros((batch, heads, capacity, head_dim))
        self.scales: Float64 = np.zeros((batch, heads, 1, capacity))
        self.keys_transposed = torch.from_numpy(self.keys).transpose(-1, -2)
        self.values_tensor = torch.from_numpy(self.values)


def rotate_inplace(heads: Float64, cosines: Float64, sines: Float64) -> None:
    """Rotary embedding in Hugging Face's layout: element i pairs with i + head_dim / 2.

    Args:
        heads: (batch, count, heads, head_dim), contiguous.
        cosines: broadcastable to (count, heads, 1, head_dim / 2).
        sines: (count, heads, 2, head_dim / 2), the first half negated.
    """
    halves = heads.reshape(*heads.shape[:-1], 2, -1)
    turned = halves[..., ::-1, :] * sines
    halves *= cosines
    halves += turned


def attend(  # noqa: PLR0917
    mixed: Float64,
    cache: LayerCache,
    start: int,
    query_heads: int,
    precision: Precision,
    mask: NDArray[np.bool_],
) -> Float64:
    """Append the new keys and values to the cache and attend over all of it.

    Args:
        mixed: (batch, count, query heads + 2 * key-value heads, head_dim); queries already rotated and scaled
            by ``log2(e) / sqrt(head_dim)``, keys rotated. Overwritten.
        cache: holds positions before ``start``; extended in place.
        start: absolute position of the first new token.
        query_heads: a multiple of the cache's heads.
        precision: the profile.
        mask: (_QUERY_BLOCK, _QUERY_BLOCK) or larger, True above the diagonal.

    Returns:
        (batch * count, query heads * head_dim).
    """
    batch, count, _, head_dim = mixed.shape
    key_heads = cache.keys.shape[1]
    constants = rounders(mixed, precision.bits)
    mixed += constants
    mixed -= constants
    stop = start + count
    cache.keys[:, :, start:stop] = mixed[:, :, query_heads:-key_heads].transpose(0, 2, 1, 3)
    scales = power_of_two(constants[:, :, -key_heads:])
    cache.values[:, :, start:stop] = (mixed[:, :, -key_heads:] / scales).transpose(0, 2, 1, 3)
    cache.scales[:, :, 0, start:stop] = scales[..., 0].transpose(0, 2, 1)

    # (batch, key heads, group, count, head_dim)
    queries = (
        mixed[:, :, :query_heads].reshape(batch, count, key_heads, -1, head_dim).transpose(0, 2, 3, 1, 4)
    )
    if count == 1:
        result = _attend_block(queries, cache, stop, precision, None)
        return result.reshape(batch, -1)
    output = np.empty((batch, count, key_heads, query_heads // key_heads, head_dim))
    for first in range(0, count, _QUERY_BLOCK):
        last = min(first + _QUERY_BLOCK, count)
        result = _attend_block(
            queries[:, :, :, first:last], cache, start + last, precision, mask[: last - first, : last - first]
        )
        output[:, first:last] = result.transpose(0, 3, 1, 2, 4)
    return output.reshape(batch * count, -1)


def causal_mask() -> NDArray[np.bool_]:
    """The mask `attend` needs: True where a key comes after its query within one block of queries."""
    return np.triu(np.ones((_QUERY_BLOCK, _QUERY_BLOCK), dtype=np.bool_), 1)


def _attend_block(
    queries: Float64, cache: LayerCache, stop: int, precision: Precision, mask: NDArray[np.bool_] | None
) -> Float64:
    """Queries (batch, key heads, group, block, head_dim) whose last one sees positions before ``stop``."""
    batch, key_heads, group, block, head_dim = queries.shape
    rows = torch.from_numpy(queries.reshape(batch, key_heads, group * block, head_dim))
    weights: Float64 = contract(rows, cache.keys_transposed[..., :stop], precision.inner_max).numpy()
    if mask is not None:
        recent = weights.reshape(batch, key_heads, group, block, stop)[..., stop - block :]
        np.copyto(recent, -np.inf, where=mask)
    weights -= np.maximum.reduce(weights, axis=-1, keepdims=True)
    np.maximum(weights, -EXP2_LIMIT, out=weights)
    exp2_inplace(weights)
    # Rounding to multiples of 2**-30 turns what is masked, now 2**-1000, into zero.
    weights += _PROBABILITY_ROUNDER
    weights -= _PROBABILITY_ROUNDER
    total = np.add.reduce(weights, axis=-1, keepdims=True)
    weights *= cache.scales[..., :stop]
    constants = rounders(weights, precision.bits)
    weights += constants
    weights -= constants
    mixed: Float64 = contract(
        torch.from_numpy(weights), cache.values_tensor[:, :, :stop], precision.inner_max
    ).numpy()
    mixed /= total
    return mixed.reshape(batch, key_heads, group, block, head_dim)
