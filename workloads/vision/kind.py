"""``classify.image`` among the kinds of work; readable without torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path

import msgspec

from protocols.blobs import Blob
from protocols.limits import CHUNKS_PER_SEGMENT, UNITS_MAX
from workloads.blobs import Blobs
from workloads.errors import InputRefused
from workloads.lm.manifest import load_manifest
from workloads.modelconfig import CONFIG_FILE, has_model_type
from workloads.split import Part, Split
from workloads.vision.config import MODEL_TYPE, load_config
from workloads.vision.input import (
    CHUNK_IMAGES,
    CHUNK_UNITS,
    IMAGE_UNITS,
    TOP,
    ClassifyInput,
    decode_input,
    encode_input,
)
from workloads.workload import EXACT_PROFILES, Artifact, Kind, Model, Workload

__all__ = ["COPIED_IMAGE", "NAME", "QUANTIZED_CLASSIFIER", "VISION", "classes", "model_digest"]

NAME = "classify.image"
COPIED_IMAGE = "copied-image"
"""Every second image gets the classes of the one before."""
QUANTIZED_CLASSIFIER = "quantized-classifier"
"""The weights have four bits."""
_PROBE_SIDE = 32
_PROBE_IMAGES = 2 * CHUNK_IMAGES


def model_digest(model_dir: Path) -> bytes:
    """The digest of a classifier's directory.

    Raises:
        ModelRefused: a file is missing or broken.
    """
    return load_manifest(model_dir, (CONFIG_FILE,)).digest


def _read_model(model_dir: Path) -> Model | None:
    if not has_model_type(model_dir, MODEL_TYPE):
        return None
    load_config(model_dir)
    return Model(model_dir.name, model_dir, model_digest(model_dir), UNITS_MAX)


def _probe() -> bytes:
    side = _PROBE_SIDE
    samples = bytes((7 * n + n // (3 * side)) % 256 for n in range(_PROBE_IMAGES * side * side * 3))
    return encode_input(ClassifyInput(side, 0, _PROBE_IMAGES, samples))


def _open(
    model_dir: Path, profile: str, variant: str | None, expected_digest: bytes | None, blobs: Blobs
) -> Workload:
    from workloads.vision.workload import ImageClassifier

    return ImageClassifier(model_dir, profile, variant, expected_digest=expected_digest, blobs=blobs)


def _input_blobs(input: bytes) -> tuple[Blob, ...]:
    blob = decode_input(input, is_whole=True).blob
    return () if blob is None else (blob,)


def classes(units: Sequence[int]) -> list[list[tuple[int, float]]]:
    """Number and chance of each image's likeliest classes."""
    found = []
    for start in range(0, len(units), IMAGE_UNITS):
        words = units[start : start + IMAGE_UNITS]
        chances = struct.unpack(f"<{TOP}f", struct.pack(f"<{TOP}I", *words[1::2]))
        found.append(list(zip(words[::2], chances, strict=True)))
    return found


def _present(input: bytes, units: Sequence[int]) -> Artifact:
    """Classes by their numbers; whoever has the model knows what they are called."""
    rows = [
        {"image": number, "classes": [{"class": which, "score": round(chance, 6)} for which, chance in told]}
        for number, told in enumerate(classes(units))
    ]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return Artifact("application/jsonl", content, f"JSON lines of {len(rows)} images' classes")


def _chunks(input: bytes) -> int:
    return decode_input(input, is_whole=True).chunks


def _part(input: bytes, first: int, count: int) -> Part:
    whole = decode_input(input, is_whole=True)
    if first < 0 or count < 1 or first + count > whole.chunks:
        raise InputRefused(f"chunks {first} to {first + count} must lie in [0, {whole.chunks}]")
    begin = first * CHUNK_IMAGES
    job = msgspec.structs.replace(
        whole, first=whole.first + begin, count=min(count * CHUNK_IMAGES, whole.count - begin)
    )
    return Part(encode_input(job), 0, job.units_total)


VISION = Kind(
    name=NAME,
    unit="word",
    chunk_units=CHUNK_UNITS,
    segment_chunks=CHUNKS_PER_SEGMENT,
    profiles=EXACT_PROFILES,
    variants=(COPIED_IMAGE, QUANTIZED_CLASSIFIER),
    models=tuple,
    probe=_probe,
    open=_open,
    present=_present,
    split=Split("chunk of images", _chunks, _part),
    input_blobs=_input_blobs,
    read_model=_read_model,
)
