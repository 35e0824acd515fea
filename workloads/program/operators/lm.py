"""The operators that end a chunk of ``lm.generate``: its tokens, their log-probabilities, and its digest."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from protocols.digest import DIGEST_BYTES
from protocols.limits import LM_CHUNK_UNITS
from protocols.units import FALSE_UNITS
from workloads.blobs import BLOB_WORDS, blob_words
from workloads.errors import ProgramRefused
from workloads.lm.digest import chunk_digest
from workloads.lm.input import END_UNIT, LOGPROBS_MAX, TOP_P_MILLI_MAX, LmInput
from workloads.lm.logprobs import logprobs_blob, logprobs_of
from workloads.lm.sampling import penalised, sample
from workloads.program.limits import DIMENSION_MAX
from workloads.program.operators.digests import digest_tensor
from workloads.program.operators.registry import data, integer, operator, precision, require
from workloads.program.program import DIGEST_SPEC, Attribute, ValueSpec

__all__: list[str] = []

_INDEX = integer(0, DIMENSION_MAX)
_POSITION = integer(0, 2**48)
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
    position=_POSITION,
    seed=_exactly(_SEED_BYTES),
    temperature_milli=_INDEX,
    top_k=integer(0, 2**32 - 1),
    top_p_milli=integer(1, TOP_P_MILLI_MAX),
)
def _sample(
    logits: Tensor, *, position: int, seed: bytes, temperature_milli: int, top_k: int, top_p_milli: int
) -> Tensor:
    """The tokens of successive places in a job's noise, from ``position`` on."""
    job = LmInput(
        ((0,),), 1, int.from_bytes(seed, "little"), temperature_milli, top_k, top_p_milli=top_p_milli
    )
    rows = logits.contiguous().numpy()
    return torch.tensor(sample(rows, range(position, position + len(rows)), job), dtype=torch.int64)


def _penalise_spec(logits: ValueSpec, tokens: ValueSpec, **_: Any) -> ValueSpec:
    require(logits.dtype == "float64" and len(logits.shape) == 2, "logits must be (rows, vocabulary) float64")
    require(tokens.dtype == "int64" and len(tokens.shape) == 1, "tokens must be a list of int64")
    require(0 < logits.shape[0] < tokens.shape[0], "tokens must hold the rows' and one before")
    return logits


def _penalise_work(logits: ValueSpec, tokens: ValueSpec, **_: Any) -> int:
    # Each row sorts the tokens before it.
    return logits.elements + 32 * logits.shape[0] * tokens.elements


@operator("lm.penalise", 2, _penalise_spec, work=_penalise_work, repetition_milli=integer(1, 2**31))
def _penalise(logits: Tensor, tokens: Tensor, *, repetition_milli: int) -> Tensor:
    """Logits of the last tokens, the repetition penalty applied."""
    job = LmInput(((0,),), 1, 0, 0, repetition_milli=repetition_milli)
    rows = logits.contiguous().numpy()
    before = np.clip(tokens.numpy()[:-1], 0, rows.shape[1] - 1)
    return torch.from_numpy(penalised(rows, before, job).copy())


def _logprobs_spec(logits: ValueSpec, tokens: ValueSpec, **_: Any) -> ValueSpec:
    require(logits.dtype == "float64" and len(logits.shape) == 2, "logits must be (rows, vocabulary) float64")
    require(tokens == ValueSpec("int64", logits.shape[:1]), "tokens must be one int64 for each row")
    return ValueSpec("int64", (BLOB_WORDS,))


def _logprobs_work(logits: ValueSpec, tokens: ValueSpec, **_: Any) -> int:
    return 64 * logits.elements


@operator("lm.logprobs", 2, _logprobs_spec, work=_logprobs_work, count=integer(0, LOGPROBS_MAX))
def _logprobs(logits: Tensor, tokens: Tensor, *, count: int) -> Tensor:
    """The words of the blob of a chunk's log-probabilities."""
    rows = logits.contiguous().numpy()
    drawn = [int(token) for token in tokens]
    if any(not 0 <= token < rows.shape[1] for token in drawn):
        raise ProgramRefused("tokens must be in the vocabulary")
    return torch.tensor(blob_words(logprobs_blob(logprobs_of(rows, drawn, count))[0]), dtype=torch.int64)


def _digest_spec(hidden: ValueSpec, units: ValueSpec, *made: ValueSpec, end: int, **_: Any) -> ValueSpec:
    require(hidden.dtype == "float32" and len(hidden.shape) == 2, "hidden must be (rows, width) float32")
    require(units.dtype == "int64" and len(units.shape) == 1, "units must be a list of int64")
    require(0 < units.shape[0] <= LM_CHUNK_UNITS, "units must be those of a chunk")
    require(all(spec.dtype == "int64" and len(spec.shape) == 1 for spec in made), "made must be int64")
    require(bool(made) or end == 1, "a chunk holds tokens or an end")
    require(hidden.shape[0] == (made[0].shape[0] if made else 1), "each hidden state must be a token's")
    return DIGEST_SPEC


@operator(
    "lm.chunk_digest",
    (2, 4),
    _digest_spec,
    model=_exactly(DIGEST_BYTES),
    precision=precision,
    chunk=_INDEX,
    end=integer(0, 1),
)
def _chunk_digest(
    hidden: Tensor, units: Tensor, *made: Tensor, model: bytes, precision: Any, chunk: int, end: int
) -> Tensor:
    """The digest of a chunk whose units are the values made, and an end; `FALSE_UNITS` where they aren't."""
    claimed = [int(unit) for unit in units]
    expected = [int(unit) for value in made for unit in value] + [END_UNIT] * end
    if claimed != expected:
        return digest_tensor(FALSE_UNITS)
    if any(not 0 <= unit < 2**32 for unit in claimed):
        raise ProgramRefused("units must be in [0, 2**32)")
    states: np.ndarray[Any, np.dtype[np.float32]] = hidden.contiguous().numpy()
    if end and made:
        states = np.concatenate((states, states[-1:]))
    digest = chunk_digest(model=model, profile=precision.name, chunk=chunk, units=claimed, states=states)
    return digest_tensor(digest)


def _false_spec(units: ValueSpec, **_: Any) -> ValueSpec:
    require(units.dtype == "int64" and len(units.shape) == 1, "units must be a list of int64")
    return DIGEST_SPEC


@operator("lm.false_chunk", 1, _false_spec)
def _false_chunk(units: Tensor) -> Tensor:
    """What stands for units that can't follow those before, whatever the model says."""
    return digest_tensor(FALSE_UNITS)
