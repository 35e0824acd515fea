"""A consistency model of small convolutions, for tests."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from tests.support.tiny_models import randoms
from workloads.program.builder import Builder
from workloads.program.program import JOB, PARAMETER, Program, ValueSpec, encode_program

__all__ = ["FIELDS", "tiny_terrain", "tiny_terrain_program"]

FIELDS = {
    "model_type": "consistency-program",
    "side": 128,
    "sigma_max_milli": 80_000,
    "conditions": 5,
    "height_max_mm": 20_000,
    "height_scale_mm": 100,
}
SHAPES = {"kernel": (1, 1, 3, 3), "bias": (1,)}


def tiny_terrain_program(convolutions: int = 1) -> Program:
    builder = Builder()
    kernel, bias = (
        builder.input(name, ValueSpec("float32", shape), PARAMETER) for name, shape in SHAPES.items()
    )
    noisy = builder.input("noisy", ValueSpec("float32", (1, 1, 128, 128)), JOB)
    sigma = builder.input("sigma", ValueSpec("float32", (1,)), JOB)
    condition = builder.input("condition", ValueSpec("float32", (1,)), JOB)
    smooth = noisy
    for _ in range(convolutions):
        smooth = builder.apply(
            "conv",
            smooth,
            kernel,
            bias,
            stride=(1, 1),
            padding=(1, 1),
            dilation=(1, 1),
            groups=1,
            precision="exact21",
        )
    loud = builder.apply("shift", builder.apply("multiply", sigma, sigma), term=0.25)
    scaled = builder.apply("divide", smooth, builder.apply("sqrt", loud))
    raised = builder.apply("add", scaled, builder.apply("cast", condition, dtype="float64"))
    end = builder.apply("tanh", raised)
    builder.apply("digest", end, header=b"")
    return builder.build()


def tiny_terrain(folder: Path, convolutions: int = 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(FIELDS))
    (folder / "program.bin").write_bytes(encode_program(tiny_terrain_program(convolutions)))
    save_file(randoms(SHAPES, seed=3), folder / "model.safetensors")
    return folder
