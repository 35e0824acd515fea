"""``training.run`` among the kinds of work; readable without torch."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

from protocols.blobs import Blob, blob_name
from protocols.limits import UNITS_MAX
from workloads.blobs import Blobs
from workloads.training.curve import loss_curve
from workloads.training.input import (
    CHUNK_UNITS,
    WORDS_PER_PARAMETER,
    Adapters,
    ClassifierShape,
    TrainingInput,
    decode_input,
    encode_input,
    losses,
    state_blob,
)
from workloads.training.statefile import parameters_file
from workloads.workload import EXACT_PROFILES, Artifact, Kind, Model, Workload, weightless_model

__all__ = ["ALTERED_STEP", "MODEL", "NAME", "SKIPPED_STEP", "TRAINING", "model_digest", "run_files"]

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

    return TrainingRun(profile, variant, expected_digest=expected_digest, blobs=blobs)


def _input_blobs(input: bytes) -> tuple[Blob, ...]:
    job = decode_input(input)
    return tuple(blob for blob in (job.data_blob, job.base, job.start) if blob is not None)


def _output_blobs(input: bytes, units: Sequence[int]) -> tuple[Blob, ...]:
    """The state after each segment: whoever goes on starts from the last, whoever checks from any."""
    job = decode_input(input)
    if not job.is_large:
        return ()
    return tuple(state_blob(units, segment) for segment in range(len(units) // CHUNK_UNITS))


def _leaves_blobs(input: bytes) -> bool:
    return decode_input(input).is_large


def _chunk_blobs(input: bytes, units: Sequence[int], chunk: int) -> tuple[Blob, ...]:
    return (state_blob(units, chunk - 1),) if chunk and decode_input(input).is_large else ()


def _remark(input: bytes, units: Sequence[int]) -> str:
    """The loss before the last step."""
    job = decode_input(input)
    curve = losses(job, units) if job.is_large else []
    return f"loss {curve[-1]:.4f} before step {job.start_step + len(curve)}" if curve else ""


def present(input: bytes, units: Sequence[int]) -> Artifact:
    """What a finished run's output words hold by themselves: the last state, or the losses as a picture."""
    job = decode_input(input)
    if job.is_large:
        return Artifact("image/png", loss_curve(losses(job, units)), "losses before each step")
    import numpy as np

    count = WORDS_PER_PARAMETER * job.parameters
    last = units[-job.segment_chunks * CHUNK_UNITS :][:count]
    file = io.BytesIO()
    np.save(file, np.array(last, dtype="<u4").view("<f4"))
    return Artifact(
        "application/octet-stream",
        file.getvalue(),
        f"NumPy file of {job.parameters} parameters after {job.segments * job.segment_steps} steps, "
        "each tensor followed by its two moments",
    )


def run_files(input: bytes, units: Sequence[int], blobs: Blobs) -> Artifact:
    """What a finished run left, in one file: parameters and losses. The whole state stays a blob.

    Raises:
        InputRefused: the last state isn't here.
    """
    job = decode_input(input)
    if not job.is_large:
        return present(input, units)
    last = state_blob(units, job.segments - 1)
    state = blobs.read(last)
    curve = losses(job, units)
    steps = job.start_step + len(curve)
    first = job.start_step + 1
    files = {
        "loss.png": loss_curve(curve),
        "loss.csv": "".join(f"{first + step},{loss:.6g}\n" for step, loss in enumerate(curve)).encode(),
    }
    if job.adapters is None:
        files["model.safetensors"] = parameters_file(state)
    else:
        files["adapter_model.safetensors"] = parameters_file(state)
        files["adapter_config.json"] = _adapter_config(job.adapters)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name), content)
    description = (
        f"{', '.join(sorted(files))} after {steps} steps; loss {curve[0]:.3f} at first, "
        f"{curve[-1]:.3f} at last; state {blob_name(last)}"
    )
    return Artifact("application/zip", file.getvalue(), description)


def _adapter_config(adapters: Adapters) -> bytes:
    """As PEFT reads it."""
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": adapters.rank,
        "lora_alpha": adapters.alpha_milli / 1_000,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
    }
    return json.dumps(config, indent=2).encode()


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
    present=present,
    input_blobs=_input_blobs,
    output_blobs=_output_blobs,
    leaves_blobs=_leaves_blobs,
    chunk_blobs=_chunk_blobs,
    remark=_remark,
)
