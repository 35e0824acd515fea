"""``diffusion.sample`` among the kinds of work; readable without torch."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import msgspec

from protocols.limits import UNITS_MAX
from workloads.blobs import Blobs
from workloads.diffusion.input import CODEC, LATENT_UNITS, SIZE, SampleInput, decode_input, encode_input
from workloads.errors import ModelRefused
from workloads.inputs import items_split
from workloads.lm.manifest import load_manifest
from workloads.png import png
from workloads.workload import ALL_PROFILES, Artifact, Kind, Model, Workload

__all__ = ["DIFFUSION", "FEWER_STEPS", "MODEL", "NAME", "model_digest"]

NAME = "diffusion.sample"
MODEL = "digits-8x8"
FEWER_STEPS = "fewer-steps"
_DESCRIPTION_FILE = "sampler.json"
_DESCRIPTION = b'{"architecture": "flow-unet-8x8", "version": 1}\n'
_MODELS = Path(__file__).resolve().parent.parent / "models"
_SEGMENT_STEPS = 16
_ENLARGED = 8
_PICTURES_ACROSS = 10


def model_digest(model_dir: Path) -> bytes:
    """The digest of a sampler's directory.

    Raises:
        ModelRefused: a file is missing or broken, or the directory describes another network.
    """
    digest = load_manifest(model_dir, (_DESCRIPTION_FILE,)).digest
    if (model_dir / _DESCRIPTION_FILE).read_bytes() != _DESCRIPTION:
        raise ModelRefused(f"{_DESCRIPTION_FILE} must be {_DESCRIPTION.decode().strip()}")
    return digest


def _models() -> tuple[Model, ...]:
    return (_model(_MODELS / MODEL),)


def _model(model_dir: Path) -> Model:
    return Model(model_dir.name, model_dir, model_digest(model_dir), UNITS_MAX)


def _read_model(model_dir: Path) -> Model | None:
    return _model(model_dir) if (model_dir / _DESCRIPTION_FILE).is_file() else None


def _probe() -> bytes:
    return encode_input(SampleInput(labels=(0,), steps=2, seed=0))


def _open(
    model_dir: Path, profile: str, variant: str | None, expected_digest: bytes | None, blobs: Blobs
) -> Workload:
    from workloads.diffusion.workload import DiffusionSampler

    return DiffusionSampler(model_dir, profile, variant, expected_digest=expected_digest)


def sheet(input: bytes, units: Sequence[int]) -> Artifact:
    """A finished job's pictures, enlarged, side by side."""
    job = decode_input(input, is_whole=True)
    count = len(job.labels)
    across = min(count, _PICTURES_ACROSS)
    width, height = across * SIZE * _ENLARGED, -(-count // across) * SIZE * _ENLARGED
    samples = bytearray(width * height)
    for picture in range(count):
        end = (picture + 1) * job.steps * LATENT_UNITS
        words = struct.pack(f"<{LATENT_UNITS}I", *units[end - LATENT_UNITS : end])
        for index, value in enumerate(struct.unpack(f"<{LATENT_UNITS}f", words)):
            y, x = picture // across * SIZE + index // SIZE, picture % across * SIZE + index % SIZE
            for row in range(y * _ENLARGED, (y + 1) * _ENLARGED):
                start = row * width + x * _ENLARGED
                samples[start : start + _ENLARGED] = bytes([_grey(value)]) * _ENLARGED
    return Artifact(
        "image/png",
        png(width, height, bytes(samples)),
        f"PNG image of {width} x {height} pixels: {count} of {SIZE} x {SIZE}, {job.steps} steps each",
    )


def _grey(value: float) -> int:
    # Written so that NaN, which an unchecked latent may hold, is black.
    return int(min((value + 1) * 127.5, 255.0)) if value > -1 else 0


def _narrowed(whole: SampleInput, first: int, count: int) -> SampleInput:
    labels = whole.labels[first : first + count]
    return msgspec.structs.replace(whole, labels=labels, first_picture=whole.first_picture + first)


DIFFUSION = Kind(
    name=NAME,
    unit="word",
    chunk_units=LATENT_UNITS,
    segment_chunks=_SEGMENT_STEPS,
    profiles=ALL_PROFILES,
    variants=(FEWER_STEPS,),
    models=_models,
    probe=_probe,
    open=_open,
    present=sheet,
    split=items_split(CODEC, "picture", lambda job: len(job.labels), _narrowed),
    read_model=_read_model,
)
