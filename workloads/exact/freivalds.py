"""Freivalds' check: whether C = A · B over the integers, without multiplying A by B.

For the right C, A · (B · r) = C · r whatever the vector r. For a wrong one D = C - A · B isn't 0. If it isn't
0 modulo a prime p either, then D · r is 0 modulo p for at most one r in p; so v vectors, drawn after C was
fixed, let it pass with a chance of at most p**-v. But D may be a multiple of p without being 0: C off by
exactly p would always pass. So D is held against several primes, whose product exceeds every difference there
can be. Then D isn't 0 modulo at least one of them, and the chance of passing is at most `SOUNDNESS`, for each
attempt at guessing a C that passes. Source: Freivalds, "Probabilistic machines can use less running time",
IFIP 1977.

Everything is an integer held in float64. Primes lie below 2**21, as entries of A and B do in magnitude, so a
sum of `INNER_BLOCK` products stays below 2**53: whatever order a matrix product takes, it is exact.
"""

from __future__ import annotations

import math

import torch
from blake3 import blake3
from torch import Tensor

from protocols.digest import tagged
from workloads.errors import NumericsRefused

__all__ = [
    "CLAIM_MAX",
    "DIFFERENCE_MAX",
    "ENTRY_MAX",
    "PRIMES",
    "SOUNDNESS",
    "VECTORS",
    "challenge",
    "holds",
    "project",
]

PRIMES = (2_097_143, 2_097_133)
"""The two largest below 2**21."""
VECTORS = 4
"""For each prime."""
SOUNDNESS = float(min(PRIMES)) ** -VECTORS
"""Chance of a wrong C to pass, below 2**-83."""
DIFFERENCE_MAX = math.prod(PRIMES) - 1
"""A claimed entry and the right one must not differ by more: two 32-bit integers never do."""
ENTRY_MAX = 2**21 - 1
"""Magnitude of the factors' entries."""
INNER_BLOCK = 2_048
CLAIM_MAX = 2**32
"""Magnitude of a claimed entry."""
_LOW_BITS = 11
# Sums of so many products of a claimed entry and a part of a vector stay below 2**53.
_CLAIM_BLOCK = 512
_DRAW_BYTES = 8


def challenge(seed: bytes, size: int) -> Tensor:
    """Vectors to multiply with, which nobody could know before ``seed``.

    Args:
        seed: a digest that covers everything the check is about, the claimed C above all.
        size: of each vector.

    Returns:
        (size, `VECTORS` for each prime) float64, integers from 0 to below the column's prime; uniform but for
        a bias of 2**-43.
    """
    columns = len(PRIMES) * VECTORS
    stream = blake3(tagged("p2p-node/freivalds/1", seed)).digest(length=_DRAW_BYTES * size * columns)
    drawn = torch.frombuffer(bytearray(stream), dtype=torch.int64).reshape(size, columns)
    moduli = _moduli().to(torch.int64)
    # The sign bit would make remainders of another sign: without it 63 bits are left.
    return torch.remainder(drawn & (2**63 - 1), moduli).to(torch.float64)


def project(matrix: Tensor, vectors: Tensor) -> Tensor:
    """``matrix`` times vectors, each column modulo its prime.

    Args:
        matrix: (rows, inner) float64, integers of magnitude `ENTRY_MAX` at most.
        vectors: (inner, `VECTORS` for each prime) float64, as `challenge` or an earlier projection.

    Returns:
        (rows, columns) float64, integers from 0 to below the column's prime.

    Raises:
        NumericsRefused: an entry of the matrix is too large.
    """
    _check("matrix", matrix, ENTRY_MAX)
    total = torch.zeros(matrix.shape[0], vectors.shape[1], dtype=torch.float64)
    for start in range(0, matrix.shape[1], INNER_BLOCK):
        stop = start + INNER_BLOCK
        total = _reduced(total + _reduced(matrix[:, start:stop] @ vectors[start:stop]))
    return total


def holds(a: Tensor, b_projected: Tensor, c: Tensor, vectors: Tensor) -> bool:
    """Whether C = A · B, given B · r; wrong with a chance of `SOUNDNESS` at most, and only ever to say yes.

    Args:
        a: (rows, inner) float64, integers of magnitude `ENTRY_MAX` at most.
        b_projected: (inner, columns) float64, the projection of B by the vectors.
        c: (rows, width) float64, integers of magnitude `CLAIM_MAX` at most; claimed, and within
            `DIFFERENCE_MAX` of the right ones.
        vectors: (width, columns), the `challenge` that followed from ``c``.

    Raises:
        NumericsRefused: an entry of A or C is too large.
    """
    _check("claim", c, CLAIM_MAX)
    # Entries of C may be larger than those of A and B, so the vectors are taken apart instead.
    high = torch.floor(vectors * 2.0**-_LOW_BITS)
    parts = torch.cat([high, vectors - high * 2.0**_LOW_BITS], dim=1)
    columns = vectors.shape[1]
    total = torch.zeros(c.shape[0], columns, dtype=torch.float64)
    for start in range(0, c.shape[1], _CLAIM_BLOCK):
        stop = start + _CLAIM_BLOCK
        sums = c[:, start:stop] @ parts[start:stop]
        total = _reduced(total + _reduced(sums[:, :columns]) * 2.0**_LOW_BITS + _reduced(sums[:, columns:]))
    return torch.equal(total, project(a, b_projected))


def _check(name: str, matrix: Tensor, largest: int) -> None:
    if not matrix.numel():
        return
    low, high = torch.aminmax(matrix)
    # Written so that NaN fails too.
    if not (float(high) <= largest and float(low) >= -largest):
        raise NumericsRefused(f"{name} holds an entry of magnitude above {largest}")


def _moduli() -> Tensor:
    """The prime of each column."""
    return torch.tensor([float(prime) for prime in PRIMES for _ in range(VECTORS)], dtype=torch.float64)


def _centred(x: Tensor, moduli: Tensor) -> Tensor:
    """Integers below 2**53 in magnitude, modulo primes, each below its prime in magnitude."""
    # The quotient may be off by one, where it lies near a half; product and difference are exact either way.
    return x - torch.round(x / moduli) * moduli


def _reduced(x: Tensor) -> Tensor:
    """Integers below 2**53 in magnitude, modulo the columns' primes, from 0 on."""
    moduli = _moduli()
    centred = _centred(x, moduli)
    return torch.where(centred < 0, centred + moduli, centred)
