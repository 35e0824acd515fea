"""Light as one word for each pixel, and as an OpenEXR file.

A word has three mantissas of 9 bits and a common exponent of 5, as graphics processors have it. Source: the
OpenGL extension EXT_texture_shared_exponent; OpenEXR's file layout document.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

__all__ = ["exr"]

_MAGIC = 20_000_630
_HALF = 1
_CHANNELS = ("B", "G", "R")


def exr(width: int, height: int, words: Sequence[int]) -> bytes:
    """An OpenEXR image: half floats, uncompressed, scan line by scan line.

    Args:
        width: in pixels.
        height: in pixels.
        words: one for each pixel, row by row from the top, as `workloads.render.trace.shared_exponent`.

    Raises:
        ValueError: the words don't fill the image.
    """
    packed = np.array(words, dtype=np.uint32)
    if packed.size != width * height:
        raise ValueError(f"{packed.size} words must be one for each of {width} x {height} pixels")
    scale = np.exp2((packed >> 27).astype(np.float64) - 24.0)
    red, green, blue = (((packed >> shift) & 511) * scale for shift in (0, 9, 18))
    lines = np.stack([blue, green, red], axis=1).reshape(height, width, 3).transpose(0, 2, 1)
    data = np.minimum(lines, 65_504.0).astype("<f2")
    window = struct.pack("<4i", 0, 0, width - 1, height - 1)
    channels = b"".join(name.encode() + b"\0" + struct.pack("<iB3xii", _HALF, 0, 1, 1) for name in _CHANNELS)
    header = struct.pack("<II", _MAGIC, 2) + b"".join(
        (
            _attribute("channels", "chlist", channels + b"\0"),
            _attribute("compression", "compression", b"\0"),
            _attribute("dataWindow", "box2i", window),
            _attribute("displayWindow", "box2i", window),
            _attribute("lineOrder", "lineOrder", b"\0"),
            _attribute("pixelAspectRatio", "float", struct.pack("<f", 1.0)),
            _attribute("screenWindowCenter", "v2f", bytes(8)),
            _attribute("screenWindowWidth", "float", struct.pack("<f", 1.0)),
            b"\0",
        )
    )
    line_bytes = width * len(_CHANNELS) * 2
    start = len(header) + 8 * height
    offsets = (start + line * (8 + line_bytes) for line in range(height))
    rows = (struct.pack("<ii", line, line_bytes) + data[line].tobytes() for line in range(height))
    return header + b"".join(struct.pack("<Q", offset) for offset in offsets) + b"".join(rows)


def _attribute(name: str, kind: str, value: bytes) -> bytes:
    return name.encode() + b"\0" + kind.encode() + b"\0" + struct.pack("<I", len(value)) + value
