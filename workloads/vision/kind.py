"""``classify.image`` among the kinds of work; readable without torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path

import msgspec

from protocols.limits import CHUNKS_PER_SEGMENT
from workloads.blobs import Blobs
from workloads.inputs import items_split
from workloads.lm.manifest import load_manifest
from workloads.modelconfig import CONFIG_FILE
from workloads.modelfiles import model_reader
from workloads.vision.config import MODEL_TYPE, load_config
from workloads.vision.input import (
    CHUNK_IMAGES,
    CHUNK_UNITS,
    CODEC,
    IMAGE_UNITS,
    TOP,
    ClassifyInput,
    encode_input,
)
from workloads.workload import ALL_PROFILES, Artifact, Kind, Workload

__all__ = ["COPIED_IMAGE", "NAME", "QUANTIZED_CLASSIFIER", "VISION", "classes", "model_digest"]

NAME = "classify.image"
COPIED_IMAGE = "copied-image"
"""Every second image gets the classes of the one before."""
QUANTIZED_CLASSIFIER = "quantized-classifier"
"""The weights have four bits."""
_SMALL_FILES = (CONFIG_FILE,)
_PROBE_SIDE = 32
_PROBE_IMAGES = 2 * CHUNK_IMAGES


def model_digest(model_dir: Path) -> bytes:
    """The digest of a classifier's directory.

    Raises:
        ModelRefused: a file is missing or broken.
    """
    return load_manifest(model_dir, _SMALL_FILES).digest


def _probe() -> bytes:
    side = _PROBE_SIDE
    samples = bytes((7 * n + n // (3 * side)) % 256 for n in range(_PROBE_IMAGES * side * side * 3))
    return encode_input(ClassifyInput(side, 0, _PROBE_IMAGES, samples))


def _open(
    model_dir: Path, profile: str, variant: str | None, expected_digest: bytes | None, blobs: Blobs
) -> Workload:
    from workloads.vision.workload import ImageClassifier

    return ImageClassifier(model_dir, profile, variant, expected_digest=expected_digest, blobs=blobs)


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


def _narrowed(whole: ClassifyInput, first: int, count: int) -> ClassifyInput:
    begin = first * CHUNK_IMAGES
    images = min(count * CHUNK_IMAGES, whole.count - begin)
    return msgspec.structs.replace(whole, first=whole.first + begin, count=images)


VISION = Kind(
    name=NAME,
    unit="word",
    chunk_units=CHUNK_UNITS,
    segment_chunks=CHUNKS_PER_SEGMENT,
    profiles=ALL_PROFILES,
    variants=(COPIED_IMAGE, QUANTIZED_CLASSIFIER),
    models=tuple,
    probe=_probe,
    open=_open,
    present=_present,
    split=items_split(CODEC, "chunk of images", lambda job: job.chunks, _narrowed),
    input_blobs=CODEC.blobs,
    read_model=model_reader(MODEL_TYPE, load_config, _SMALL_FILES),
)
