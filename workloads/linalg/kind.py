"""``linalg.matmul`` among the kinds of work; readable without torch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import msgspec

from protocols.limits import UNITS_MAX
from workloads.blobs import Blobs
from workloads.inputs import items_split
from workloads.linalg.input import (
    CHUNK_UNITS,
    CODEC,
    MatmulInput,
    Matrix,
    decode_input,
    encode_input,
    input_blobs,
)
from workloads.workload import EXACT_PROFILES, Artifact, Kind, Model, Workload, weightless_model

__all__ = ["FEWER_TERMS", "MATMUL", "MODEL", "NAME", "model_digest"]

NAME = "linalg.matmul"
MODEL = "integer-matmul"
FEWER_TERMS = "fewer-terms"
_VERSION = 3


def model_digest() -> bytes:
    """The digest that stands for multiplying integer matrices."""
    return weightless_model(NAME, _VERSION)


def _models() -> tuple[Model, ...]:
    return (Model(MODEL, Path(), model_digest(), UNITS_MAX),)


def _probe() -> bytes:
    return encode_input(MatmulInput(64, 256, 64, 8, Matrix(seed=1), Matrix(seed=2)))


def _open(
    model_dir: Path, profile: str, variant: str | None, expected_digest: bytes | None, blobs: Blobs
) -> Workload:
    from workloads.linalg.workload import MatrixProduct

    return MatrixProduct(profile, variant, expected_digest=expected_digest, blobs=blobs)


def array_file(input: bytes, units: Sequence[int]) -> Artifact:
    """A finished job's product as a NumPy file."""
    import numpy as np

    job = decode_input(input, is_whole=True)
    product = np.array(units, dtype=np.uint32).view(np.int32).reshape(job.rows, job.columns)
    file = io.BytesIO()
    np.save(file, product.astype("<i4", copy=False))
    return Artifact(
        "application/octet-stream",
        file.getvalue(),
        f"NumPy file of {job.rows} x {job.columns} 32-bit integers",
    )


def _narrowed(whole: MatmulInput, first: int, count: int) -> MatmulInput:
    left, before = whole.left, first * whole.inner
    if left.entries:
        rows = Matrix(left.entries[before : before + count * whole.inner])
    else:
        rows = Matrix(seed=left.seed, skip=left.skip + before, blob=left.blob)
    return msgspec.structs.replace(whole, rows=count, left=rows)


MATMUL = Kind(
    name=NAME,
    unit="entry",
    chunk_units=CHUNK_UNITS,
    segment_chunks=4,
    # Integers are exact whatever the profile.
    profiles=EXACT_PROFILES,
    variants=(FEWER_TERMS,),
    models=_models,
    probe=_probe,
    open=_open,
    present=array_file,
    input_blobs=input_blobs,
    split=items_split(CODEC, "row", lambda job: job.rows, _narrowed),
)
