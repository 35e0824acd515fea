"""Embeddings: rows of a table by index, and the sum of gradients that come back to each row."""

from __future__ import annotations

import torch
from torch import Tensor

from workloads.exact.quantise import EXPONENT_MAX
from workloads.exact.tensors import indices, intake

__all__ = ["embedding", "embedding_backward"]

# Gradients become integers of at most this many bits, fewer where more rows might meet in one sum of 63.
_BITS_MAX = 50
_SUM_BITS = 62
_EXPONENT_BITS = 0x7FF0_0000_0000_0000


def embedding(weight: Tensor, tokens: Tensor) -> Tensor:
    """Rows of a table.

    Args:
        weight: (rows, width).
        tokens: (...) integers in [0, rows).

    Returns:
        (..., width) float64.

    Raises:
        NumericsRefused: an index lies outside, or a row that is asked for holds NaN, Inf or a magnitude above
            2**500.
    """
    return intake("weight", weight[indices("tokens", tokens, weight.shape[0])])


def embedding_backward(grad: Tensor, tokens: Tensor, rows: int) -> Tensor:
    """Gradient of ``embedding`` in its weight, whatever the order in which rows that repeat are added.

    Args:
        grad: (..., width), of the result.
        tokens: (...) integers in [0, rows).
        rows: of the table.

    Returns:
        (rows, width) float64. Gradients are rounded to multiples of 2**-50 of the largest (fewer bits above
        4096 tokens) and added as integers.
    """
    upstream = intake("grad", grad).reshape(-1, grad.shape[-1])
    wanted = indices("tokens", tokens, rows).reshape(-1)
    total = torch.zeros((rows, upstream.shape[-1]), dtype=torch.int64, device=grad.device)
    if not upstream.numel():
        return total.to(torch.float64)
    bits = min(_BITS_MAX, _SUM_BITS - (len(wanted) - 1).bit_length())
    largest = upstream.abs().amax().clamp(min=2.0**-EXPONENT_MAX)
    power = (largest.view(torch.int64) & _EXPONENT_BITS).view(torch.float64)
    # Both factors are powers of two, so only the rounding to an integer loses anything.
    whole = torch.round(upstream * (2.0 ** (bits - 1) / power)).to(torch.int64)
    total.index_add_(0, wanted, whole)
    return total.to(torch.float64) * (power * 2.0 ** (1 - bits))
