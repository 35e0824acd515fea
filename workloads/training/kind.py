"""``training.run`` among the kinds of work; readable without torch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from protocols.limits import UNITS_MAX
from workloads.blobs import Blobs
from workloads.training.input import (
    CHUNK_UNITS,
    WORDS_PER_PARAMETER,
    ClassifierShape,
    TrainingInput,
    decode_input,
    encode_input,
)
from workloads.workload import EXACT_PROFILES, Artifact, Kind, Model, Workload, weightless_model

__all__ = ["ALTERED_STEP", "MODEL", "NAME", "SKIPPED_STEP", "TRAINING", "model_digest"]

NAME = "training.run"
MODEL = "adamw"
SKIPPED_STEP = "skipped-training-step"
ALTERED_STEP = "altered-training-step"
_VERSION = 1
_SEGMENT_CHUNKS = 4


def model_digest() -> bytes:
    """The digest that stands for this way to train."""
    return weightless_model(NAME, _VERSION)


def _models() -> tuple[Model, ...]:
    return (Model(MODEL, Path(), model_digest(), UNITS_MAX),)


def _probe() -> bytes:
    return encode_input(
        TrainingInput(
            classifier=ClassifierShape((4, 8, 2)),
            llama=None,
            segments=2,
            segment_steps=2,
            batch=4,
            learning_rate_micro=10_000,
            beta1_micro=900_000,
            beta2_micro=950_000,
            weight_decay_micro=0,
            seed=0,
            data=bytes([0, 50, 100, 150, 0, 250, 200, 150, 100, 1]),
        )
    )


def _open(
    model_dir: Path, profile: str, variant: str | None, expected_digest: bytes | None, blobs: Blobs
) -> Workload:
    from workloads.training.workload import TrainingRun

    return TrainingRun(profile, variant, expected_digest=expected_digest)


def state_file(input: bytes, units: Sequence[int]) -> Artifact:
    """A finished run's last state as a NumPy file."""
    import numpy as np

    job = decode_input(input)
    count = WORDS_PER_PARAMETER * job.shape.parameters
    last = units[-job.segment_chunks * CHUNK_UNITS :][:count]
    file = io.BytesIO()
    np.save(file, np.array(last, dtype="<u4").view("<f4"))
    return Artifact(
        "application/octet-stream",
        file.getvalue(),
        f"NumPy file of {job.shape.parameters} parameters after {job.segments * job.segment_steps} steps, "
        "each tensor followed by its two moments",
    )


TRAINING = Kind(
    name=NAME,
    unit="word",
    chunk_units=CHUNK_UNITS,
    segment_chunks=_SEGMENT_CHUNKS,
    profiles=EXACT_PROFILES,
    variants=(ALTERED_STEP, SKIPPED_STEP),
    models=_models,
    probe=_probe,
    open=_open,
    present=state_file,
)
