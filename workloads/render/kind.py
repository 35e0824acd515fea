"""``render.trace`` among the kinds of work; readable without torch."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from protocols.blobs import Blob
from protocols.limits import UNITS_MAX
from workloads.blobs import Blobs
from workloads.inputs import items_split
from workloads.png import animation, png
from workloads.render.scene import (
    CODEC,
    TILE,
    TILE_UNITS,
    Camera,
    Material,
    RenderInput,
    Sphere,
    decode_input,
    encode_input,
)
from workloads.workload import EXACT_PROFILES, Artifact, Kind, Model, Workload, weightless_model

__all__ = ["FABRICATED_TILES", "MODEL", "NAME", "RENDER"]

NAME = "render.trace"
MODEL = "path-tracer"
FABRICATED_TILES = "fabricated-tiles"
_VERSION = 3
_FRAME_MS = 80
_SEGMENT_TILES = 8
"""Of 64 tiles 8 commitments: an executor that is caught loses an eighth of a picture's work at most."""


def model_digest() -> bytes:
    """The digest that stands for this path tracer."""
    return weightless_model(NAME, _VERSION)


def _models() -> tuple[Model, ...]:
    return (Model(MODEL, Path(), model_digest(), UNITS_MAX),)


def _probe() -> bytes:
    return encode_input(
        RenderInput(
            width=TILE,
            height=TILE,
            samples=2,
            depth=2,
            seed=0,
            cameras=(Camera((0, 0, 3_000), (0, 0, 0), 1_000),),
            background=(1_000, 1_000, 1_000),
            materials=(Material((800, 800, 800)),),
            spheres=(Sphere((0, 0, 0), 1_000, 0),),
        )
    )


def _open(
    model_dir: Path, profile: str, variant: str | None, expected_digest: bytes | None, blobs: Blobs
) -> Workload:
    from workloads.render.workload import Renderer

    return Renderer(profile, variant, expected_digest=expected_digest, blobs=blobs)


def picture(input: bytes, units: Sequence[int]) -> Artifact:
    """A finished job's picture, or its frames; tiles that weren't wanted stay black."""
    job = decode_input(input, is_whole=True)
    first, frame_units = job.first_tile * TILE_UNITS, job.frame_tiles * TILE_UNITS
    frames = [
        _frame(job, units[max(0, start - first) : max(0, start + frame_units - first)], max(0, first - start))
        for start in range(0, len(job.cameras) * frame_units, frame_units)
    ]
    size = f"{job.width} x {job.height} pixels, {job.samples} samples each"
    if job.is_light:
        # Imported late: it takes numpy, and the node and its commands start without it.
        from workloads.render.exr import exr

        files = [exr(job.width, job.height, frame) for frame in frames]
        if len(files) == 1:
            return Artifact("image/x-exr", files[0], f"OpenEXR image of {size}")
        return Artifact("application/zip", _zipped(files, "exr"), f"{len(files)} OpenEXR images of {size}")
    pictures = [b"".join(word.to_bytes(4, "little")[:3] for word in frame) for frame in frames]
    if len(pictures) == 1:
        return Artifact("image/png", png(job.width, job.height, pictures[0]), f"PNG image of {size}")
    moving = animation(job.width, job.height, pictures, frame_ms=_FRAME_MS)
    return Artifact("image/apng", moving, f"animated PNG of {len(pictures)} frames of {size}")


def _frame(job: RenderInput, units: Sequence[int], first: int) -> list[int]:
    """A frame's words row by row, from those of its tiles from unit ``first`` on."""
    words = [0] * (job.width * job.height)
    across = job.width // TILE
    for position, word in enumerate(units, start=first):
        tile, inside = divmod(position, TILE_UNITS)
        y, x = tile // across * TILE + inside // TILE, tile % across * TILE + inside % TILE
        words[y * job.width + x] = word
    return words


def _zipped(files: Sequence[bytes], suffix: str) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for number, content in enumerate(files):
            # A date would make two runs of one job differ.
            packed.writestr(zipfile.ZipInfo(f"frame-{number:04}.{suffix}"), content)
    return archive.getvalue()


def _input_blobs(input: bytes) -> tuple[Blob, ...]:
    blob = decode_input(input, is_whole=True).mesh_blob
    return () if blob is None else (blob,)


def _narrowed(whole: RenderInput, first: int, count: int) -> RenderInput:
    return msgspec.structs.replace(whole, first_tile=whole.first_tile + first, tiles=count)


RENDER = Kind(
    name=NAME,
    unit="pixel",
    chunk_units=TILE_UNITS,
    segment_chunks=_SEGMENT_TILES,
    # Nothing is contracted, so both give the same pixels.
    profiles=EXACT_PROFILES,
    variants=(FABRICATED_TILES,),
    models=_models,
    probe=_probe,
    open=_open,
    present=picture,
    input_blobs=_input_blobs,
    split=items_split(CODEC, "tile", lambda job: job.tiles_wanted, _narrowed),
)
