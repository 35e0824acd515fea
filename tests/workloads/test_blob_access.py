"""Where workloads read blobs: all of one, or a range."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocols.blobs import blob_of
from workloads.blobs import NO_BLOBS, BlobFolder, MemoryBlobs
from workloads.errors import InputRefused

DATA = bytes(range(200))


def test_a_range_of_a_blob_is_read_without_the_rest(tmp_path: Path) -> None:
    blob = blob_of(DATA)
    (tmp_path / blob.digest.hex()).write_bytes(DATA)
    for blobs in (BlobFolder(tmp_path, lambda *_: None), MemoryBlobs(DATA)):
        assert blobs.read_range(blob, 10, 20) == DATA[10:20]
        assert blobs.read_range(blob, 0, 200) == blobs.read(blob) == DATA
        with pytest.raises(InputRefused, match="isn't here"):
            blobs.read_range(blob_of(b"other"), 0, 1)
    with pytest.raises(InputRefused, match="nobody gave any"):
        NO_BLOBS.read_range(blob, 0, 1)


def test_what_is_held_in_memory_is_listed_in_order() -> None:
    blobs = MemoryBlobs(b"first")
    blobs.write(b"second")
    assert blobs.contents() == [b"first", b"second"]
