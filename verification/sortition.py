"""Drawing verifiers and their chunks from a VRF output, in integers only.

A commitment fixes ``alpha``; each peer's VRF turns it into ``beta``, which nobody could know
before and nobody can choose. The same beta says whether the peer verifies and which chunks it
recomputes. Everybody who holds the proof repeats the draw and must get the same answer on any
machine, so there is no float here.

These functions do not know who the executor is: the caller leaves out a peer's draw on its own
work.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from protocols.digest import tagged
from protocols.limits import ELECTORATE_MEMBERS_MAX, SEGMENT_CHUNKS_MAX, TOTAL_WEIGHT_MAX, WIDENING_MAX

__all__ = ["BETA_BYTES", "EXPECTED_MILLI_MAX", "alpha", "drawn_chunks", "is_drawn"]

BETA_BYTES = 64
EXPECTED_MILLI_MAX = 1_000 * ELECTORATE_MEMBERS_MAX

_WORD_BYTES = 8
_WORDS = 2 ** (8 * _WORD_BYTES)


@lru_cache(maxsize=1_024)
def alpha(network: str, commitment_id: bytes) -> bytes:
    """The 32-byte VRF input of one commitment on one network."""
    return tagged("p2p-node/sortition-alpha/1", network.encode(), commitment_id)


def is_drawn(beta: bytes, *, weight: int, total_weight: int, expected_milli: int, widening: int) -> bool:
    """Whether this draw makes its peer a verifier.

    The chance is ``min(1, expected * 2**widening * weight / total_weight)``. A wider draw contains
    every narrower one: who was drawn stays drawn.

    Args:
        beta: the peer's 64-byte VRF output for the commitment's alpha.
        weight: the peer's proved weight, 1..total_weight.
        total_weight: of the whole electorate, at most TOTAL_WEIGHT_MAX.
        expected_milli: verifiers expected from the whole electorate, in thousandths, at least 1.
        widening: how often the threshold was doubled because too few answered, 0..WIDENING_MAX.

    Raises:
        ValueError: an argument lies outside its bounds.
    """
    _check_beta(beta)
    if not 1 <= total_weight <= TOTAL_WEIGHT_MAX:
        raise ValueError(f"total_weight must be in 1..{TOTAL_WEIGHT_MAX}, got {total_weight}")
    if not 1 <= weight <= total_weight:
        raise ValueError(f"weight must be in 1..{total_weight}, got {weight}")
    if not 1 <= expected_milli <= EXPECTED_MILLI_MAX:
        raise ValueError(f"expected_milli must be in 1..{EXPECTED_MILLI_MAX}, got {expected_milli}")
    if not 0 <= widening <= WIDENING_MAX:
        raise ValueError(f"widening must be in 0..{WIDENING_MAX}, got {widening}")
    # beta / 2**512 < expected * 2**widening * weight / total, multiplied out. Where the right side
    # exceeds 1 every beta is below it, which is the min(1, ...) of the chance.
    drawn = int.from_bytes(beta, "big") * total_weight * 1_000
    return drawn < (expected_milli * weight) << (8 * BETA_BYTES + widening)


def drawn_chunks(beta: bytes, *, chunks: int, samples: int) -> tuple[int, ...]:
    """The chunks that the holder of this draw recomputes.

    Every set of ``samples`` chunks is equally likely, and independent of `is_drawn`, which looks
    at beta itself and not at its expansion.

    Args:
        beta: the peer's 64-byte VRF output for the commitment's alpha.
        chunks: how many the commitment covers, 1..SEGMENT_CHUNKS_MAX.
        samples: how many to draw, at least 1.

    Returns:
        Chunk numbers, ascending and distinct; all of them where samples >= chunks.

    Raises:
        ValueError: an argument lies outside its bounds.

    Source: R. Floyd's sampling (Bentley and Floyd, CACM 30(9), 1987): one number per sample.
    """
    _check_beta(beta)
    if not 1 <= chunks <= SEGMENT_CHUNKS_MAX:
        raise ValueError(f"chunks must be in 1..{SEGMENT_CHUNKS_MAX}, got {chunks}")
    if samples < 1:
        raise ValueError(f"samples must be >= 1, got {samples}")
    if samples >= chunks:
        return tuple(range(chunks))
    words = _expand(beta)
    drawn: set[int] = set()
    for last in range(chunks - samples, chunks):
        candidate = _below(last + 1, words)
        drawn.add(last if candidate in drawn else candidate)
    return tuple(sorted(drawn))


def _expand(beta: bytes) -> Iterator[int]:
    """An endless stream of 64-bit numbers: hashes of beta and a counter, four words each."""
    counter = 0
    while True:
        block = tagged("p2p-node/sortition-chunks/1", beta, counter.to_bytes(8, "little"))
        for start in range(0, len(block), _WORD_BYTES):
            yield int.from_bytes(block[start : start + _WORD_BYTES], "little")
        counter += 1


def _below(bound: int, words: Iterator[int]) -> int:
    """A number in 0..bound-1. Words of the incomplete last run are skipped: they would favour low ones."""
    usable = _WORDS - _WORDS % bound
    return next(word for word in words if word < usable) % bound


def _check_beta(beta: bytes) -> None:
    if len(beta) != BETA_BYTES:
        raise ValueError(f"beta must be {BETA_BYTES} bytes, got {len(beta)}")
