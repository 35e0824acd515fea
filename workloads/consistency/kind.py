"""``diffusion.terrain`` among the kinds of work; readable without torch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from protocols.limits import UNITS_MAX
from workloads.blobs import Blobs
from workloads.consistency.config import MODEL_TYPE, SIDE, SMALL_FILES, load_config
from workloads.consistency.input import LATENT_UNITS, TerrainInput, decode_input, encode_input
from workloads.errors import InputRefused
from workloads.lm.manifest import load_manifest
from workloads.modelconfig import has_model_type
from workloads.split import Part, Split
from workloads.workload import EXACT_PROFILES, Artifact, Kind, Model, Workload

__all__ = ["NAME", "STALE_STEPS", "TERRAIN"]

NAME = "diffusion.terrain"
STALE_STEPS = "stale-steps"
_PROBE_SIGMA_MILLI = 1_000


def _models() -> tuple[Model, ...]:
    return ()


def _read_model(model_dir: Path) -> Model | None:
    if not has_model_type(model_dir, MODEL_TYPE):
        return None
    load_config(model_dir)
    return Model(model_dir.name, model_dir, load_manifest(model_dir, SMALL_FILES).digest, UNITS_MAX)


def _probe() -> bytes:
    return encode_input(TerrainInput((1,), (_PROBE_SIGMA_MILLI,), 0))


def _open(
    model_dir: Path, profile: str, variant: str | None, expected_digest: bytes | None, blobs: Blobs
) -> Workload:
    from workloads.consistency.workload import TerrainSampler

    return TerrainSampler(model_dir, profile, variant, expected_digest=expected_digest)


def _present(input: bytes, units: Sequence[int]) -> Artifact:
    """Each map after each step; whoever has the model knows how high that is."""
    job = decode_input(input, is_whole=True)
    # Imported late: the node and its commands start without it.
    import numpy as np

    values = np.array(units, dtype="<u4").view("<f4").reshape(-1, len(job.sigmas_milli), SIDE, SIDE)
    file = io.BytesIO()
    np.save(file, values)
    return Artifact(
        "application/octet-stream", file.getvalue(), f"NumPy file of {len(values)} maps after each step"
    )


def _maps(input: bytes) -> int:
    return len(decode_input(input, is_whole=True).conditions)


def _part(input: bytes, first: int, count: int) -> Part:
    whole = decode_input(input, is_whole=True)
    if not 0 <= first < first + count <= len(whole.conditions):
        raise InputRefused(f"maps {first} to {first + count} must lie in [0, {len(whole.conditions)}]")
    conditions = whole.conditions[first : first + count]
    job = replace(whole, conditions=conditions, first_map=whole.first_map + first)
    return Part(encode_input(job), 0, job.units_total)


TERRAIN = Kind(
    name=NAME,
    unit="point",
    chunk_units=LATENT_UNITS,
    segment_chunks=1,
    profiles=EXACT_PROFILES,
    variants=(STALE_STEPS,),
    models=_models,
    probe=_probe,
    open=_open,
    read_model=_read_model,
    present=_present,
    split=Split("map", _maps, _part),
)
