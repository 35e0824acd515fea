"""``render.trace`` among the kinds of work; readable without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from protocols.limits import UNITS_MAX
from workloads.blobs import Blobs
from workloads.errors import InputRefused
from workloads.png import png
from workloads.render.scene import (
    TILE,
    TILE_UNITS,
    Camera,
    Material,
    RenderInput,
    Sphere,
    decode_input,
    encode_input,
)
from workloads.split import Part, Split
from workloads.workload import EXACT_PROFILES, Artifact, Kind, Model, Workload, weightless_model

__all__ = ["FABRICATED_TILES", "MODEL", "NAME", "RENDER"]

NAME = "render.trace"
MODEL = "path-tracer"
FABRICATED_TILES = "fabricated-tiles"
_VERSION = 2
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
            camera=Camera((0, 0, 3_000), (0, 0, 0), 1_000),
            background=(1_000, 1_000, 1_000),
            materials=(Material((800, 800, 800)),),
            spheres=(Sphere((0, 0, 0), 1_000, 0),),
        )
    )


def _open(
    model_dir: Path, profile: str, variant: str | None, expected_digest: bytes | None, blobs: Blobs
) -> Workload:
    from workloads.render.workload import Renderer

    return Renderer(profile, variant, expected_digest=expected_digest)


def picture(input: bytes, units: Sequence[int]) -> Artifact:
    """A finished job's picture; tiles that weren't wanted stay black."""
    job = decode_input(input, is_whole=True)
    rows = [bytearray(3 * job.width) for _ in range(job.height)]
    across = job.width // TILE
    for position, word in enumerate(units):
        tile, inside = divmod(job.first_tile * TILE_UNITS + position, TILE_UNITS)
        y, x = tile // across * TILE + inside // TILE, tile % across * TILE + inside % TILE
        rows[y][3 * x : 3 * x + 3] = word.to_bytes(4, "little")[:3]
    return Artifact(
        "image/png",
        png(job.width, job.height, b"".join(rows)),
        f"PNG image of {job.width} x {job.height} pixels, {job.samples} samples each",
    )


def _tiles(input: bytes) -> int:
    return decode_input(input, is_whole=True).tiles_wanted


def _part(input: bytes, first: int, count: int) -> Part:
    whole = decode_input(input, is_whole=True)
    if not 0 <= first < first + count <= whole.tiles_wanted:
        raise InputRefused(f"tiles {first} to {first + count} must lie in [0, {whole.tiles_wanted}]")
    job = msgspec.structs.replace(whole, first_tile=whole.first_tile + first, tiles=count)
    return Part(encode_input(job), 0, job.units_total)


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
    split=Split("tile", _tiles, _part),
)
