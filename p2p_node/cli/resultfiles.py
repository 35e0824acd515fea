"""Where a job's result is written: a file, or a folder in which every file of the result gets a name.

What is there already stays unless its owner says otherwise: a result took time and money, so in a folder it
gets the next free name instead.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from p2p_node.errors import UserError

__all__ = [
    "Target",
    "force_option",
    "output_file_option",
    "refuse_existing",
    "write_result",
]

F = TypeVar("F", bound=Callable[..., Any])

_ENDINGS = {
    "application/json": ".json",
    "application/jsonl": ".jsonl",
    "application/x-subrip": ".srt",
    "application/zip": ".zip",
    "image/apng": ".png",
    "image/png": ".png",
    "image/x-exr": ".exr",
    "text/plain": ".txt",
}
_BEGINNINGS = {b"\x93NUMPY": ".npy", b"PK\x03\x04": ".npz"}
"""Of files whose media type is only that they are bytes."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class Target:
    """What ``-O`` names.

    Args:
        path: a file, or a folder that is there or to be made.
        is_folder: which of them.
    """

    path: Path
    is_folder: bool


class _TargetType(click.ParamType):  # type: ignore[type-arg]
    name = "FILE|DIR"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Target:
        path = Path(value)
        return Target(path, path.is_dir() or str(value).endswith(os.sep))


def output_file_option(function: F) -> F:
    """``-O``: a `Target`, or None."""
    return click.option(
        "-O",
        "--output-file",
        type=_TargetType(),
        help="Write the result here: PNG for pictures, plain text for text. In a folder (one that is there, "
        "or a name that ends in /) it is called like the job, and a result of several files is unpacked.",
    )(function)


def force_option(function: F) -> F:
    """``--force``: whether existing files may be overwritten."""
    return click.option("--force", is_flag=True, help="Overwrite a file that is there already.")(function)


def refuse_existing(target: Target | None, *, force: bool) -> None:
    """Before anything is spent: check that the result can go where it is to go.

    Raises:
        UserError: a file is there.
    """
    if target is not None and not target.is_folder and target.path.exists() and not force:
        raise UserError(f"{target.path} is there already: give --force to overwrite it")


def write_result(
    target: Target, content: bytes, *, job: str, media_type: str = "text/plain", force: bool = False
) -> list[Path]:
    """Write a result; returns the files.

    Args:
        target: where.
        content: of the result's file.
        job: the job's name.
        media_type: of the content.
        force: overwrite what is there; otherwise another name is taken.

    Raises:
        UserError: it can't be written.
    """
    if not target.is_folder:
        return [_write(target.path, content, force=force)]
    try:
        target.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"can't make {target.path}: {error.strerror}") from error
    files = list(_members(content)) if media_type == "application/zip" else []
    if not files:
        return [_write(target.path / f"{job}{_ending(media_type, content)}", content, force=force)]
    return [_write(target.path / f"{job}-{name}", data, force=force) for name, data in files]


def _members(content: bytes) -> Iterator[tuple[str, bytes]]:
    """The files in a result that is a ZIP; none if they can't be told apart by plain names."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        if all(_PLAIN_NAME.fullmatch(name) for name in names):
            yield from ((name, archive.read(name)) for name in names)


def _ending(media_type: str, content: bytes) -> str:
    if media_type in _ENDINGS:
        return _ENDINGS[media_type]
    for beginning, ending in _BEGINNINGS.items():
        if content.startswith(beginning):
            return ending
    return ".safetensors" if content[8:9] == b"{" else ".bin"


def _write(path: Path, content: bytes, *, force: bool) -> Path:
    for number in itertools.count(2):
        try:
            with path.open("wb" if force else "xb") as file:
                file.write(content)
        except FileExistsError:
            stem = path.stem if number == 2 else path.stem.rpartition("-")[0]
            path = path.with_name(f"{stem}-{number}{path.suffix}")
        except OSError as error:
            raise UserError(f"can't write the result to {path}: {error.strerror}") from error
        else:
            break
    return path
