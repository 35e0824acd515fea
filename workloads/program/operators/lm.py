"""The operators that end a chunk of ``lm.generate``: drawing its tokens, and its digest."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from protocols.digest import DIGEST_BYTES
from protocols.limits import LM_CHUNK_UNITS
from protocols.units import FALSE_UNITS
from workloads.errors import ProgramRefused
from workloads.lm.digest import chunk_digest
from workloads.lm.input import LmInput
from workloads.lm.sampling import sample
from workloads.program.limits import DIMENSION_MAX
from workloads.program.operators.digests import digest_tensor
from workloads.program.operators.registry import data, integer, operator, precision, require
from workloads.program.program import DIGEST_SPEC, Attribute, ValueSpec

__all__: list[str] = []

_INDEX = integer(0, DIMENSION_MAX)
_SEED_BYTES = 8


def _exactly(length: int) -> Any:
    parse = data(length)

    def exactly(value: Attribute) -> bytes:
        found: bytes = parse(value)
        require(len(found) == length, f"must be {length} bytes")
        return found

    return exactly


def _sample_spec(logits: ValueSpec, **_: Any) -> ValueSpec:
    require(logits.dtype == "float64" and len(logits.shape) == 2, "logits must be (rows, vocabulary) float64")
    require(logits.shape[1] > 0, "vocabulary must hold a token")
    return ValueSpec("int64", logits.shape[:1])


def _sample_work(logits: ValueSpec, **_: Any) -> int:
    # Mostly a sort of each row.
    return 64 * logits.elements


@operator(
    "lm.sample",
    1,
    _sample_spec,
    work=_sample_work,
    position=_INDEX,
    seed=_exactly(_SEED_BYTES),
    temperature_milli=_INDEX,
    top_k=integer(0, 2**32 - 1),
)
def _sample(logits: Tensor, *, position: int, seed: bytes, temperature_milli: int, top_k: int) -> Tensor:
    """The tokens of output positions from ``position`` on."""
    job = LmInput((0,), 1, int.from_bytes(seed, "little"), temperature_milli, top_k)
    rows = logits.contiguous().numpy()
    return torch.tensor(sample(rows, range(position, position + len(rows)), job), dtype=torch.int64)


def _digest_spec(
    hidden: ValueSpec, drawn: ValueSpec, tokens: ValueSpec, *, chunk: int, **_: Any
) -> ValueSpec:
    require(hidden.dtype == "float32" and len(hidden.shape) == 2, "hidden must be (rows, width) float32")
    require(drawn == ValueSpec("int64", hidden.shape[:1]), "drawn must be one int64 for each hidden state")
    require(tokens.dtype == "int64" and len(tokens.shape) == 1, "tokens must be a list of int64")
    require(0 < drawn.shape[0] <= min(tokens.shape[0], LM_CHUNK_UNITS), "a chunk ends the tokens")
    return DIGEST_SPEC


@operator(
    "lm.chunk_digest",
    3,
    _digest_spec,
    model=_exactly(DIGEST_BYTES),
    precision=precision,
    chunk=_INDEX,
)
def _chunk_digest(
    hidden: Tensor, drawn: Tensor, tokens: Tensor, *, model: bytes, precision: Any, chunk: int
) -> Tensor:
    """The digest of the chunk that ends the tokens; `FALSE_UNITS` where other ones were drawn."""
    if not torch.equal(tokens[-len(drawn) :], drawn):
        return digest_tensor(FALSE_UNITS)
    claimed = [int(token) for token in drawn]
    if any(not 0 <= token < 2**32 for token in claimed):
        raise ProgramRefused("drawn tokens must be in [0, 2**32)")
    states: np.ndarray[Any, np.dtype[np.float32]] = hidden.contiguous().numpy()
    digest = chunk_digest(model=model, profile=precision.name, chunk=chunk, tokens=claimed, states=states)
    return digest_tensor(digest)
