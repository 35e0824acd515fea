"""Recordings and meshes that a job file names, in the form in which a node takes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from p2p_node.documents import packed_or_blob, with_task_field
from p2p_node.errors import UserError
from p2p_node.speechtasks import PACKED_WINDOWS_MAX, TranscribeTask
from p2p_node.taskspec import RenderTask
from workloads.blobs import Blobs
from workloads.errors import InputRefused
from workloads.render.files import Placing, Surface, mesh_of, read_surfaces
from workloads.render.mesh import encode_mesh
from workloads.render.soundness import check_sound
from workloads.speech.audio import cut, read_wav

__all__ = ["pack_meshes", "pack_recording"]

FILE_BYTES_MAX = 1 << 30


def pack_recording(task: TranscribeTask, document: bytes, folder: Path, blobs: Blobs) -> bytes:
    """A job file with its recording's samples, or with the name of the blob that holds them.

    Args:
        task: of the job file; it names a file.
        document: the job file's content.
        folder: that the name of the file is relative to.
        blobs: where content is left that is too large for a job file.

    Raises:
        UserError: the file can't be read, or isn't a recording.
    """
    path = folder / task.audio.file
    try:
        sound = read_wav(_content("task.audio", path))
    except InputRefused as error:
        raise UserError(f"task.audio: {path}: {error}") from error
    ends = cut(sound)
    if len(ends) > PACKED_WINDOWS_MAX:
        raise UserError(f"task.audio: {path} falls into {len(ends)} windows, {PACKED_WINDOWS_MAX} at most")
    samples = packed_or_blob(sound.astype("<i2").tobytes(), blobs)
    return with_task_field(document, "audio", f"{{{samples}, ends: {list(ends)}}}")


def pack_meshes(task: RenderTask, document: bytes, folder: Path, blobs: Blobs) -> bytes:
    """A job file with all of its meshes as one, or with the name of the blob that is this mesh.

    Args:
        task: of the job file; it names files.
        document: the job file's content.
        folder: that the names of files are relative to.
        blobs: where content is left that is too large for a job file.

    Raises:
        UserError: a file can't be read, isn't a mesh, or has a material that nothing is known of.
    """
    numbers = {material.name: number for number, material in enumerate(task.materials)}
    parts = []
    for index, mesh in enumerate(task.meshes.files):
        field, path = f"task.meshes[{index}]", folder / mesh.file
        placing = Placing(mesh.scale_milli, mesh.turn_milli, mesh.position)
        try:
            surfaces = read_surfaces(_content(f"{field}.file", path), path.suffix)
        except InputRefused as error:
            raise UserError(f"{field}.file: {path}: {error}") from error
        if mesh.manifold:
            _refuse_unsound(f"{field}.file: {path}", surfaces, placing)
        for surface in surfaces:
            name = surface.material if surface.material in numbers else mesh.material
            if name not in numbers:
                raise UserError(
                    f"{field}.material: {path} has faces of {surface.material!r}, which task.materials "
                    f"doesn't have; what else they are must be one of {', '.join(numbers)}"
                )
            parts.append((surface, placing, numbers[name]))
    try:
        content = encode_mesh(mesh_of(parts))
    except InputRefused as error:
        raise UserError(f"task.meshes: {error}") from error
    return with_task_field(document, "meshes", f"{{{packed_or_blob(content, blobs)}}}")


def _refuse_unsound(where: str, surfaces: Sequence[Surface], placing: Placing) -> None:
    try:
        for surface in surfaces:
            check_sound(mesh_of([(surface, placing, 0)]))
    except InputRefused as error:
        raise UserError(f"{where}: {error}; manifold: false renders it anyway") from error


def _content(field: str, path: Path) -> bytes:
    try:
        with path.open("rb") as opened:
            content = opened.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise UserError(f"{field}: can't read {path}: {error.strerror}") from error
    if len(content) > FILE_BYTES_MAX:
        raise UserError(f"{field}: {path} must have at most {FILE_BYTES_MAX} bytes")
    return content
