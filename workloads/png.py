"""Writes PNG images of 8-bit samples, grey or RGB, still or moving; nothing else."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

__all__ = ["animation", "png"]

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
    header, data = _image(width, height, samples)
    return _file((b"IHDR", header), (b"IDAT", data))


def animation(width: int, height: int, frames: Sequence[bytes], *, frame_ms: int) -> bytes:
    """An animated PNG that starts again when it is over; what knows no animation shows the first frame.

    Args:
        width: in pixels.
        height: in pixels.
        frames: of at least one, each as the samples of `png`.
        frame_ms: how long each is shown.

    Raises:
        ValueError: a frame doesn't fill the image.

    Source: the PNG specification, third edition, section 11.3.6.
    """
    parts: list[tuple[bytes, bytes]] = []
    number = 0
    for index, samples in enumerate(frames):
        header, data = _image(width, height, samples)
        if not index:
            parts += [(b"IHDR", header), (b"acTL", struct.pack(">II", len(frames), 0))]
        control = struct.pack(">IIIIIHHBB", number, width, height, 0, 0, frame_ms, 1_000, 0, 0)
        parts.append((b"fcTL", control))
        parts.append((b"fdAT", struct.pack(">I", number + 1) + data) if index else (b"IDAT", data))
        number += 2 if index else 1
    return _file(*parts)


def _image(width: int, height: int, samples: bytes) -> tuple[bytes, bytes]:
    """The header and the compressed rows."""
    channels, rest = divmod(len(samples), width * height)
    if rest or channels not in _COLOUR_TYPES:
        raise ValueError(f"{len(samples)} samples must be 1 or 3 for each of {width} x {height} pixels")
    stride = width * channels
    # Each row is preceded by its filter: 0, none.
    rows = b"".join(b"\0" + samples[at : at + stride] for at in range(0, len(samples), stride))
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    return header, zlib.compress(rows, 9)


def _file(*parts: tuple[bytes, bytes]) -> bytes:
    return _SIGNATURE + b"".join(_chunk(kind, data) for kind, data in (*parts, (b"IEND", b"")))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
