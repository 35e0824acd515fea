"""A model's directory out of one file: a zip or tar archive, read as something a stranger made.

Only plain files are taken, from one folder, under plain names, and no more than the archive's own size makes
likely: whoever unpacks a bomb has lost when it is noticed. Nothing is written outside of the target.
"""

from __future__ import annotations

import lzma
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from p2p_node.errors import UserError

__all__ = ["unpack_model"]

FILES_MAX = 64
BYTES_MAX = 64 * 1024**3
RATIO_MAX = 100
"""Weights shrink by a few percent, tokenizers tenfold."""

SMALL_BYTES = 16 * 1024**2
"""So much may come of an archive of any size."""

DISK_MARGIN_BYTES = 256 * 1024**2
PART_BYTES = 1 << 20
ZIP_ENDINGS = (".zip",)
TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_GRAPHS = (".pt2", ".onnx")
_NOT_MODELS = {
    **dict.fromkeys(_GRAPHS, "a graph isn't a model but a job's program: see `p2p-node program check`"),
    ".safetensors": "weights alone aren't a model: config.json belongs to it; give the folder of both",
    ".gguf": "GGUF isn't read: give a folder in Hugging Face layout",
    ".bin": "pickles aren't read: give a folder with model.safetensors",
    ".pt": "pickles aren't read: give a folder with model.safetensors",
    ".pth": "pickles aren't read: give a folder with model.safetensors",
}


def unpack_model(archive: Path, target: Path) -> None:
    """Write an archive's files into an empty directory.

    Args:
        archive: a zip or tar file that holds a model's files, bare or in one folder.
        target: the directory.

    Raises:
        UserError: it isn't one, is damaged, or holds what a model's archive doesn't.
    """
    name = archive.name.lower()
    for ending, why in _NOT_MODELS.items():
        if name.endswith(ending):
            raise UserError(f"{archive}: {why}")
    try:
        packed_bytes = archive.stat().st_size
        room = shutil.disk_usage(target).free - DISK_MARGIN_BYTES
    except OSError as error:
        raise UserError(f"can't read {archive}: {error.strerror}") from error
    budget = _Budget(archive, packed_bytes, room)
    with _explained(archive):
        if name.endswith(ZIP_ENDINGS):
            _unzip(archive, target, budget)
        elif name.endswith(TAR_ENDINGS):
            _untar(archive, target, budget)
        else:
            known = ", ".join((*ZIP_ENDINGS, *TAR_ENDINGS))
            raise UserError(f"{archive}: a model is a directory, or an archive of one: {known}")
    if not budget.folders:
        raise UserError(f"{archive}: holds no file")


class _Budget:
    """What may come of an archive, and what has."""

    def __init__(self, archive: Path, packed_bytes: int, room: int) -> None:
        self._archive = archive
        self._names: set[str] = set()
        self.folders: set[str] = set()
        self._left = min(BYTES_MAX, max(SMALL_BYTES, RATIO_MAX * packed_bytes))
        self._rule = f"{RATIO_MAX} times its own size, and {BYTES_MAX} bytes"
        if room < self._left:
            self._left, self._rule = room, f"the {max(0, room)} bytes that the disk has room for"

    def admit(self, path: str, size_bytes: int) -> str:
        """A file's plain name, if it may be taken.

        Raises:
            UserError: it may not.
        """
        parts = PurePosixPath(path.removeprefix("./")).parts
        is_plain = "\\" not in path and "\0" not in path and not path.startswith("/") and ".." not in parts
        if not is_plain or not 1 <= len(parts) <= 2 or not _FILE_NAME.fullmatch(parts[-1]):
            raise UserError(
                f"{self._archive}: entry {path[:200]!r} must be a plain name, in one folder at most"
            )
        self.folders.add(parts[0] if len(parts) == 2 else "")
        if len(self.folders) > 1:
            found = ", ".join(repr(folder) for folder in sorted(self.folders))
            raise UserError(f"{self._archive}: files must lie in one folder, got {found}")
        if parts[-1] in self._names:
            raise UserError(f"{self._archive}: entry {path[:200]!r} comes twice")
        self._names.add(parts[-1])
        if len(self._names) > FILES_MAX:
            raise UserError(f"{self._archive}: a model has {FILES_MAX} files at most")
        self._refuse_more_than_left(size_bytes)
        return parts[-1]

    def copy(self, source: IO[bytes], target: Path, size_bytes: int) -> None:
        """Write a file of the size that was announced.

        Raises:
            UserError: it has another, or there is too much of it.
        """
        copied = 0
        with target.open("xb") as file:
            while part := source.read(PART_BYTES):
                copied += len(part)
                self._refuse_more_than_left(len(part))
                self._left -= len(part)
                file.write(part)
        if copied != size_bytes:
            raise UserError(
                f"{self._archive}: {target.name} announces {size_bytes} bytes and has {copied}: it is damaged"
            )

    def _refuse_more_than_left(self, size_bytes: int) -> None:
        if size_bytes > self._left:
            raise UserError(f"{self._archive}: what it unpacks to must not exceed {self._rule}")


def _unzip(archive: Path, target: Path, budget: _Budget) -> None:
    with zipfile.ZipFile(archive) as opened:
        for entry in opened.infolist():
            if entry.is_dir():
                continue
            # The upper half is the Unix mode, where there is one: 0o120000 is a link.
            kind = entry.external_attr >> 28
            if kind not in (0, 0o10):
                raise UserError(f"{archive}: entry {entry.filename[:200]!r} must be a plain file")
            if entry.flag_bits & 1:
                raise UserError(f"{archive}: entry {entry.filename[:200]!r} must not be encrypted")
            name = budget.admit(entry.filename, entry.file_size)
            with opened.open(entry) as source:
                budget.copy(source, target / name, entry.file_size)


def _untar(archive: Path, target: Path, budget: _Budget) -> None:
    # As a stream: its size is known once it is unpacked, so each entry is judged before the next is read.
    with tarfile.open(archive, "r|*") as opened:
        for number, entry in enumerate(opened):
            if number > 2 * FILES_MAX:
                raise UserError(f"{archive}: a model has {FILES_MAX} files at most")
            if entry.isdir():
                continue
            if not entry.isreg() or entry.issparse():
                raise UserError(f"{archive}: entry {entry.name[:200]!r} must be a plain file")
            name = budget.admit(entry.name, entry.size)
            source = opened.extractfile(entry)
            if source is not None:
                budget.copy(source, target / name, entry.size)


@contextmanager
def _explained(archive: Path) -> Iterator[None]:
    broken = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)
    try:
        yield
    except broken as error:
        raise UserError(
            f"{archive}: can't be unpacked: {str(error)[:200] or type(error).__name__}"
        ) from error
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        # TypeError: what tarfile makes of a gzip header that ends too early.
        reason = getattr(error, "strerror", None) or str(error)[:200]
        raise UserError(f"{archive}: can't be unpacked: {reason}") from error
