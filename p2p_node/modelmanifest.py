"""A model as blobs: a small list of its files, itself a blob, by whose name the model can be pulled."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from p2p_node.errors import UserError
from protocols.limits import MANIFEST_BYTES_MAX, NAME_BYTES_MAX

__all__ = [
    "MANIFEST_BYTES_MAX",
    "ModelFile",
    "ModelManifest",
    "read_manifest",
    "refuse_model_name",
    "write_manifest",
]

FILES_MAX = 64

# A name from a stranger becomes a file: no folders, nothing hidden, nothing that means something else.
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class ModelFile(Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a model."""

    name: str
    blob: Annotated[str, Meta(max_length=128)]
    """As `protocols.blobs.blob_name` writes it."""


class ModelManifest(
    Struct, frozen=True, forbid_unknown_fields=True, tag="p2p-node/model/1", tag_field="format"
):
    """All files of a model.

    Args:
        name: what its owner calls it.
        workload: that runs it.
        digest: by which the protocol calls it, in hexadecimal; what is pulled must have it.
        files: each once.
    """

    name: Annotated[str, Meta(max_length=NAME_BYTES_MAX)]
    workload: Annotated[str, Meta(max_length=NAME_BYTES_MAX)]
    digest: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    files: Annotated[tuple[ModelFile, ...], Meta(min_length=1, max_length=FILES_MAX)]


def refuse_model_name(name: str) -> None:
    """Check what a model is called.

    Raises:
        UserError: it can't be called so.
    """
    if not _MODEL_NAME.fullmatch(name) or len(name) > NAME_BYTES_MAX:
        raise UserError(
            f"a model's name must have letters, digits, '.', '_' and '-', {NAME_BYTES_MAX} at most, "
            f"got {name[:80]!r}"
        )


def write_manifest(manifest: ModelManifest) -> bytes:
    """The content of the manifest's blob."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2)


def read_manifest(content: bytes) -> ModelManifest:
    """Read what a peer gave as a manifest.

    Raises:
        UserError: it is none, or names files that can't be written.
    """
    if len(content) > MANIFEST_BYTES_MAX:
        raise UserError(f"a model's manifest of {len(content)} bytes must have {MANIFEST_BYTES_MAX} at most")
    try:
        manifest = msgspec.json.decode(content, type=ModelManifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"not a model's manifest: {error}") from error
    names = [file.name for file in manifest.files]
    wrong = next((name for name in names if not _FILE_NAME.fullmatch(name)), None)
    if wrong is not None:
        raise UserError(f"a model's manifest names a file {wrong!r}, which must be a plain name")
    if len(set(names)) < len(names):
        raise UserError("a model's manifest must name each file once")
    if not _MODEL_NAME.fullmatch(manifest.name):
        raise UserError(f"a model's manifest calls it {manifest.name!r}, which must be a plain name")
    return manifest
