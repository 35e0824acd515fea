"""Reading ``.pt2`` archives of ``torch.export`` as data: a graph in JSON and raw tensors, never code.

The stock loader unpickles tensors and samples, imports what a node's target names and evaluates guards and
symbolic expressions: a stranger's archive could run anything. Here an entry is read only if the format says
what it is, nothing is ever unpickled, evaluated or imported, and everything is bounded before it is read:
entries must be stored, so none is larger than the archive itself.
"""

from __future__ import annotations

import json
import math
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from workloads.errors import ModelRefused

__all__ = ["ARCHIVE_BYTES_MAX", "Archive", "Fields", "read_archive"]

ARCHIVE_BYTES_MAX = 4 << 30
_DIRECTORY_BYTES_MAX = 16 << 20
_ENTRIES_MAX = 65_536
# A parsed graph takes some twenty times its text.
_JSON_BYTES_MAX = 16 << 20
_SCHEMA_MAJOR = 8
_END, _END_BYTES, _COMMENT_BYTES_MAX = b"PK\x05\x06", 22, 65_535
_LOCATOR, _LOCATOR_BYTES = b"PK\x06\x07", 20
_END_64, _END_64_BYTES = b"PK\x06\x06", 56

# Numbers of torch's own schema of exported programs. bool becomes uint8: programs have no other truth values.
_ELEMENT_TYPES = {
    1: torch.uint8,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}

Fields = dict[str, Any]
"""A JSON object."""


@dataclass(frozen=True, slots=True)
class Archive:
    """An exported program.

    Args:
        graph: its ``graph`` object, as it stands in the file.
        signature: its ``signature`` object.
        tensors: parameters, buffers and constants by their full names, contiguous.
    """

    graph: Fields
    signature: Fields
    tensors: dict[str, Tensor]


def read_archive(path: Path) -> Archive:
    """Read an archive that ``torch.export.save`` wrote.

    Raises:
        ModelRefused: the file can't be read, is no such archive, holds a pickled or custom object where a
            tensor should be, or exceeds a bound.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            _check_directory(file, size)
            with zipfile.ZipFile(file) as archive:
                return _Reader(archive, size).read()
    except OSError as error:
        raise ModelRefused(f"{path.name} cannot be read: {error.strerror or error}") from error
    # What zipfile raises for a damaged file is none of its documented errors alone.
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise ModelRefused(f"{path.name} is malformed: {error}") from error


def _check_directory(file: BinaryIO, size: int) -> None:
    """Bound the list of entries, which zipfile reads whole, before it does."""
    if size > ARCHIVE_BYTES_MAX:
        raise ModelRefused(f"archive of {size} bytes exceeds {ARCHIVE_BYTES_MAX}")
    start = max(0, size - _END_BYTES - _COMMENT_BYTES_MAX - _LOCATOR_BYTES - _END_64_BYTES)
    file.seek(start)
    tail = file.read()
    place = tail.rfind(_END)
    if place < 0 or len(tail) - place < _END_BYTES:
        raise ModelRefused("file is no zip archive")
    entries, directory_bytes = struct.unpack_from("<HI", tail, place + 10)
    locator = place - _LOCATOR_BYTES
    if locator >= 0 and tail[locator:].startswith(_LOCATOR):
        (offset,) = struct.unpack_from("<Q", tail, locator + 8)
        record = locator - _END_64_BYTES
        # zipfile looks for the record here and nowhere else, whatever the locator says.
        if record < 0 or offset != start + record or not tail[record:].startswith(_END_64):
            raise ModelRefused("archive's end record is malformed")
        entries, directory_bytes = struct.unpack_from("<QQ", tail, record + 32)
    if entries > _ENTRIES_MAX or directory_bytes > _DIRECTORY_BYTES_MAX:
        raise ModelRefused(f"archive lists {entries} entries in {directory_bytes} bytes, more than allowed")
    file.seek(0)


class _Reader:
    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self._archive = archive
        self._entries: dict[str, zipfile.ZipInfo] = {}
        prefixes = set()
        for info in archive.infolist():
            prefix, _, name = info.filename.partition("/")
            prefixes.add(prefix)
            if name in self._entries:
                raise ModelRefused(f"archive holds {name!r} twice")
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise ModelRefused(f"archive entry {name!r} must be stored, not compressed")
            if info.flag_bits & 1:
                raise ModelRefused(f"archive entry {name!r} is encrypted")
            self._entries[name] = info
        if len(prefixes) != 1:
            raise ModelRefused("archive must hold one folder")
        # Entries that overlap would make much out of little.
        if sum(info.file_size for info in self._entries.values()) > size:
            raise ModelRefused(f"archive entries exceed its {size} bytes together")
        self._raw: dict[str, Tensor] = {}
        self._tensor_bytes = 0

    def read(self) -> Archive:
        if self._bytes("byteorder", 16).strip() != b"little":
            raise ModelRefused("archive must be little-endian")
        model = self._json("models/model.json")
        major = _object(model.get("schema_version"), "schema_version").get("major")
        if major != _SCHEMA_MAJOR:
            raise ModelRefused(f"archive has schema version {major!r}, must be {_SCHEMA_MAJOR}")
        module = _object(model.get("graph_module"), "graph_module")
        tensors = self._tensors("data/weights/", "model_weights_config.json")
        for name, tensor in self._tensors("data/constants/", "model_constants_config.json").items():
            if name in tensors:
                raise ModelRefused(f"archive holds tensor {name!r} twice")
            tensors[name] = tensor
        return Archive(
            _object(module.get("graph"), "graph"), _object(module.get("signature"), "signature"), tensors
        )

    def _tensors(self, folder: str, listing: str) -> dict[str, Tensor]:
        config = _object(self._json(folder + listing).get("config"), listing)
        return {name: self._tensor(folder, name, _object(entry, name)) for name, entry in config.items()}

    def _tensor(self, folder: str, name: str, entry: Fields) -> Tensor:
        path = entry.get("path_name")
        # A pickled tensor runs code when it is loaded, and so does anything in a file not named as raw.
        if entry.get("use_pickle") is not False or not isinstance(path, str):
            raise ModelRefused(f"tensor {name!r} is pickled or has no file")
        if not path.startswith(("weight_", "tensor_")):
            raise ModelRefused(f"constant {name!r} in {path!r} is no tensor")
        meta = _object(entry.get("tensor_meta"), name)
        dtype = _ELEMENT_TYPES.get(_natural(meta.get("dtype"), f"dtype of {name!r}"))
        if dtype is None:
            raise ModelRefused(f"tensor {name!r} has element type {meta['dtype']}, which programs don't have")
        sizes, strides = (self._integers(meta.get(key), f"{key} of {name!r}") for key in ("sizes", "strides"))
        offset = _natural(_only(meta.get("storage_offset"), "as_int"), f"storage_offset of {name!r}")
        if len(sizes) != len(strides):
            raise ModelRefused(f"tensor {name!r} has {len(sizes)} sizes and {len(strides)} strides")
        # A stride of zero makes much out of little.
        self._tensor_bytes += math.prod(sizes) * dtype.itemsize
        if self._tensor_bytes > ARCHIVE_BYTES_MAX:
            raise ModelRefused(f"tensors exceed {ARCHIVE_BYTES_MAX} bytes together")
        return self._strided(folder + path, dtype, sizes, strides, offset, name)

    def _strided(  # noqa: PLR0917
        self,
        path: str,
        dtype: torch.dtype,
        sizes: list[int],
        strides: list[int],
        offset: int,
        name: str,
    ) -> Tensor:
        if math.prod(sizes) == 0:
            return torch.empty(sizes, dtype=dtype)
        if path not in self._raw:
            # Also what gives the bytes their alignment.
            self._raw[path] = torch.frombuffer(
                bytearray(self._bytes(path, ARCHIVE_BYTES_MAX)), dtype=torch.uint8
            )
        raw = self._raw[path]
        last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        if (last + 1) * dtype.itemsize > len(raw):
            raise ModelRefused(f"tensor {name!r} reaches beyond the {len(raw)} bytes of {path}")
        whole = raw[: len(raw) // dtype.itemsize * dtype.itemsize].view(dtype)
        tensor = torch.as_strided(whole, sizes, strides, offset).clone(memory_format=torch.contiguous_format)
        return tensor.to(torch.uint8) if dtype == torch.bool else tensor

    def _integers(self, value: object, what: str) -> list[int]:
        if not isinstance(value, list) or len(value) > 8:
            raise ModelRefused(f"{what} must be a list of at most 8 sizes")
        return [_natural(_only(item, "as_int"), what) for item in value]

    def _json(self, name: str) -> Fields:
        try:
            value = json.loads(self._bytes(name, _JSON_BYTES_MAX), object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise ModelRefused(f"{name} is not JSON: {error}") from error
        return _object(value, name)

    def _bytes(self, name: str, bytes_max: int) -> bytes:
        info = self._entries.get(name)
        if info is None:
            raise ModelRefused(f"archive lacks {name}")
        if info.file_size > bytes_max:
            raise ModelRefused(f"{name} of {info.file_size} bytes exceeds {bytes_max}")
        return self._archive.read(info)


def _once(pairs: list[tuple[str, Any]]) -> Fields:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name stands twice")
    return fields


def _object(value: object, what: str) -> Fields:
    if not isinstance(value, dict):
        raise ModelRefused(f"{what} must be an object, got {type(value).__name__}")
    return value


def _only(value: object, key: str) -> object:
    """The one member of a tagged union; a symbolic size, say, is another one."""
    if not isinstance(value, dict) or list(value) != [key]:
        raise ModelRefused(f"{str(value)[:80]} must be {key}")
    return value[key]


def _natural(value: object, what: str) -> int:
    if type(value) is not int or not 0 <= value < 2**40:
        raise ModelRefused(f"{what} must be an integer in [0, 2**40), got {str(value)[:80]}")
    return value
