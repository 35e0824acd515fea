"""Jobs over recordings, meshes and maps: from files that a job file names to files that people get."""

from __future__ import annotations

import io
import json
import wave
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from p2p_node.errors import UserError
from p2p_node.executor import ModelPlace
from p2p_node.jobspec import parse_job_spec
from p2p_node.packing import pack_files
from p2p_node.tasks import Prepared, artifact, prepare
from tests.support.tiny_models import model_of
from tests.support.tiny_whisper import FIELDS
from workloads.blobs import MemoryBlobs
from workloads.consistency.input import LATENT_UNITS
from workloads.consistency.input import decode_input as decode_maps
from workloads.registry import KINDS
from workloads.render.mesh import decode_mesh
from workloads.render.scene import decode_input as decode_scene
from workloads.speech.input import PADDING, WINDOW_TOKENS
from workloads.speech.input import decode_input as decode_recording

MODELS = {
    model.name: ModelPlace(model.name, model.path, model.digest, name)
    for name in ("speech.transcribe", "diffusion.terrain")
    for model in (model_of(KINDS[name]),)
}
TIMES = FIELDS["no_timestamps_token_id"] + 1

SPEECH = "workload: speech.transcribe\nmodel: tiny-whisper\naudio: a.wav\n"
TERRAIN = "workload: diffusion.terrain\nmodel: tiny-terrain\nconditions: [2, 5]\n"
RENDER = """\
workload: render.trace
width: 16
height: 16
camera: {position: [0, 1, 4], target: [0, 0, 0]}
materials: [{name: grey, albedo: [0.5, 0.5, 0.5]}, {name: red, albedo: [0.5, 0, 0]}]
meshes:
  - {file: a.obj, material: grey, scale: 2, turn: 90, position: [0, 1, 0]}   # stays
  - {file: a.obj, material: grey}
samples: 2
"""
OBJ = b"v 0 0 0\nv 1 0 0\nv 0 1 0\nusemtl red\nf 1 2 3\nusemtl rust\nf 3 2 1\n"

FAN = b"v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 -1 0\nv 0 0 1\nusemtl red\nf 1 2 3\nf 1 2 4\nf 1 2 5\nf 1 1 2\n"


class Ready:
    """A job file with its files, as a node takes it."""

    def __init__(self, task: str, folder: Path) -> None:
        inside = "".join(f"  {line}\n" for line in task.splitlines())
        document = f"apiVersion: p2p/v1\nkind: Job\nname: n\ntask:\n{inside}".encode()
        self.blobs = MemoryBlobs()
        self.document = pack_files(document, folder / "job.yaml", self.blobs)
        self.spec = parse_job_spec(self.document)
        self.prepared: Prepared = prepare(self.spec.task, MODELS, {}, is_whole=True, blobs=self.blobs)

    def artifact(self, units: list[int]) -> Any:
        task = json.loads(json.dumps(msgspec.to_builtins(self.spec.task)))
        return artifact(task, units, MODELS, self.blobs)


def write_wav(path: Path, count: int) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((np.arange(count) % 500).astype("<i2").tobytes())


def test_a_short_recording_travels_with_its_job(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", 1_600)
    ready = Ready(SPEECH, tmp_path)
    job = decode_recording(ready.prepared.input)
    assert (job.blob, job.ends, len(job.samples)) == (None, (1_600,), 3_200)
    assert ready.prepared.units_max == WINDOW_TOKENS and b"a.wav" not in ready.document


def test_a_long_recording_is_a_blob_in_windows(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", 700_000)
    ready = Ready(SPEECH, tmp_path)
    job = decode_recording(ready.prepared.input)
    assert job.blob is not None and len(ready.blobs.read(job.blob)) == 1_400_000
    assert len(job.ends) == 2 and job.ends[-1] == 700_000


@pytest.mark.parametrize(
    ("format_", "expected"),
    [
        ("json", b'"start_ms": 40'),
        ("srt", b"00:00:00,040 --> 00:00:00,100\nw5 w6\n"),
        ("txt", b"w5 w6\n"),
    ],
)
def test_a_transcript_is_a_file(tmp_path: Path, format_: str, expected: bytes) -> None:
    write_wav(tmp_path / "a.wav", 1_600)
    ready = Ready(f"{SPEECH}format: {format_}\n", tmp_path)
    tokens = [TIMES + 2, 5, 6, TIMES + 5]
    file = ready.artifact(tokens + [PADDING] * (WINDOW_TOKENS - len(tokens)))
    assert expected in file.content
    assert "1 passages of 0 s" in file.description


@pytest.mark.parametrize(
    ("content", "rule"), [(None, "can't read"), (b"ID3", "a.wav: not a WAV file"), (b"", "not a WAV file")]
)
def test_what_is_no_recording(tmp_path: Path, content: bytes | None, rule: str) -> None:
    if content is not None:
        (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(UserError, match=rf"task\.audio: .*{rule}"):
        Ready(SPEECH, tmp_path)


def test_meshes_become_one_and_keep_their_materials(tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_bytes(OBJ)
    ready = Ready(RENDER, tmp_path)
    mesh = decode_mesh(decode_scene(ready.prepared.input).mesh)
    assert mesh.materials.tolist() == [1, 0, 1, 0]
    assert mesh.corners[mesh.faces[0]].tolist() == [[0, 10**6, 0], [0, 10**6, 2 * 10**6], [0, 3 * 10**6, 0]]
    assert mesh.corners[mesh.faces[2]].tolist() == [[0, 0, 0], [10**6, 0, 0], [0, 10**6, 0]]
    assert b"samples: 2" in ready.document and ready.artifact([0] * 256).media_type == "image/png"


def test_a_large_mesh_is_a_blob(tmp_path: Path) -> None:
    faces = b"".join(b"f 1 2 3\n" for _ in range(3_000))
    (tmp_path / "a.obj").write_bytes(OBJ + faces)
    ready = Ready(RENDER, tmp_path)
    blob = decode_scene(ready.prepared.input).mesh_blob
    assert blob is not None and len(decode_mesh(ready.blobs.read(blob)).faces) == 6_004
    assert KINDS["render.trace"].input_blobs(ready.prepared.input) == (blob,)


@pytest.mark.parametrize(
    ("task", "content", "rule"),
    [
        (RENDER.replace("a.obj", "b.obj", 1), OBJ, r"task.meshes\[0\].file: can't read"),
        (RENDER, b"f 1 2 3", r"task.meshes\[0\].file: .*corner 1 must be one of the 0 before"),
        (
            RENDER.replace(", material: grey}", "}"),
            OBJ,
            r"task.meshes\[1\].material: .*faces of 'rust', .* must be one of grey, red",
        ),
        (RENDER.replace("a.obj", "a.fbx"), OBJ, "kind 'fbx' must be one of obj"),
        (RENDER, FAN, r"a.obj: 3 faces meet at the edge from \[0.0, 1.0, 0.0\] .*; manifold: false renders"),
        (RENDER, b"v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3", "none of its 1 faces has an area"),
        (RENDER, OBJ.replace(b"v 1 0 0", b"v nan 0 0"), "lies nowhere"),
    ],
)
def test_what_is_no_mesh(tmp_path: Path, task: str, content: bytes, rule: str) -> None:
    for name in ("a.obj", "a.fbx"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rule):
        Ready(task, tmp_path)


def test_a_mesh_that_is_no_manifold_is_rendered_where_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_bytes(FAN)
    ready = Ready(
        RENDER.replace("grey}", "grey, manifold: false}")
        .replace("stays", "")
        .replace("position: [0, 1, 0]}", "position: [0, 1, 0], manifold: false}"),
        tmp_path,
    )
    assert len(decode_mesh(decode_scene(ready.prepared.input).mesh).faces) == 8


def test_maps_are_pictures_or_metres(tmp_path: Path) -> None:
    ready = Ready(TERRAIN, tmp_path)
    job = decode_maps(ready.prepared.input, is_whole=True)
    assert (job.conditions, job.sigmas_milli) == ((2, 5), (80_000,))
    units = np.linspace(-1, 1, 2 * LATENT_UNITS, dtype=np.float32).view(np.uint32).tolist()
    picture = ready.artifact(units)
    assert picture.description.startswith("PNG image of 512 x 256 pixels: 2 maps")
    metres = Ready(f"{TERRAIN}format: npy\nsigmas: [2, 0.5]\n", tmp_path).artifact(units + units)
    found = np.load(io.BytesIO(metres.content))
    assert found.shape == (2, 128, 128) and found[1].max() == pytest.approx(20.0)


@pytest.mark.parametrize(
    ("task", "rule"),
    [
        (TERRAIN.replace("[2, 5]", "[]"), "must have at least 1"),
        (f"{TERRAIN}sigmas: [1, 2]\n", "sigmas_milli"),
        (TERRAIN.replace("tiny-terrain", "tiny-whisper"), "isn't known here; known: tiny-terrain"),
    ],
)
def test_maps_that_cant_be_drawn(tmp_path: Path, task: str, rule: str) -> None:
    with pytest.raises(UserError, match=rule):
        Ready(task, tmp_path)
