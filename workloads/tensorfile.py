"""Which tensors a safetensors file holds and what each hashes to, read with bounds and without torch.

The format is a length, a JSON header and raw little-endian numbers, so reading it runs no code; the file may
still be a stranger's, so whatever the header says is held against the file's size before it is used.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from blake3 import blake3

from protocols.limits import PARAMETER_NAME_BYTES_MAX, PARAMETERS_MAX
from protocols.parameters import Parameter
from protocols.values import value_bytes, value_header
from workloads.errors import ModelRefused

__all__ = ["DTYPES", "HEADER_BYTES_MAX", "TensorPlace", "hash_tensors", "read_places"]

HEADER_BYTES_MAX = 16 << 20
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "U8": "uint8",
}
"""The protocol's names of the element types that a model may have."""

_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where one tensor lies in its file: bytes ``start`` to ``stop``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_places(path: Path) -> tuple[TensorPlace, ...]:
    """The tensors of a safetensors file, in the order of their names.

    Raises:
        ModelRefused: the file can't be read, its header is malformed or names a tensor twice, a tensor has
            an element type that is not in `DTYPES`, or the tensors don't fill the file exactly.
    """
    try:
        with path.open("rb") as file:
            return _read_places(file, path.name, path.stat().st_size)
    except OSError as error:
        raise ModelRefused(f"{path.name} cannot be read: {error.strerror or error}") from error


def hash_tensors(path: Path) -> tuple[Parameter, ...]:
    """The tensors of a safetensors file with their digests, in the order of their names.

    Raises:
        ModelRefused: as `read_places`.
    """
    places = read_places(path)
    try:
        # Read, not mapped: a file that shrinks under a map ends the process.
        with path.open("rb") as file:
            return tuple(
                Parameter(place.name, place.dtype, place.shape, _digest(file, path.name, place))
                for place in places
            )
    except OSError as error:
        raise ModelRefused(f"{path.name} cannot be read: {error.strerror or error}") from error


def _digest(file: BinaryIO, file_name: str, place: TensorPlace) -> bytes:
    hasher = blake3(value_header(place.dtype, place.shape))
    file.seek(place.start)
    left = place.stop - place.start
    buffer = memoryview(bytearray(min(left, _READ_BYTES)))
    while left:
        count = file.readinto(buffer[: min(left, len(buffer))])  # type: ignore[attr-defined]
        if not count:
            raise ModelRefused(f"{file_name} ends inside tensor {place.name}")
        hasher.update(buffer[:count])
        left -= count
    return hasher.digest()


def _read_places(file: BinaryIO, file_name: str, file_bytes: int) -> tuple[TensorPlace, ...]:
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(HEADER_BYTES_MAX, file_bytes - 8):
        raise ModelRefused(f"{file_name} header of {length} bytes must be in [2, {HEADER_BYTES_MAX}]")
    try:
        header = json.loads(file.read(length), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ModelRefused(f"{file_name} header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise ModelRefused(f"{file_name} header must be an object, got {type(header).__name__}")
    header.pop("__metadata__", None)
    if not 1 <= len(header) <= PARAMETERS_MAX:
        raise ModelRefused(f"{file_name} must hold 1..{PARAMETERS_MAX} tensors, got {len(header)}")
    data = 8 + length
    places = [_place(file_name, name, entry, data) for name, entry in header.items()]
    _check_cover(file_name, places, data, file_bytes)
    return tuple(sorted(places, key=lambda place: place.name.encode()))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # JSON readers differ in which of two equal keys they keep, so one file would be two models.
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name stands twice")
    return entries


def _place(file_name: str, name: str, entry: object, data: int) -> TensorPlace:
    try:
        name_bytes = len(name.encode())
    except UnicodeEncodeError as error:
        raise ModelRefused(f"{file_name} names a tensor with a lone surrogate") from error
    if name_bytes > PARAMETER_NAME_BYTES_MAX:
        raise ModelRefused(f"{file_name} names a tensor with more than {PARAMETER_NAME_BYTES_MAX} bytes")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ModelRefused(f"{file_name}: tensor {name} must have dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        raise ModelRefused(f"{file_name}: tensor {name} has dtype {kind!r}, must be one of {sorted(DTYPES)}")
    sizes = _naturals(file_name, name, "shape", shape)
    start, stop = _naturals(file_name, name, "data_offsets", offsets, count=2)
    try:
        expected = value_bytes(DTYPES[kind], sizes)
    except ValueError as error:
        raise ModelRefused(f"{file_name}: tensor {name}: {error}") from error
    if stop - start != expected:
        raise ModelRefused(f"{file_name}: tensor {name} lies in {stop - start} bytes, must be {expected}")
    return TensorPlace(name, DTYPES[kind], sizes, data + start, data + stop)


def _naturals(
    file_name: str, name: str, what: str, value: object, *, count: int | None = None
) -> tuple[int, ...]:
    if (
        not isinstance(value, list)
        or any(type(number) is not int or number < 0 for number in value)
        or (count is not None and len(value) != count)
    ):
        raise ModelRefused(
            f"{file_name}: tensor {name} has {what} {value!r}, must be a list of natural numbers"
        )
    return tuple(value)


def _check_cover(file_name: str, places: list[TensorPlace], data: int, file_bytes: int) -> None:
    """No gap and no overlap: a byte that no tensor claims would be no part of the model's digest."""
    reached = data
    for place in sorted(places, key=lambda place: (place.start, place.stop)):
        if place.start != reached:
            raise ModelRefused(
                f"{file_name}: tensor {place.name} begins at byte {place.start}, must begin at {reached}"
            )
        reached = place.stop
    if reached != file_bytes:
        raise ModelRefused(f"{file_name} has {file_bytes} bytes, its tensors end at {reached}")
