"""Job files of every kind of work: what becomes of them, and how their faults are told."""

from __future__ import annotations

import base64
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from p2p_node.api.views import described_spec
from p2p_node.cli.job_run import read_job
from p2p_node.errors import UserError
from p2p_node.executor import ModelPlace, builtin_places
from p2p_node.jobrequest import build_request
from p2p_node.jobspec import JobSpec, JobSpecError, parse_job_spec
from p2p_node.tasks import artifact, is_text, prepare, tokenizers_of, unit_name
from tests.support.tiny_models import model_of, tiny_bert, tiny_vision
from workloads.blobs import MemoryBlobs
from workloads.linalg.input import decode_input as decode_product
from workloads.registry import KINDS
from workloads.render.scene import decode_input as decode_scene
from workloads.training.input import decode_input as decode_training

ROOT = Path(__file__).parents[2]
EXAMPLES = {
    "verse": "lm.generate",
    "verses": "lm.generate",
    "digits": "diffusion.sample",
    "render": "render.trace",
    "matmul": "linalg.matmul",
    "program": "program.run",
    "train": "training.run",
    "embed": "embed.text",
    "classify": "classify.image",
    "transcribe": "speech.transcribe",
    "terrain": "diffusion.terrain",
    "knot": "render.trace",
    "poster": "render.trace",
    "train-kjv": "training.run",
    "train-lora": "training.run",
    "train-lora-peers": "training.run",
    "train-peers": "training.run",
}


def _tiny(workload: str) -> Path:
    return model_of(KINDS[workload]).path


FETCHED = {
    "all-minilm-l6-v2": ("embed.text", tiny_bert()),
    "efficientnet-lite0": ("classify.image", tiny_vision(224)),
    "whisper-tiny.en": ("speech.transcribe", _tiny("speech.transcribe")),
    "terrain": ("diffusion.terrain", _tiny("diffusion.terrain")),
}
"""Models that the examples take and the package doesn't bring, and small ones in their stead."""
MODELS = builtin_places() | {
    name: ModelPlace(name, path, bytes(32), workload) for name, (workload, path) in FETCHED.items()
}
BLOBS = MemoryBlobs()
TOKENIZERS = tokenizers_of(MODELS)

RENDER = """\
workload: render.trace
camera: {position: [0, 1.5, 4], target: [0, 0, 0]}
materials: [{name: grey, albedo: [0.5, 0.5, 0.5]}, {name: lamp, albedo: [0, 0, 0], emission: [4, 4, 4.5], mirror: true}]
spheres: [{centre: [0, 0, -0.25], radius: 1, material: lamp}]
planes: [{point: [0, -1, 0], normal: [0, 1, 0], material: grey}]
"""  # noqa: E501
MATMUL = """\
workload: linalg.matmul
rows: 2
inner: 2
columns: 1
bits: 4
left: [[1, -2], [3, 4]]
right: [[5], [6]]
"""
TRAIN = """\
workload: training.run
classifier: {widths: [2, 2]}
learning_rate: 0.000125
data: AAEBAgMA
"""


def document(task: str) -> bytes:
    inside = "".join(f"  {line}\n" for line in task.splitlines())
    return f"apiVersion: p2p/v1\nkind: Job\nname: n\ntask:\n{inside}".encode()


def prepared(task: str) -> Any:
    return prepare(parse_job_spec(document(task)).task, MODELS, TOKENIZERS)


@cache
def example(name: str) -> JobSpec:
    """An example as a node gets it: with the content of the files that it names."""
    return parse_job_spec(read_job(ROOT / "examples" / f"{name}.yaml", BLOBS))


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_becomes_a_request_of_its_kind(name: str) -> None:
    spec = example(name)
    request = build_request(spec, MODELS, TOKENIZERS, BLOBS)
    kind = KINDS[EXAMPLES[name]]
    model = {model.digest: model for model in kind.models()}.get(request.model)
    assert request.workload == kind.name
    assert model is not None or kind.name in {workload for workload, _ in FETCHED.values()}
    # Turns of a shared run are committed to segment by segment.
    segment_chunks = 1 if name in {"train-peers", "train-lora-peers"} else kind.segment_chunks
    assert (request.chunk_units, request.segment_chunks) == (kind.chunk_units, segment_chunks)
    fits = model is None or request.input_units + request.units_max <= model.context_units_max
    assert fits or spec.parts is not None
    assert is_text(kind.name) == (name in {"verse", "verses"})


def test_there_is_an_example_of_every_kind() -> None:
    assert set(EXAMPLES.values()) == set(KINDS)
    assert {path.stem for path in (ROOT / "examples").glob("*.yaml")} == set(EXAMPLES)


@pytest.mark.parametrize("name", ["digits", "render", "matmul", "program", "train"])
def test_a_finished_job_is_a_file_even_after_a_restart(name: str) -> None:
    import json

    spec = example(name)
    units = [0] * build_request(spec, MODELS, TOKENIZERS, BLOBS).units_max
    # As it is kept: plain JSON.
    task = json.loads(json.dumps(described_spec(spec)))["task"]
    file = artifact(task, units, MODELS)
    assert file is not None
    starts = {"image/png": (b"\x89PNG",), "application/octet-stream": (b"\x93NUMPY", b"PK")}
    assert file.content.startswith(starts[file.media_type])
    assert file.description.startswith(("PNG image of", "NumPy file of", "npz file of"))


def test_units_have_names() -> None:
    named = [unit_name(name) for name in EXAMPLES.values()]
    assert named[:9] == ["token", "token", "word", "pixel", "entry", "word", "word", "word", "word"]
    assert named[9:] == ["token", "point", "pixel", "pixel", "word", "word", "word", "word"]
    assert unit_name("lm.dream") == "unit"
    assert not is_text("lm.dream")


def test_a_scene_arrives_in_thousandths_and_its_materials_by_number() -> None:
    scene = decode_scene(prepared(RENDER).input)
    assert scene.cameras[0].position == (0, 1_500, 4_000)
    assert scene.cameras[0].focal == 1_000
    assert [material.emission for material in scene.materials] == [(0, 0, 0), (4_000, 4_000, 4_500)]
    assert [material.mirror for material in scene.materials] == [False, True]
    assert (scene.spheres[0].centre, scene.spheres[0].material) == ((0, 0, -250), 1)
    assert scene.planes[0].material == 0


def test_frames_go_round_the_target() -> None:
    scene = decode_scene(prepared(RENDER + "frames: 4\norbit: 180\nformat: exr\n").input)
    assert [camera.position for camera in scene.cameras] == [
        (0, 1_500, 4_000),
        (2_828, 1_500, 2_828),
        (4_000, 1_500, 0),
        (2_828, 1_500, -2_828),
    ]
    assert scene.is_light


def test_matrices_arrive_row_by_row() -> None:
    product = decode_product(prepared(MATMUL).input)
    assert (product.left.entries, product.right.entries) == ((1, -2, 3, 4), (5, 6))
    assert prepared(MATMUL).units_max == 2


def test_training_data_arrive_as_bytes() -> None:
    training = decode_training(prepared(TRAIN).input)
    assert training.data == base64.b64decode("AAEBAgMA")
    assert training.learning_rate_micro == 125


@pytest.mark.parametrize(
    ("task", "old", "new", "fault"),
    [
        (
            RENDER,
            "material: lamp",
            "material: lump",
            "task.spheres[0].material: 'lump' must be one of grey, lamp",
        ),
        (RENDER, "name: lamp", "name: grey", "task.materials[1].name: 'grey' must be given only once"),
        (RENDER, "[0, 1, 0]", "[0, 0, 0]", "task: planes[0].normal must not be 0"),
        (MATMUL, "columns: 1", "columns: 3", "task.right: must have 2 rows of 3 entries"),
        (MATMUL, "[3, 4]", "[3]", "task.left: must have 2 rows of 2 entries"),
        (MATMUL, "bits: 4", "bits: 1", "task: left has an entry of magnitude 2**1 or more"),
        (
            TRAIN,
            "data: AAEBAgMA",
            "data: AAEC\ntext: x",
            "exactly one of text, text_file and data must be given",
        ),
        (TRAIN, "data: AAEBAgMA", "seed: 1", "task: exactly one of text, text_file and data must be given"),
        (TRAIN, "data: AAEBAgMA", "data: AAE=", "task: data of 2 bytes hold no example"),
        (TRAIN, "{widths: [2, 2]}", "{widths: [2, 1]}", "task: classes=1 must be in [2, 256]"),
        (
            "workload: diffusion.sample\nmodel: digits-8x8\nlabels: [1]\n",
            "digits-8x8",
            "kjv-2m",
            "task.model: 'kjv-2m' isn't known here; known: digits-8x8",
        ),
        (
            "workload: lm.generate\nmodel: kjv-2m\nprompt: In\n",
            "kjv-2m",
            "digits-8x8",
            "task.model: 'digits-8x8' isn't known here; known: kjv-2m",
        ),
    ],
)
def test_what_the_workload_refuses_is_the_users_fault(task: str, old: str, new: str, fault: str) -> None:
    assert old in task
    with pytest.raises(UserError, match=re.escape(fault)):
        prepared(task.replace(old, new, 1))


@pytest.mark.parametrize(
    ("task", "old", "new", "line", "field", "rule"),
    [
        (RENDER, "[0, 1.5, 4]", "[0, 1.5]", 6, "task.camera.position", "must have at least 3 elements"),
        (RENDER, "[0, 1.5, 4]", "[0, 1.5, 4, 0]", 6, "task.camera.position", "must have at most 3 elements"),
        (RENDER, "[0, 1.5, 4]", "[0, 1.5, x]", 6, "task.camera.position[2]", "must be a number from -1000"),
        (RENDER, "mirror: true", "mirror: yes", 7, "task.materials[1].mirror", "must be one of false, true"),
        (
            RENDER,
            "albedo: [0.5,",
            "albedo: [1.5,",
            7,
            "task.materials[0].albedo[0]",
            "must be a number from 0",
        ),
        (RENDER, "radius: 1, ", "", 8, "task.spheres[0].radius", "is required"),
        (MATMUL, "[[1, -2]", "[[1, -2.5]", 10, "task.left[0][1]", "must be an integer from -1023 to 1023"),
        (MATMUL, "[[1, -2], [3, 4]]", "[]", 10, "task.left", "must have at least 1 elements"),
        (TRAIN, "AAEBAgMA", "AA*C", 8, "task.data", "must be base64"),
        (TRAIN, "AAEBAgMA", "[AAEC]", 8, "task.data", "must be base64"),
        (TRAIN, "AAEBAgMA", '""', 8, "task.data", "must have 1 to 49152 bytes"),
        (
            TRAIN,
            "0.000125",
            "0.0000001",
            7,
            "task.learning_rate",
            "must be a number from 0 to 1 with at most 6",
        ),
        (TRAIN, "training.run", "render.trace", 6, "task.classifier", "is not a field"),
        (TRAIN, "workload: training.run\n", "", 5, "task.workload", "is required"),
        (TRAIN, "training.run", "[training.run]", 5, "task.workload", "must be one of lm.generate, "),
    ],
)
def test_faults_name_line_field_and_rule(
    task: str, old: str, new: str, line: int, field: str, rule: str
) -> None:
    assert old in task
    with pytest.raises(JobSpecError) as caught:
        parse_job_spec(document(task.replace(old, new, 1)))
    assert (caught.value.line, caught.value.field) == (line, field)
    assert caught.value.rule.startswith(rule)
