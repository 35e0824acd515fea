"""``diffusion.terrain`` among the kinds of work; readable without torch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from workloads.blobs import Blobs
from workloads.consistency.config import MODEL_TYPE, SIDE, SMALL_FILES, load_config
from workloads.consistency.input import CODEC, LATENT_UNITS, TerrainInput, decode_input, encode_input
from workloads.inputs import items_split
from workloads.modelfiles import model_reader
from workloads.workload import ALL_PROFILES, Artifact, Kind, Workload

__all__ = ["NAME", "STALE_STEPS", "TERRAIN"]

NAME = "diffusion.terrain"
STALE_STEPS = "stale-steps"
_PROBE_SIGMA_MILLI = 1_000


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


def _narrowed(whole: TerrainInput, first: int, count: int) -> TerrainInput:
    conditions = whole.conditions[first : first + count]
    return replace(whole, conditions=conditions, first_map=whole.first_map + first)


TERRAIN = Kind(
    name=NAME,
    unit="point",
    chunk_units=LATENT_UNITS,
    segment_chunks=1,
    profiles=ALL_PROFILES,
    variants=(STALE_STEPS,),
    models=tuple,
    probe=_probe,
    open=_open,
    read_model=model_reader(MODEL_TYPE, load_config, SMALL_FILES),
    present=_present,
    split=items_split(CODEC, "map", lambda job: len(job.conditions), _narrowed),
)
