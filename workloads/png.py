"""Writes PNG images of 8-bit samples, grey or RGB; nothing else."""

from __future__ import annotations

import struct
import zlib

__all__ = ["png"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {1: 0, 3: 2}


def png(width: int, height: int, samples: bytes) -> bytes:
    """An image file.

    Args:
        width: in pixels.
        height: in pixels.
        samples: 8 bits each, row by row from the top, 1 (grey) or 3 (red, green, blue) for each pixel.

    Raises:
        ValueError: the samples don't fill the image.
    """
    channels, rest = divmod(len(samples), width * height)
    if rest or channels not in _COLOUR_TYPES:
        raise ValueError(f"{len(samples)} samples must be 1 or 3 for each of {width} x {height} pixels")
    stride = width * channels
    # Each row is preceded by its filter: 0, none.
    rows = b"".join(b"\0" + samples[at : at + stride] for at in range(0, len(samples), stride))
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")
    return _SIGNATURE + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
