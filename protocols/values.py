"""What a tensor is to the protocol: an element type, a shape and little-endian bytes in row-major order.

Its digest is the same whoever computes it, on whatever device, and needs no library of tensors: whoever
judges a dispute offline hashes bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Final

from blake3 import blake3

from protocols.digest import tagged_header

__all__ = ["DIMENSIONS_MAX", "ELEMENT_BYTES", "value_bytes", "value_digest", "value_header"]

ELEMENT_BYTES: Final[Mapping[str, int]] = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "uint8": 1,
}
"""Bytes of one element, by type."""

DIMENSIONS_MAX = 8
_ELEMENTS_MAX = 1 << 40


def value_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes that a value takes.

    Raises:
        ValueError: the type is not one of `ELEMENT_BYTES`, there are more than `DIMENSIONS_MAX` dimensions,
            one is negative, or there are more than 2**40 elements.
    """
    if dtype not in ELEMENT_BYTES:
        raise ValueError(f"dtype {dtype!r} must be one of {sorted(ELEMENT_BYTES)}")
    if len(shape) > DIMENSIONS_MAX or any(not 0 <= size <= _ELEMENTS_MAX for size in shape):
        raise ValueError(f"shape {shape} must have at most {DIMENSIONS_MAX} dimensions, none negative")
    elements = math.prod(shape)
    if elements > _ELEMENTS_MAX:
        raise ValueError(f"shape {shape} has more than {_ELEMENTS_MAX} elements")
    return elements * ELEMENT_BYTES[dtype]


def value_digest(dtype: str, shape: tuple[int, ...], data: bytes | bytearray | memoryview) -> bytes:
    """The 32-byte digest of a value: ``tagged("p2p-node/value/1", dtype, u64 of each size, data)``.

    Args:
        dtype: one of `ELEMENT_BYTES`.
        shape: empty for a single number.
        data: little-endian elements in row-major order; not copied, so a memory map will do.

    Raises:
        ValueError: as `value_bytes`, or ``data`` has another length.
    """
    size = value_bytes(dtype, shape)
    view = memoryview(data).cast("B")
    if len(view) != size:
        raise ValueError(f"{dtype} {shape} takes {size} bytes, got {len(view)}")
    hasher = blake3(value_header(dtype, shape))
    hasher.update(view)
    return hasher.digest()


def value_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """What is hashed before the data, for those who have it in pieces.

    Raises:
        ValueError: as `value_bytes`.
    """
    sizes = struct.pack(f"<{len(shape)}Q", *shape)
    return tagged_header("p2p-node/value/1", dtype.encode(), sizes, last_bytes=value_bytes(dtype, shape))
