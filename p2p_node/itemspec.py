"""What a job file's tasks over many items may ask for: ``embed.text`` and ``classify.image``.

A job file names files. They are read where the job file lies (`p2p_node.packing`); what is handed to a node
has their content in their place, or names it as blobs.
"""

from __future__ import annotations

import yaml
from msgspec import Struct

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
    milli,
    text,
)
from protocols import limits
from protocols.blobs import parse_blob_name
from workloads.embedding.input import POOLINGS
from workloads.vision.input import SIDE_MAX, TOP

__all__ = [
    "CLASSIFY_FIELDS",
    "EMBED_FIELDS",
    "ClassifyTask",
    "EmbedTask",
    "ImagesSpec",
    "TextsSpec",
    "blob_field",
]

PATH_BYTES_MAX = 4_096
INLINE_TEXTS_MAX = 1_024
TEXT_BYTES_MAX = 32 * 1024
FILES_MAX = 1_024
PACKED_BYTES_MAX = 32 * 1024
"""Beyond this, what files hold is a blob and the job names it."""
OUTPUTS = ("jsonl", "safetensors")


class TextsSpec(Struct, frozen=True, kw_only=True):
    """Texts: in a file, in the job file itself, or as they were packed for a node."""

    file: str = ""
    lines: tuple[str, ...] = ()
    packed: bytes = b""
    """As `p2p_node.batchfiles.pack_items` makes it."""
    blob: str = ""
    """The same, by its name."""


class ImagesSpec(Struct, frozen=True, kw_only=True):
    """Pictures: in files, or as they were packed for a node."""

    files: tuple[str, ...] = ()
    samples: str = ""
    """The blob of all samples, by its name."""
    names: str = ""
    """The blob of what they are called, one a line of JSON."""


class EmbedTask(Struct, frozen=True, kw_only=True):
    """A vector for each text."""

    workload: str
    model: str
    texts: TextsSpec
    column: str = "text"
    id_column: str = "id"
    pooling: str = "mean"
    normalise: bool = True
    max_tokens: int = 0
    """Longer texts are cut; 0 for what the model takes."""
    output: str = "jsonl"


class ClassifyTask(Struct, frozen=True, kw_only=True):
    """The likeliest classes of each picture."""

    workload: str
    model: str
    images: ImagesSpec
    size: int = 224
    """Pixels of a side; what the model was trained on."""
    crop_milli: int = 875
    """How much of the shorter side is looked at."""
    top: int = TOP
    """Classes told of each."""


def blob_field(node: yaml.Node, path: str) -> str:
    """Reads the name of a blob; see `protocols.blobs.blob_name`."""
    written = text(bytes_max=limits.NAME_BYTES_MAX * 2)(node, path)
    try:
        parse_blob_name(written)
    except ValueError as error:
        raise Fault(node.start_mark.line + 1, path, "must name a blob", str(error)) from None
    return written


_FILE = text(bytes_max=PATH_BYTES_MAX)
_TEXTS_PACKED = mapping(
    TextsSpec,
    {"packed": Field("packed", encoded_bytes(bytes_max=PACKED_BYTES_MAX)), "blob": Field("blob", blob_field)},
)
_IMAGES_PACKED = mapping(
    ImagesSpec,
    {
        "samples": Field("samples", blob_field, required=True),
        "names": Field("names", blob_field, required=True),
    },
)
_LINES = listing(text(bytes_max=TEXT_BYTES_MAX), length_min=1, length_max=INLINE_TEXTS_MAX)
_FILES = listing(_FILE, length_min=1, length_max=FILES_MAX)


def _texts(node: yaml.Node, path: str) -> TextsSpec:
    if isinstance(node, yaml.ScalarNode):
        return TextsSpec(file=_FILE(node, path))
    if isinstance(node, yaml.SequenceNode):
        return TextsSpec(lines=_LINES(node, path))
    spec = _TEXTS_PACKED(node, path)
    if bool(spec.packed) == bool(spec.blob):
        raise Fault(node.start_mark.line + 1, path, "must have exactly one of packed and blob")
    return spec


def _images(node: yaml.Node, path: str) -> ImagesSpec:
    if isinstance(node, yaml.ScalarNode):
        return ImagesSpec(files=(_FILE(node, path),))
    if isinstance(node, yaml.SequenceNode):
        return ImagesSpec(files=_FILES(node, path))
    return _IMAGES_PACKED(node, path)


_NAME = identifier(bytes_max=limits.NAME_BYTES_MAX)
_COLUMN = text(bytes_max=256)

EMBED_FIELDS: Reader[EmbedTask] = mapping(
    EmbedTask,
    {
        "workload": Field("workload", choice("embed.text"), required=True),
        "model": Field("model", _NAME, required=True),
        "texts": Field("texts", _texts, required=True),
        "column": Field("column", _COLUMN),
        "id_column": Field("id_column", _COLUMN),
        "pooling": Field("pooling", choice(*POOLINGS)),
        "normalise": Field("normalise", boolean()),
        "max_tokens": Field("max_tokens", integer(0, 1 << 14)),
        "output": Field("output", choice(*OUTPUTS)),
    },
)
CLASSIFY_FIELDS: Reader[ClassifyTask] = mapping(
    ClassifyTask,
    {
        "workload": Field("workload", choice("classify.image"), required=True),
        "model": Field("model", _NAME, required=True),
        "images": Field("images", _images, required=True),
        "size": Field("size", integer(1, SIDE_MAX)),
        "crop": Field("crop_milli", milli(0, 1)),
        "top": Field("top", integer(1, TOP)),
    },
)
