"""Operators that end a program: digests of what it computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from protocols.digest import DIGEST_BYTES, tagged
from protocols.limits import NAME_BYTES_MAX, UNITS_MAX
from workloads.chunkwise import chunk_digest
from workloads.program.limits import STEP_INPUTS_MAX
from workloads.program.operators.registry import data, integer, operator, require, text
from workloads.program.program import DIGEST_SPEC, ValueSpec, value_digest

__all__ = ["digest_of_values", "digest_tensor"]


def digest_of_values(header: bytes, digests: list[bytes]) -> bytes:
    """The digest of a chunk: what names it, and the value digests of all that it covers, in order."""
    return tagged("p2p-node/chunk-values/1", header, *digests)


def digest_tensor(digest: bytes) -> Tensor:
    """A digest as the value that ends a program."""
    return torch.frombuffer(bytearray(digest), dtype=torch.uint8)


def _digest_spec(*_: ValueSpec, header: bytes) -> ValueSpec:
    del header
    return DIGEST_SPEC


@operator("digest", (1, STEP_INPUTS_MAX), _digest_spec, header=data())
def _digest(*inputs: Tensor, header: bytes) -> Tensor:
    return digest_tensor(digest_of_values(header, [value_digest(value) for value in inputs]))


_NAME = text(NAME_BYTES_MAX)


def _chunk_digest_spec(words: ValueSpec, *_: ValueSpec, **__: Any) -> ValueSpec:
    require(words.dtype == "float32" and len(words.shape) == 1, "words must be float32 of one dimension")
    return DIGEST_SPEC


@operator(
    "chunk_digest",
    (1, STEP_INPUTS_MAX),
    _chunk_digest_spec,
    workload=_NAME,
    model=data(DIGEST_BYTES),
    profile=_NAME,
    number=integer(0, UNITS_MAX),
)
def _chunk_digest(
    words: Tensor, *inner: Tensor, workload: str, model: bytes, profile: str, number: int
) -> Tensor:
    """`workloads.chunkwise.chunk_digest` of float32 words, and of the digests of values behind them."""
    units = words.view(torch.int32).numpy().view(np.uint32).tolist()
    behind = b"".join(value_digest(value) for value in inner)
    return digest_tensor(
        chunk_digest(workload, model=model, profile=profile, number=number, units=units, inner=behind)
    )
