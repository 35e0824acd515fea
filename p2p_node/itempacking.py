"""The files that a task over many items names, in the form in which a node takes them."""

from __future__ import annotations

import json
from pathlib import Path

from p2p_node.batchfiles import Item, pack_items, read_items
from p2p_node.documents import packed_or_blob, with_task_field
from p2p_node.errors import UserError
from p2p_node.imagefiles import image_paths, read_image
from p2p_node.itemspec import ClassifyTask, EmbedTask
from protocols.blobs import blob_name
from workloads.blobs import Blobs

__all__ = ["pack_item_files"]

IMAGES_BYTES_MAX = 1 << 30
"""Samples of all pictures: they pass through the memory of whoever packs them."""


def pack_item_files(task: EmbedTask | ClassifyTask, document: bytes, folder: Path, blobs: Blobs) -> bytes:
    """A job file with what its task's files hold, or with the names of blobs that hold it.

    Args:
        task: of the job file.
        document: the job file's content.
        folder: that the names of files are relative to.
        blobs: where content is left that is too large for a job file.

    Raises:
        UserError: a file can't be read, or breaks a rule.
    """
    if isinstance(task, EmbedTask):
        texts = task.texts
        if not texts.file:
            return document
        items = read_items(folder / texts.file, column=task.column, id_column=task.id_column)
        return with_task_field(document, "texts", _packed_texts(items, blobs))
    if not task.images.files:
        return document
    return with_task_field(document, "images", _packed_images(task, folder, blobs))


def _packed_texts(items: list[Item], blobs: Blobs) -> str:
    return f"{{{packed_or_blob(pack_items(items), blobs)}}}"


def _packed_images(task: ClassifyTask, folder: Path, blobs: Blobs) -> str:
    paths = image_paths(task.images.files, folder)
    total = len(paths) * task.size * task.size * 3
    if total > IMAGES_BYTES_MAX:
        raise UserError(f"task.images: {len(paths)} pictures take {total} bytes, {IMAGES_BYTES_MAX} at most")
    samples = b"".join(read_image(path, side=task.size, crop_permille=task.crop_milli) for path in paths)
    pixels = blobs.write(samples)
    lines = [json.dumps(_shown(path, folder), ensure_ascii=False) for path in paths]
    names = blobs.write("\n".join(lines).encode("utf-8"))
    return f'{{samples: "{blob_name(pixels)}", names: "{blob_name(names)}"}}'


def _shown(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
