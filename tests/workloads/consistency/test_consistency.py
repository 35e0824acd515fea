"""diffusion.terrain: steps that can be done alone, what a model must be, and the map that people see."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file

from protocols.units import FALSE_UNITS
from tests.support.tiny_terrain import FIELDS, tiny_terrain, tiny_terrain_program
from workloads.consistency.config import parse_config
from workloads.consistency.input import LATENT_UNITS, TerrainInput, decode_input, encode_input
from workloads.consistency.kind import TERRAIN
from workloads.consistency.relief import heights, relief
from workloads.consistency.workload import TerrainSampler
from workloads.errors import InputRefused, ModelRefused
from workloads.normals import normals
from workloads.program.program import Program, ValueSpec, encode_program

JOB = TerrainInput((2, 5), (80_000, 5_000), 11)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_terrain(tmp_path_factory.mktemp("models") / "hills")


def sample(
    model_dir: Path, job: TerrainInput, variant: str | None = None
) -> tuple[list[int], dict[int, bytes]]:
    units: list[int] = []
    digests: dict[int, bytes] = {}
    TerrainSampler(model_dir, "exact14", variant).generate(
        encode_input(job), (), lambda _, new: units.extend(new), digests.__setitem__, lambda: False
    )
    return units, digests


def test_steps_are_confirmed_one_by_one_and_in_parts(model_dir: Path) -> None:
    units, digests = sample(model_dir, JOB)
    sampler = TerrainSampler(model_dir, "exact14")
    assert len(units) == JOB.units_total == 4 * LATENT_UNITS
    for chunk in (3, 0, 2, 1):
        assert sampler.recompute(encode_input(JOB), units, (chunk,)) == {chunk: digests[chunk]}
    assert TERRAIN.split is not None
    part = TERRAIN.split.part(encode_input(JOB), 1, 1)
    assert sample(model_dir, decode_input(part.input))[0] == units[2 * LATENT_UNITS :]
    maps = np.array(units, dtype=np.uint32).view(np.float32).reshape(4, -1)
    assert np.all(np.abs(maps) <= 1) and maps[1].std() > 0.01 and not np.array_equal(maps[1], maps[3])


def test_a_step_is_what_the_program_says(model_dir: Path) -> None:
    units, _ = sample(model_dir, TerrainInput((3,), (2_000, 500), 4))
    before = np.array(units[:LATENT_UNITS], dtype=np.uint32).view(np.float32).astype(np.float64)
    noisy = torch.from_numpy(before) + normals(4, LATENT_UNITS, (0, 1)) * 0.5

    tensors = load_file(model_dir / "model.safetensors")
    smooth = torch.nn.functional.conv2d(
        noisy.float().view(1, 1, 128, 128).double(),
        tensors["kernel"].double(),
        tensors["bias"].double(),
        padding=1,
    )
    expected = torch.tanh(smooth / (0.25 + 0.25) ** 0.5 + 0.5).flatten()
    found = torch.from_numpy(np.array(units[LATENT_UNITS:], dtype=np.uint32).view(np.float32))
    assert found.double().sub(expected).abs().max() < 1e-3


def test_who_hands_a_map_on_is_caught(model_dir: Path) -> None:
    units, digests = sample(model_dir, JOB, "stale-steps")
    recomputed = TerrainSampler(model_dir, "exact14").recompute(encode_input(JOB), units, (0, 1))
    assert recomputed == {0: digests[0], 1: FALSE_UNITS}


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"conditions": ()}, "maps x steps"),
        ({"conditions": (0,)}, r"conditions\[0\]=0"),
        ({"conditions": (6,)}, r"conditions\[0\]=6 must be at most 5"),
        ({"sigmas_milli": ()}, "0 sigmas"),
        ({"sigmas_milli": (5_000, 5_000)}, r"sigmas_milli\[1\]=5000"),
        ({"sigmas_milli": (0,)}, r"sigmas_milli\[0\]=0"),
        ({"conditions": (1,) * 5}, "must be 1 to 65536"),
        ({"seed": -1}, "seed=-1"),
        ({"first_map": -1}, "first_map=-1"),
    ],
)
def test_inputs_that_break_a_rule(model_dir: Path, changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(InputRefused, match=rule):
        TerrainSampler(model_dir, "exact14").decode(encode_input(replace(JOB, **changes)))


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"model_type": "llama"}, "model_type='llama'"),
        ({"side": 64}, "side=64"),
        ({"conditions": 0}, "conditions=0"),
        ({"height_scale_mm": "tall"}, "height_scale_mm='tall'"),
    ],
)
def test_configurations_that_break_a_rule(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(ModelRefused, match=rule):
        parse_config(FIELDS | changes)


def test_a_program_of_other_ends_is_no_model(tmp_path: Path) -> None:
    folder = tiny_terrain(tmp_path)
    program = tiny_terrain_program()
    wider = tuple(
        dataclasses.replace(item, spec=ValueSpec("float64", item.spec.shape))
        if item.name == "sigma"
        else item
        for item in program.inputs
    )
    (folder / "program.bin").write_bytes(encode_program(Program(wider, program.steps)))
    with pytest.raises(ModelRefused, match="must take a map"):
        TerrainSampler(folder, "exact14")


def test_a_kind_knows_its_models(model_dir: Path, tmp_path: Path) -> None:
    model = TERRAIN.read_model(model_dir)
    assert model is not None and model.name == "hills"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert TERRAIN.read_model(tmp_path) is None


def test_heights_and_their_picture() -> None:
    config = parse_config(FIELDS)
    metres = heights(config, np.array([-2.0, np.nan, -1.0, 0.0, 1.0, 9.0], np.float32))
    assert metres[:3].tolist() == [0, 0, 0] and 0 < metres[3] < 2 and np.allclose(metres[4:], 20)
    hill = np.add.outer(-((np.arange(16) - 8.0) ** 2), -((np.arange(16) - 8.0) ** 2)) / 20
    picture = np.frombuffer(relief(hill), np.uint8).reshape(16, 16, 3).astype(int)
    assert picture[4, 4].sum() > picture[12, 12].sum() + 100
    assert len(relief(np.zeros((4, 4)))) == 48
