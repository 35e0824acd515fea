"""``diffusion.terrain``: what a job file may ask for, and its maps as files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from msgspec import Struct

from p2p_node.yamltree import Field, Reader, choice, identifier, integer, listing, mapping, milli
from protocols import limits
from workloads.consistency.config import SIDE, load_config
from workloads.consistency.input import LATENT_UNITS, SIGMA_MILLI_MAX, STEPS_MAX, TerrainInput, decode_input
from workloads.consistency.relief import heights, relief
from workloads.png import png
from workloads.workload import Artifact

__all__ = ["TERRAIN_FIELDS", "TerrainTask", "maps_file", "terrain_input"]

MAPS_MAX = limits.WHOLE_UNITS_MAX // LATENT_UNITS
_ACROSS_MAX = 8
_ENLARGED = 2


class TerrainTask(Struct, frozen=True, kw_only=True):
    """Height maps out of noise."""

    workload: str
    model: str
    conditions: tuple[int, ...]
    """Of each map; what they mean is the model's, difficulty for instance."""
    sigmas_milli: tuple[int, ...] = ()
    """Noise that each step begins with, in thousandths; empty for one step from the model's largest."""
    seed: int = 0
    format: str = "png"


TERRAIN_FIELDS: Reader[TerrainTask] = mapping(
    TerrainTask,
    {
        "workload": Field("workload", choice("diffusion.terrain"), required=True),
        "model": Field("model", identifier(bytes_max=limits.NAME_BYTES_MAX), required=True),
        "conditions": Field(
            "conditions", listing(integer(1, 10_000), length_min=1, length_max=MAPS_MAX), required=True
        ),
        "sigmas": Field(
            "sigmas_milli", listing(milli(0, SIGMA_MILLI_MAX // 1_000), length_min=1, length_max=STEPS_MAX)
        ),
        "seed": Field("seed", integer(0, limits.INTEGER_MAX)),
        "format": Field("format", choice("png", "npy")),
    },
)
"""Reads the task."""


def terrain_input(task: TerrainTask, model_dir: Path) -> TerrainInput:
    """The maps that a task asks for.

    Raises:
        ModelRefused: the model's configuration can't be read.
    """
    sigmas = task.sigmas_milli or (load_config(model_dir).sigma_max_milli,)
    return TerrainInput(task.conditions, sigmas, task.seed)


def maps_file(task: TerrainTask, input: bytes, units: Sequence[int], model_dir: Path) -> Artifact:
    """A finished job's maps after their last step: as shaded reliefs side by side, or in metres for NumPy.

    Raises:
        ModelRefused: the model's configuration can't be read.
    """
    job = decode_input(input, is_whole=True)
    words = np.array(units, dtype=np.uint32).view(np.float32)
    values = words.reshape(len(job.conditions), len(job.sigmas_milli), SIDE, SIDE)[:, -1]
    metres = [heights(load_config(model_dir), each) for each in values]
    what = f"{len(metres)} maps of {SIDE} x {SIDE} points"
    if task.format == "npy":
        file = io.BytesIO()
        np.save(file, np.stack(metres).astype("<f4"))
        return Artifact("application/octet-stream", file.getvalue(), f"NumPy file of {what}, in metres")
    across = min(len(metres), _ACROSS_MAX)
    sheet = np.zeros((-(-len(metres) // across) * SIDE, across * SIDE, 3), np.uint8)
    for place, each in enumerate(metres):
        y, x = place // across * SIDE, place % across * SIDE
        sheet[y : y + SIDE, x : x + SIDE] = np.frombuffer(relief(each), np.uint8).reshape(SIDE, SIDE, 3)
    large = sheet.repeat(_ENLARGED, axis=0).repeat(_ENLARGED, axis=1)
    height, width, _ = large.shape
    return Artifact(
        "image/png", png(width, height, large.tobytes()), f"PNG image of {width} x {height} pixels: {what}"
    )
