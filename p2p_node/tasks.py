"""From a job file's task to a workload's input, and from output units to what a person wants to see.

Text comes piece by piece, as far as it has been streamed; any other output is a file once the job is done.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import msgspec
import structlog

from p2p_node.errors import UserError
from p2p_node.executor import ModelPlace
from p2p_node.itemspec import ClassifyTask, EmbedTask
from p2p_node.itemtasks import classes_file, embed_input, image_input, vectors_file
from p2p_node.lmtask import text_input
from p2p_node.pluginspec import PluginTask
from p2p_node.speechtasks import TranscribeTask, recording_input, transcript_file
from p2p_node.taskspec import (
    DiffusionTask,
    LmTask,
    MatmulTask,
    OperandSpec,
    ProgramTask,
    RenderTask,
    Task,
    TrainingTask,
)
from p2p_node.terraintasks import TerrainTask, maps_file, terrain_input
from p2p_node.trainingtask import training_input
from protocols.blobs import parse_blob_name
from workloads.blobs import NO_BLOBS, Blobs
from workloads.consistency.input import encode_input as encode_maps
from workloads.diffusion.input import SampleInput
from workloads.diffusion.input import encode_input as encode_sample
from workloads.embedding.input import encode_input as encode_texts
from workloads.errors import WorkloadRefused
from workloads.exported.input import decode_input as decode_program
from workloads.linalg.input import MatmulInput, Matrix
from workloads.linalg.input import encode_input as encode_matmul
from workloads.lm.input import encode_input as encode_prompt
from workloads.lm.tokenizer import TextTokenizer
from workloads.registry import KINDS
from workloads.render import scene
from workloads.speech.input import encode_input as encode_recording
from workloads.training.input import encode_input as encode_training
from workloads.training.kind import run_files
from workloads.vision.input import encode_input as encode_images
from workloads.workload import Artifact

__all__ = ["Prepared", "artifact", "is_text", "prepare", "tokenizers_of", "unit_name"]

log = structlog.get_logger(__name__)

_TASKS: dict[str, type[Task]] = {
    "lm.generate": LmTask,
    "diffusion.sample": DiffusionTask,
    "render.trace": RenderTask,
    "linalg.matmul": MatmulTask,
    "program.run": ProgramTask,
    "training.run": TrainingTask,
    "embed.text": EmbedTask,
    "classify.image": ClassifyTask,
    "speech.transcribe": TranscribeTask,
    "diffusion.terrain": TerrainTask,
}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A task as the protocol carries it.

    Args:
        model: digest of what runs it.
        input: in the workload's own encoding.
        input_units: units that the input has already.
        units_max: output units at most.
        stop_unit: ends an output with fewer; -1 where there is none.
    """

    model: bytes
    input: bytes
    input_units: int
    units_max: int
    stop_unit: int = -1


def prepare(
    task: Task,
    models: Mapping[str, ModelPlace],
    tokenizers: Mapping[str, TextTokenizer],
    *,
    is_whole: bool = False,
    blobs: Blobs = NO_BLOBS,
) -> Prepared:
    """The protocol's side of a task.

    Args:
        task: of a valid job file.
        models: local models by name.
        tokenizers: as `tokenizers_of`.
        is_whole: it is yet to be split, so it may be larger than a job.
        blobs: where what the task names is, and where an input is left that is too large to be carried along.

    Raises:
        UserError: a model nobody here knows, or an input that the workload refuses.
    """
    try:
        match task:
            case LmTask():
                digest = _digest_of(task.model, task.workload, models)
                if task.model not in tokenizers:
                    raise UserError(f"task.model: the tokenizer.json of {task.model!r} can't be used")
                text = text_input(task, models[task.model].path, tokenizers[task.model], is_whole=is_whole)
                # Each prompt has a context of its own, and was held against the model's.
                beyond = max(0, text.positions - text.units_max)
                encoded = encode_prompt(text, is_whole=is_whole)
                return Prepared(digest, encoded, beyond, text.units_max, text.stop_unit)
            case DiffusionTask():
                digest = _digest_of(task.model, task.workload, models)
                sample = SampleInput(task.labels, task.steps, task.seed, task.guidance_milli)
                return Prepared(digest, encode_sample(sample, is_whole=is_whole), 0, sample.units_total)
            case RenderTask():
                picture = _scene(task)
                return Prepared(
                    _weightless(task), scene.encode_input(picture, is_whole=is_whole), 0, picture.units_total
                )
            case MatmulTask():
                product = _product(task)
                return Prepared(
                    _weightless(task), encode_matmul(product, is_whole=is_whole), 0, product.units_total
                )
            case ProgramTask():
                return _program(task)
            case PluginTask():
                return _of_plugin(task)
            case TrainingTask():
                training = training_input(task, models, blobs)
                encoded = encode_training(training, is_whole=is_whole)
                return Prepared(_weightless(task), encoded, 0, training.units_total)
            case TranscribeTask():
                digest = _digest_of(task.model, task.workload, models)
                recording = recording_input(task)
                return Prepared(
                    digest, encode_recording(recording, is_whole=is_whole), 0, recording.units_total
                )
            case TerrainTask():
                digest = _digest_of(task.model, task.workload, models)
                maps = terrain_input(task, models[task.model].path)
                return Prepared(digest, encode_maps(maps, is_whole=is_whole), 0, maps.units_total)
            case EmbedTask():
                digest = _digest_of(task.model, task.workload, models)
                texts = embed_input(task, models[task.model].path, blobs)
                return Prepared(digest, encode_texts(texts, is_whole=is_whole), 0, texts.units_total)
            case ClassifyTask():
                digest = _digest_of(task.model, task.workload, models)
                images = image_input(task, models[task.model].path)
                return Prepared(digest, encode_images(images, is_whole=is_whole), 0, images.units_total)
    except WorkloadRefused as error:
        raise UserError(f"task: {error}") from error


def tokenizers_of(models: Mapping[str, ModelPlace]) -> dict[str, TextTokenizer]:
    """Tokenizers of the models that write text, by name; without those that are broken.

    One model's fault must keep neither a node from starting nor other models' jobs from being asked for.
    """
    found = {}
    for name, place in models.items():
        if not is_text(place.workload):
            continue
        try:
            found[name] = TextTokenizer(place.path)
        except WorkloadRefused as error:
            log.warning("a model's tokenizer can't be used", model=name, why=str(error))
    return found


def unit_name(workload: str) -> str:
    """What one output unit of a workload is called."""
    kind = KINDS.get(workload)
    return kind.unit if kind is not None else "unit"


def is_text(workload: str) -> bool:
    """Whether a workload's output is text."""
    return workload in KINDS and KINDS[workload].present is None


def artifact(
    task: Mapping[str, Any],
    units: Sequence[int],
    models: Mapping[str, ModelPlace],
    blobs: Blobs = NO_BLOBS,
    *,
    input: bytes | None = None,
) -> Artifact | None:
    """The file that a verified job's output is, or None where it is text.

    Args:
        task: of the job's specification, as plain data.
        units: all of the output.
        models: local models by name.
        blobs: where what the task and the units name is.
        input: of the part that the units are of; None for all that the task asks for.

    Raises:
        UserError: the model isn't known here any more, or a blob isn't.
    """
    kind = KINDS[task["workload"]]
    if kind.present is None:
        return None
    typed = msgspec.convert(task, _TASKS.get(kind.name, PluginTask))
    asked = prepare(typed, models, {}, is_whole=True, blobs=blobs).input if input is None else input
    try:
        match typed:
            case TranscribeTask():
                return transcript_file(typed, asked, units, models[typed.model].path)
            case TerrainTask():
                return maps_file(typed, asked, units, models[typed.model].path)
            case EmbedTask():
                return vectors_file(typed, asked, units, blobs)
            case TrainingTask():
                return run_files(asked, units, blobs)
            case ClassifyTask():
                return classes_file(typed, units, models[typed.model].path, blobs)
    except WorkloadRefused as error:
        raise UserError(f"the result can't be put together: {error}") from error
    return kind.present(asked, units)


def _digest_of(name: str, workload: str, models: Mapping[str, ModelPlace]) -> bytes:
    place = models.get(name)
    if place is None or place.workload != workload:
        known = sorted(other for other, place in models.items() if place.workload == workload)
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        if not known:
            raise UserError(
                f"task.model: {name!r} isn't known here, nor another model for {workload}; "
                "'p2p-node model pull NAME' or 'model add PATH' brings one"
            )
        raise UserError(f"task.model: {name!r} isn't known here; known: {', '.join(known)}{hint}")
    return place.digest


def _weightless(task: RenderTask | MatmulTask | ProgramTask | TrainingTask) -> bytes:
    (model,) = KINDS[task.workload].models()
    return model.digest


def _of_plugin(task: PluginTask) -> Prepared:
    kind = KINDS[task.workload]
    (model,) = kind.models()
    if kind.plan is None:
        raise UserError(f"task: {kind.name} can't be asked for by a job file")
    job = kind.plan(task.fields)
    return Prepared(model.digest, job.input, job.input_units, job.units_max)


def _program(task: ProgramTask) -> Prepared:
    if not task.program.packed:
        raise UserError("task.program.file: a node reads no files; `p2p-node job run` packs them")
    job = decode_program(task.program.packed, is_whole=True)
    return Prepared(_weightless(task), task.program.packed, 0, job.units_total)


def _scene(task: RenderTask) -> scene.RenderInput:
    if task.meshes.files:
        raise UserError("task.meshes: files must be packed before a node takes them")
    numbers: dict[str, int] = {}
    for index, material in enumerate(task.materials):
        if material.name in numbers:
            raise UserError(f"task.materials[{index}].name: {material.name!r} must be given only once")
        numbers[material.name] = index

    def number(field: str, name: str) -> int:
        if name not in numbers:
            raise UserError(f"task.{field}.material: {name!r} must be one of {', '.join(numbers)}")
        return numbers[name]

    return scene.RenderInput(
        width=task.width,
        height=task.height,
        samples=task.samples,
        depth=task.depth,
        seed=task.seed,
        cameras=tuple(_camera(task, frame) for frame in range(task.frames)),
        background=task.background,
        is_light=task.format == "exr",
        mesh=task.meshes.packed,
        mesh_blob=parse_blob_name(task.meshes.blob) if task.meshes.blob else None,
        materials=tuple(scene.Material(m.albedo, m.emission, m.mirror) for m in task.materials),
        spheres=tuple(
            scene.Sphere(sphere.centre, sphere.radius, number(f"spheres[{index}]", sphere.material))
            for index, sphere in enumerate(task.spheres)
        ),
        planes=tuple(
            scene.Plane(plane.point, plane.normal, number(f"planes[{index}]", plane.material))
            for index, plane in enumerate(task.planes)
        ),
        triangles=tuple(
            scene.Triangle(shape.a, shape.b, shape.c, number(f"triangles[{index}]", shape.material))
            for index, shape in enumerate(task.triangles)
        ),
    )


def _camera(task: RenderTask, frame: int) -> scene.Camera:
    """The first frame's camera, gone round its target."""
    angle = math.radians(task.orbit_milli / 1_000 * frame / task.frames)
    (x, y, z), (target_x, _, target_z) = task.camera.position, task.camera.target
    right, back = x - target_x, z - target_z
    position = (
        round(target_x + right * math.cos(angle) + back * math.sin(angle)),
        y,
        round(target_z + back * math.cos(angle) - right * math.sin(angle)),
    )
    return scene.Camera(position, task.camera.target, task.camera.focal)


def _product(task: MatmulTask) -> MatmulInput:
    for name, rows, count, width in (
        ("left", task.left, task.rows, task.inner),
        ("right", task.right, task.inner, task.columns),
    ):
        if isinstance(rows, OperandSpec):
            if rows.file:
                raise UserError(f"task.{name}: a file must be packed before a node takes it")
            continue
        if rows and (len(rows) != count or any(len(row) != width for row in rows)):
            raise UserError(f"task.{name}: must have {count} rows of {width} entries")
    return MatmulInput(
        rows=task.rows,
        inner=task.inner,
        columns=task.columns,
        bits=task.bits,
        left=_matrix(task.left, task.left_seed),
        right=_matrix(task.right, task.right_seed),
    )


def _matrix(operand: tuple[tuple[int, ...], ...] | OperandSpec, seed: int) -> Matrix:
    if isinstance(operand, OperandSpec):
        return Matrix(blob=parse_blob_name(operand.blob))
    return Matrix(tuple(chain.from_iterable(operand)), seed)
