"""PNG files that are what they say."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import pytest

from workloads.png import png


def chunks(file: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at < len(file):
        size, kind = struct.unpack(">I4s", file[at : at + 8])
        data, check = file[at + 8 : at + 8 + size], file[at + 8 + size : at + 12 + size]
        assert struct.pack(">I", zlib.crc32(kind + data)) == check
        yield kind, data
        at += 12 + size


@pytest.mark.parametrize(("channels", "colour"), [(1, 0), (3, 2)])
def test_samples_come_back(channels: int, colour: int) -> None:
    samples = bytes(range(5 * 3 * channels))
    file = png(5, 3, samples)
    assert file.startswith(b"\x89PNG\r\n\x1a\n")
    (first, header), (second, data), last = chunks(file)
    assert (first, second, last) == (b"IHDR", b"IDAT", (b"IEND", b""))
    assert header == struct.pack(">IIBBBBB", 5, 3, 8, colour, 0, 0, 0)
    stride = 5 * channels
    rows = [samples[i : i + stride] for i in range(0, len(samples), stride)]
    assert zlib.decompress(data) == b"".join(b"\0" + row for row in rows)


@pytest.mark.parametrize("count", [0, 14, 30, 60])
def test_samples_must_fill_the_picture(count: int) -> None:
    with pytest.raises(ValueError, match="must be 1 or 3"):
        png(5, 3, bytes(count))
