"""Log-probabilities as integers, in millionths of a nat, the same on every machine.

They are the model's own: of its logits, before temperature, penalties and cuts. The sum under the logarithm
is one of integers, so its order doesn't matter, and the logarithm is the exact library's.

A chunk's are one blob: for each token its own, then the id and value of each likeliest one, all as
little-endian 32-bit words after one byte of filling. The filling is chosen so that no word of the blob's name
is `END_UNIT`, which ends an output.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocols.blobs import Blob, blob_of
from workloads.blobs import blob_words
from workloads.errors import InputRefused
from workloads.lm.input import END_UNIT

__all__ = ["Logprobs", "logprobs_blob", "logprobs_of", "read_logprobs"]

VALUE_MAX = 2**32 - 2
"""Beyond 4,294 nats nothing is told apart."""
_SCALE_BITS = 40
_MICRO = 1e6
_LN_2 = 0.6931471805599453
_FILLINGS = 256


@dataclass(frozen=True, slots=True)
class Logprobs:
    """One token's log-probability, negated, in millionths of a nat, and those of the likeliest tokens."""

    own: int
    likeliest: tuple[tuple[int, int], ...]


def logprobs_of(logits: NDArray[np.float64], tokens: Sequence[int], count: int) -> list[Logprobs]:
    """Of each token and of the likeliest ones at its place.

    Args:
        logits: (tokens, vocabulary), finite.
        tokens: drawn, inside the vocabulary.
        count: of likeliest tokens; equal logits in the order of ids.
    """
    import torch

    from workloads.exact.elementary import raw_log
    from workloads.exact.functions import EXP2_LIMIT, LOG2_E, exp2_inplace

    below_best = logits - np.maximum.reduce(logits, axis=-1, keepdims=True)
    powers = np.maximum(below_best * LOG2_E, -EXP2_LIMIT)
    exp2_inplace(powers)
    powers *= 2.0**_SCALE_BITS
    # Up to 2**20 tokens of 2**40: inside int64, and integers add up alike in any order.
    totals = np.rint(powers).astype(np.int64).sum(axis=-1)
    log_totals = raw_log(torch.from_numpy(totals.astype(np.float64))).numpy() - _SCALE_BITS * _LN_2
    values = np.rint((log_totals[:, None] - below_best) * _MICRO)
    micro = np.clip(values, 0, VALUE_MAX).astype(np.int64)
    return [
        Logprobs(int(row[token]), tuple((int(other), int(row[other])) for other in _first(of, count)))
        for row, of, token in zip(micro, logits, tokens, strict=True)
    ]


def logprobs_blob(values: Sequence[Logprobs]) -> tuple[Blob, bytes]:
    """The blob of a chunk's log-probabilities, and its content."""
    words = [word for value in values for word in (value.own, *(w for pair in value.likeliest for w in pair))]
    content = struct.pack(f"<{len(words)}I", *words)
    for filling in range(_FILLINGS):
        data = bytes([filling]) + content
        blob = blob_of(data)
        if END_UNIT not in blob_words(blob):
            return blob, data
    raise AssertionError("256 digests in a row hold the same word")


def read_logprobs(data: bytes, count: int) -> list[Logprobs]:
    """What the blob of `logprobs_blob` says.

    Args:
        data: its content.
        count: of likeliest tokens that were asked for.

    Raises:
        InputRefused: its length doesn't fit.
    """
    width = 1 + 2 * count
    if len(data) % 4 != 1 or (len(data) // 4) % width:
        raise InputRefused(f"{len(data)} bytes don't hold log-probabilities of {count} tokens each")
    words = struct.unpack(f"<{len(data) // 4}I", data[1:])
    rows = [words[start : start + width] for start in range(0, len(words), width)]
    return [Logprobs(row[0], tuple(zip(row[1::2], row[2::2], strict=True))) for row in rows]


def _first(logits: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    count = min(count, len(logits))
    if not count:
        return np.empty(0, dtype=np.int64)
    last = np.partition(logits, len(logits) - count)[len(logits) - count]
    candidates = np.flatnonzero(logits >= last)
    order: NDArray[np.int64] = candidates[np.argsort(-logits[candidates], kind="stable")][:count]
    return order
