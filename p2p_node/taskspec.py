"""What a job file's ``task`` may ask for, workload by workload.

Each workload has fields of its own; ``workload`` says which. Numbers with decimals become thousandths, since
floats never enter a job. `docs/jobspec.md` tells the same to those who write job files.
"""

from __future__ import annotations

import yaml
from msgspec import Struct

from p2p_node.itemspec import (
    CLASSIFY_FIELDS,
    EMBED_FIELDS,
    PACKED_BYTES_MAX,
    PATH_BYTES_MAX,
    ClassifyTask,
    EmbedTask,
    blob_field,
)
from p2p_node.pluginspec import PluginTask, plugin_fields
from p2p_node.programspec import PROGRAM_FIELDS, ProgramTask
from p2p_node.speechtasks import TRANSCRIBE_FIELDS, TranscribeTask
from p2p_node.terraintasks import TERRAIN_FIELDS, TerrainTask
from p2p_node.yamltree import (
    Fault,
    Field,
    Reader,
    boolean,
    choice,
    encoded_bytes,
    identifier,
    integer,
    listing,
    mapping,
    micro,
    milli,
    one_of,
    text,
)
from protocols import limits
from workloads.diffusion import input as diffusion
from workloads.linalg import input as linalg
from workloads.lm import input as lm
from workloads.registry import PLUGINS
from workloads.render import scene

__all__ = [
    "TASK",
    "CameraSpec",
    "ClassifierSpec",
    "DiffusionTask",
    "LlamaSpec",
    "LmTask",
    "MaterialSpec",
    "MatmulTask",
    "OperandSpec",
    "PlaneSpec",
    "ProgramTask",
    "RenderTask",
    "SphereSpec",
    "Task",
    "TrainingTask",
    "TriangleSpec",
]

PROMPT_BYTES_MAX = 32 * 1024
TEMPERATURE_MAX = 10
TOP_K_MAX = 65_536
DATA_BYTES_MAX = 48 * 1024

Vector = tuple[int, int, int]
"""Thousandths."""


class LmTask(Struct, frozen=True, kw_only=True):
    """Texts that continue prompts, re-derivable from ``seed``; exactly one of the first three is given."""

    workload: str
    model: str
    prompt: str = ""
    prompts: tuple[str, ...] = ()
    prompts_file: str = ""
    """Its lines are prompts; read by the command line, beside the job file."""
    max_tokens: int = 64
    seed: int = 0
    temperature_milli: int = 1_000
    """0 takes the likeliest token every time."""
    top_k: int = 0
    """Draw among this many likeliest tokens; 0 is all."""
    top_p_milli: int = 1_000
    """Draw among the fewest likeliest tokens that have this share together."""
    repetition_penalty_milli: int = 1_000
    stop: tuple[str, ...] = ()
    """Texts that end a prompt's output, and aren't shown."""
    eos: bool = True
    """Whether tokens by which the model says that it has finished end a prompt's output."""
    logprobs: int | None = None
    """How many likeliest tokens to name with their log-probabilities, beside each token's own."""


class DiffusionTask(Struct, frozen=True, kw_only=True):
    """Pictures of the classes in ``labels``, drawn out of noise."""

    workload: str
    model: str
    labels: tuple[int, ...]
    steps: int = 16
    seed: int = 0
    guidance_milli: int = 2_000


class MaterialSpec(Struct, frozen=True, kw_only=True):
    """A surface, called by its name."""

    name: str
    albedo: Vector
    emission: Vector = (0, 0, 0)
    mirror: bool = False


class SphereSpec(Struct, frozen=True, kw_only=True):
    """A sphere of a named material."""

    centre: Vector
    radius: int
    material: str


class PlaneSpec(Struct, frozen=True, kw_only=True):
    """A plane of a named material."""

    point: Vector
    normal: Vector
    material: str


class TriangleSpec(Struct, frozen=True, kw_only=True):
    """A triangle of a named material."""

    a: Vector
    b: Vector
    c: Vector
    material: str


class MeshSpec(Struct, frozen=True, kw_only=True):
    """Triangles in a file, and where they go."""

    file: str
    material: str = ""
    """Of faces whose own the job doesn't have."""
    scale_milli: int = 1_000
    turn_milli: int = 0
    """About the upward axis, in thousandths of a degree."""
    position: Vector = (0, 0, 0)
    manifold: bool = True
    """Whether to refuse it where more than two faces meet at an edge."""


class MeshesSpec(Struct, frozen=True, kw_only=True):
    """Meshes: in files, or all of them as they were packed for a node."""

    files: tuple[MeshSpec, ...] = ()
    packed: bytes = b""
    """As `workloads.render.mesh` writes it."""
    blob: str = ""
    """The same, by `protocols.blobs.blob_name`."""


class CameraSpec(Struct, frozen=True, kw_only=True):
    """The point of view."""

    position: Vector
    target: Vector
    focal: int = 1_000


class RenderTask(Struct, frozen=True, kw_only=True):
    """A picture of a scene that the file holds."""

    workload: str
    camera: CameraSpec
    materials: tuple[MaterialSpec, ...]
    spheres: tuple[SphereSpec, ...] = ()
    planes: tuple[PlaneSpec, ...] = ()
    triangles: tuple[TriangleSpec, ...] = ()
    meshes: MeshesSpec = MeshesSpec()
    width: int = 64
    height: int = 64
    samples: int = 16
    depth: int = 4
    seed: int = 0
    background: Vector = (0, 0, 0)
    frames: int = 1
    orbit_milli: int = 360_000
    """By how much the camera goes round its target from the first frame to the one after the last, in
    thousandths of a degree."""
    format: str = "png"


class OperandSpec(Struct, frozen=True, kw_only=True):
    """A matrix in a file, which becomes a blob on its way to a node."""

    file: str = ""
    blob: str = ""


class MatmulTask(Struct, frozen=True, kw_only=True):
    """The product of two integer matrices, each given by its rows, by a file, or drawn from a seed."""

    workload: str
    rows: int
    inner: int
    columns: int
    bits: int = 8
    left: tuple[tuple[int, ...], ...] | OperandSpec = ()
    right: tuple[tuple[int, ...], ...] | OperandSpec = ()
    left_seed: int = 0
    right_seed: int = 1


class ClassifierSpec(Struct, frozen=True, kw_only=True):
    """A multilayer perceptron: features, hidden layers, classes."""

    widths: tuple[int, ...]


class LlamaSpec(Struct, frozen=True, kw_only=True):
    """A decoder over bytes."""

    vocabulary: int = 256
    hidden: int
    inner: int
    layers: int = 1
    heads: int = 2
    key_value_heads: int = 1
    head_width: int = 8
    positions: int = 16
    tied: bool = True


class TrainingTask(Struct, frozen=True, kw_only=True):
    """A run of AdamW; the state after each segment is the output.

    Exactly one of ``classifier``, ``llama`` and ``base`` says what is trained.
    """

    workload: str
    classifier: ClassifierSpec | None = None
    llama: LlamaSpec | None = None
    base: str = ""
    """A decoder known here, whose shape, tokenizer and, unless ``scratch``, parameters are taken."""
    scratch: bool = False
    positions: int = 128
    """Tokens of one example, with a base."""
    lora_rank: int = 0
    """Train adapters of this rank and leave the base as it is; 0 trains all of it."""
    lora_alpha_milli: int = 0
    """0 is twice the rank."""
    start: str = ""
    """The blob of a state to go on from."""
    start_step: int = 0
    segments: int = 4
    segment_steps: int = 8
    batch: int = 8
    learning_rate_micro: int = 3_000
    beta1_micro: int = 900_000
    beta2_micro: int = 950_000
    weight_decay_micro: int = 10_000
    seed: int = 0
    peers: int = 1
    """That train at once, each on data in an order of its own."""
    rounds: int = 4
    """After each of which their states are made one; ``segments`` are those of a peer in a round."""
    outer: str = "average"
    """How they are made one."""
    outer_rate_micro: int = 700_000
    """Of the Nesterov step, as is the next."""
    outer_momentum_micro: int = 900_000
    text: str = ""
    """Data of a decoder."""
    text_file: str = ""
    """The same in a file; read by the command line, beside the job file."""
    text_blob: str = ""
    """The same as a node takes it."""
    data: bytes = b""
    """Data of either, as bytes."""


Task = (
    LmTask
    | DiffusionTask
    | RenderTask
    | MatmulTask
    | ProgramTask
    | PluginTask
    | TrainingTask
    | EmbedTask
    | ClassifyTask
    | TranscribeTask
    | TerrainTask
)

_NAME = identifier(bytes_max=limits.NAME_BYTES_MAX)
_SEED = integer(0, limits.INTEGER_MAX)
_COORDINATE_MAX = scene.COORDINATE_MILLI_MAX // 1_000
_POINT = listing(milli(-_COORDINATE_MAX, _COORDINATE_MAX), length_min=3, length_max=3)
_LIGHT = listing(milli(0, scene.LIGHT_MILLI_MAX // 1_000), length_min=3, length_max=3)
_SHARE = listing(milli(0, 1), length_min=3, length_max=3)

_LM = mapping(
    LmTask,
    {
        "workload": Field("workload", choice("lm.generate"), required=True),
        "model": Field("model", _NAME, required=True),
        "prompt": Field("prompt", text(bytes_max=PROMPT_BYTES_MAX)),
        "prompts": Field(
            "prompts",
            listing(text(bytes_max=PROMPT_BYTES_MAX), length_min=1, length_max=lm.PROMPTS_WHOLE_MAX),
        ),
        "prompts_file": Field("prompts_file", text(bytes_max=PATH_BYTES_MAX)),
        "max_tokens": Field("max_tokens", integer(1, limits.UNITS_MAX)),
        "seed": Field("seed", _SEED),
        "temperature": Field("temperature_milli", milli(0, TEMPERATURE_MAX)),
        "top_k": Field("top_k", integer(0, TOP_K_MAX)),
        "top_p": Field("top_p_milli", milli(0, 1)),
        "repetition_penalty": Field("repetition_penalty_milli", milli(0, 10)),
        "stop": Field("stop", listing(text(bytes_max=lm.STOP_BYTES_MAX), length_max=lm.STOPS_MAX)),
        "eos": Field("eos", boolean()),
        "logprobs": Field("logprobs", integer(0, lm.LOGPROBS_MAX)),
    },
)
_DIFFUSION = mapping(
    DiffusionTask,
    {
        "workload": Field("workload", choice("diffusion.sample"), required=True),
        "model": Field("model", _NAME, required=True),
        "labels": Field(
            "labels",
            listing(integer(0, diffusion.CLASSES - 1), length_min=1, length_max=diffusion.PICTURES_WHOLE_MAX),
            required=True,
        ),
        "steps": Field("steps", integer(1, diffusion.STEPS_MAX)),
        "seed": Field("seed", _SEED),
        "guidance": Field("guidance_milli", milli(0, diffusion.GUIDANCE_MILLI_MAX // 1_000)),
    },
)
_MATERIAL = mapping(
    MaterialSpec,
    {
        "name": Field("name", _NAME, required=True),
        "albedo": Field("albedo", _SHARE, required=True),
        "emission": Field("emission", _LIGHT),
        "mirror": Field("mirror", boolean()),
    },
)
_SPHERE = mapping(
    SphereSpec,
    {
        "centre": Field("centre", _POINT, required=True),
        "radius": Field("radius", milli(0, _COORDINATE_MAX), required=True),
        "material": Field("material", _NAME, required=True),
    },
)
_PLANE = mapping(
    PlaneSpec,
    {
        "point": Field("point", _POINT, required=True),
        "normal": Field("normal", _POINT, required=True),
        "material": Field("material", _NAME, required=True),
    },
)
_TRIANGLE = mapping(
    TriangleSpec,
    {
        "a": Field("a", _POINT, required=True),
        "b": Field("b", _POINT, required=True),
        "c": Field("c", _POINT, required=True),
        "material": Field("material", _NAME, required=True),
    },
)
_CAMERA = mapping(
    CameraSpec,
    {
        "position": Field("position", _POINT, required=True),
        "target": Field("target", _POINT, required=True),
        "focal": Field("focal", milli(0, _COORDINATE_MAX)),
    },
)
_MESH_FILES = listing(
    mapping(
        MeshSpec,
        {
            "file": Field("file", text(bytes_max=PATH_BYTES_MAX), required=True),
            "material": Field("material", _NAME),
            "scale": Field("scale_milli", milli(0, _COORDINATE_MAX)),
            "turn": Field("turn_milli", milli(-360, 360)),
            "position": Field("position", _POINT),
            "manifold": Field("manifold", boolean()),
        },
    ),
    length_min=1,
    length_max=scene.SHAPES_MAX,
)
_MESHES_PACKED = mapping(
    MeshesSpec,
    {
        "packed": Field("packed", encoded_bytes(bytes_max=PACKED_BYTES_MAX)),
        "blob": Field("blob", blob_field),
    },
)


def _meshes(node: yaml.Node, path: str) -> MeshesSpec:
    if isinstance(node, yaml.SequenceNode):
        return MeshesSpec(files=_MESH_FILES(node, path))
    spec = _MESHES_PACKED(node, path)
    if bool(spec.packed) == bool(spec.blob):
        raise Fault(node.start_mark.line + 1, path, "must have exactly one of packed and blob")
    return spec


_RENDER = mapping(
    RenderTask,
    {
        "workload": Field("workload", choice("render.trace"), required=True),
        "camera": Field("camera", _CAMERA, required=True),
        "materials": Field(
            "materials", listing(_MATERIAL, length_min=1, length_max=scene.MATERIALS_MAX), required=True
        ),
        "spheres": Field("spheres", listing(_SPHERE, length_max=scene.SHAPES_MAX)),
        "planes": Field("planes", listing(_PLANE, length_max=scene.SHAPES_MAX)),
        "triangles": Field("triangles", listing(_TRIANGLE, length_max=scene.SHAPES_MAX)),
        "meshes": Field("meshes", _meshes),
        "width": Field("width", integer(scene.TILE, scene.SIDE_MAX)),
        "height": Field("height", integer(scene.TILE, scene.SIDE_MAX)),
        "samples": Field("samples", integer(1, scene.SAMPLES_MAX)),
        "depth": Field("depth", integer(1, scene.DEPTH_MAX)),
        "seed": Field("seed", _SEED),
        "background": Field("background", _LIGHT),
        "frames": Field("frames", integer(1, scene.FRAMES_MAX)),
        "orbit": Field("orbit_milli", milli(-360, 360)),
        "format": Field("format", choice("png", "exr")),
    },
)
_ENTRY_MAX = 2**linalg.BITS_MAX - 1
_ROWS = listing(
    listing(integer(-_ENTRY_MAX, _ENTRY_MAX), length_min=1, length_max=linalg.INNER_MAX),
    length_min=1,
    length_max=limits.UNITS_MAX,
)
_OPERAND_BLOB = mapping(OperandSpec, {"blob": Field("blob", blob_field, required=True)})


def _operand(node: yaml.Node, path: str) -> tuple[tuple[int, ...], ...] | OperandSpec:
    if isinstance(node, yaml.ScalarNode):
        return OperandSpec(file=text(bytes_max=PATH_BYTES_MAX)(node, path))
    if isinstance(node, yaml.MappingNode):
        return _OPERAND_BLOB(node, path)
    return _ROWS(node, path)


_MATMUL = mapping(
    MatmulTask,
    {
        "workload": Field("workload", choice("linalg.matmul"), required=True),
        "rows": Field("rows", integer(1, limits.WHOLE_UNITS_MAX), required=True),
        "inner": Field("inner", integer(1, linalg.INNER_MAX), required=True),
        "columns": Field("columns", integer(1, linalg.COLUMNS_MAX), required=True),
        "bits": Field("bits", integer(1, linalg.BITS_MAX)),
        "left": Field("left", _operand),
        "right": Field("right", _operand),
        "left_seed": Field("left_seed", _SEED),
        "right_seed": Field("right_seed", _SEED),
    },
)

_CLASSIFIER = mapping(
    ClassifierSpec,
    {
        "widths": Field(
            "widths", listing(integer(1, limits.UNITS_MAX), length_min=2, length_max=8), required=True
        ),
    },
)
_LLAMA = mapping(
    LlamaSpec,
    {
        "vocabulary": Field("vocabulary", integer(2, 256)),
        "hidden": Field("hidden", integer(1, 8_192), required=True),
        "inner": Field("inner", integer(1, 8_192), required=True),
        "layers": Field("layers", integer(1, 1_024)),
        "heads": Field("heads", integer(1, 1_024)),
        "key_value_heads": Field("key_value_heads", integer(1, 1_024)),
        "head_width": Field("head_width", integer(1, 1_024)),
        "positions": Field("positions", integer(1, 1_024)),
        "tied": Field("tied", boolean()),
    },
)
_TRAINING = mapping(
    TrainingTask,
    {
        "workload": Field("workload", choice("training.run"), required=True),
        "classifier": Field("classifier", _CLASSIFIER),
        "llama": Field("llama", _LLAMA),
        "base": Field("base", _NAME),
        "scratch": Field("scratch", boolean()),
        "positions": Field("positions", integer(1, 1_024)),
        "lora_rank": Field("lora_rank", integer(0, 256)),
        "lora_alpha": Field("lora_alpha_milli", milli(0, 2_048)),
        "start": Field("start", blob_field),
        "start_step": Field("start_step", integer(0, 2**40)),
        "segments": Field("segments", integer(1, limits.UNITS_MAX)),
        "segment_steps": Field("segment_steps", integer(1, 64)),
        "batch": Field("batch", integer(1, 256)),
        "learning_rate": Field("learning_rate_micro", micro(0, 1)),
        "beta1": Field("beta1_micro", micro(0, 1)),
        "beta2": Field("beta2_micro", micro(0, 1)),
        "weight_decay": Field("weight_decay_micro", micro(0, 1)),
        "seed": Field("seed", _SEED),
        "peers": Field("peers", integer(1, 32)),
        "rounds": Field("rounds", integer(1, limits.PARTS_MAX)),
        "outer": Field("outer", choice("average", "nesterov")),
        "outer_learning_rate": Field("outer_rate_micro", micro(0, 2)),
        "outer_momentum": Field("outer_momentum_micro", micro(0, 1)),
        "text": Field("text", text(bytes_max=DATA_BYTES_MAX)),
        "text_file": Field("text_file", text(bytes_max=PATH_BYTES_MAX)),
        "text_blob": Field("text_blob", blob_field),
        "data": Field("data", encoded_bytes(bytes_max=DATA_BYTES_MAX)),
    },
)

TASK: Reader[Task] = one_of(
    "workload",
    {
        "lm.generate": _LM,
        "diffusion.sample": _DIFFUSION,
        "render.trace": _RENDER,
        "linalg.matmul": _MATMUL,
        "program.run": PROGRAM_FIELDS,
        **{name: plugin_fields(name) for name in PLUGINS},
        "training.run": _TRAINING,
        "embed.text": EMBED_FIELDS,
        "classify.image": CLASSIFY_FIELDS,
        "speech.transcribe": TRANSCRIBE_FIELDS,
        "diffusion.terrain": TERRAIN_FIELDS,
    },
)
"""Reads a job file's ``task``."""
