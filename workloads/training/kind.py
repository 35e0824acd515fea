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
    momentum_blob,
    start_blob,
    state_blob,
)
from workloads.training.statefile import parameters_file
from workloads.training.turns import TURNS, losses_of_turns
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
    return decode_input(input, is_whole=True).blobs


def _output_blobs(input: bytes, units: Sequence[int]) -> tuple[Blob, ...]:
    """The state after each segment: whoever goes on starts from the last, whoever checks from any.

    Of a turn also what it started from: the next step between rounds may need it.
    """
    job = decode_input(input)
    if not job.is_large:
        return ()
    states = tuple(state_blob(units, segment) for segment in range(len(units) // CHUNK_UNITS))
    if job.turn is None or not states:
        return states
    momentum = momentum_blob(job, units)
    return (*states, start_blob(job, units), *(() if momentum is None else (momentum,)))


def _leaves_blobs(input: bytes) -> bool:
    return decode_input(input, is_whole=True).is_large


def _segment_chunks(input: bytes) -> int:
    """Of a turn each segment is committed to, so that a peer that dies costs the others one at most."""
    return _SEGMENT_CHUNKS if decode_input(input, is_whole=True).rounds is None else 1


def _chunk_blobs(input: bytes, units: Sequence[int], chunk: int) -> tuple[Blob, ...]:
    return (state_blob(units, chunk - 1),) if chunk and decode_input(input).is_large else ()


def _remark(input: bytes, units: Sequence[int]) -> str:
    """The loss before the last step."""
    job = decode_input(input)
    curve = losses(job, units) if job.is_large else []
    return f"loss {curve[-1]:.4f} before step {job.steps_before + len(curve)}" if curve else ""


def present(input: bytes, units: Sequence[int]) -> Artifact:
    """What a finished run's output words hold by themselves: the last state, or the losses as a picture."""
    job = decode_input(input, is_whole=True)
    if job.is_large:
        return Artifact("image/png", loss_curve(_curves(job, units)), "losses before each step")
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
    job = decode_input(input, is_whole=True)
    if not job.is_large:
        return present(input, units)
    last = state_blob(units, len(units) // CHUNK_UNITS - 1)
    state = blobs.read(last)
    curves = _curves(job, units)
    files = {"loss.png": loss_curve(curves), "loss.csv": _table(curves, job.steps_before + 1)}
    steps = job.steps_before + len(curves[0])
    if job.adapters is None:
        files["model.safetensors"] = parameters_file(state)
    else:
        files["adapter_model.safetensors"] = parameters_file(state)
        files["adapter_config.json"] = _adapter_config(job.adapters)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name), content)
    peers = f" of {job.rounds.peers} peers each" if job.rounds is not None and job.turn is None else ""
    told = f"loss {_mean(curves, 0):.3f} at first, {_mean(curves, -1):.3f} at last; " if curves[0] else ""
    description = f"{', '.join(sorted(files))} after {steps} steps{peers}; {told}state {blob_name(last)}"
    return Artifact("application/zip", file.getvalue(), description)


def _curves(job: TrainingInput, units: Sequence[int]) -> list[list[float]]:
    """The losses of each peer."""
    if job.rounds is None or job.turn is not None:
        return [losses(job, units)]
    return losses_of_turns(job, units)


def _mean(curves: list[list[float]], step: int) -> float:
    return sum(curve[step] for curve in curves) / len(curves)


def _table(curves: list[list[float]], first: int) -> bytes:
    """A line for each step: its number and the loss before it; with several peers their mean, then each."""
    lines = []
    for step, each in enumerate(zip(*curves, strict=True)):
        numbers = each if len(each) == 1 else (_mean(curves, step), *each)
        lines.append(",".join([str(first + step), *(f"{loss:.6g}" for loss in numbers)]) + "\n")
    return "".join(lines).encode()


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
    segments=_segment_chunks,
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
    split=TURNS,
    remark=_remark,
)
