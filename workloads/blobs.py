"""How a workload reads and writes content that is too large for a job's input or output.

An input names blobs; the node has fetched and checked them before the work begins. An output names blobs by
its units: ten words for each. What is named so is handed to the node, and reaches the client through it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from protocols.blobs import Blob, blob_of
from workloads.errors import InputRefused

__all__ = ["BLOB_WORDS", "NO_BLOBS", "BlobFolder", "Blobs", "MemoryBlobs", "blob_from_words", "blob_words"]

BLOB_WORDS = 10
"""Output units that name one blob: eight of its digest, two of its size, little-endian."""

_WORDS = struct.Struct(f"<{BLOB_WORDS}I")
_NAME = struct.Struct("<32sQ")


class Blobs(Protocol):
    """Where a workload finds what its input names, and leaves what its output names."""

    def path(self, blob: Blob) -> Path:
        """A file with the blob's bytes, to be read only.

        Raises:
            InputRefused: it isn't here.
        """

    def read(self, blob: Blob) -> bytes:
        """All of a blob.

        Raises:
            InputRefused: it isn't here.
        """

    def read_range(self, blob: Blob, start: int, stop: int) -> bytes:
        """The bytes from ``start`` to ``stop``, both within the blob: some items of many.

        Raises:
            InputRefused: it isn't here.
        """

    def write(self, data: bytes) -> Blob:
        """Hand content over; what it is called."""


class BlobFolder:
    """A folder in which each blob is a file called by its digest in hex.

    The node has checked what lies there. It keeps to itself what is in that folder: a workload can only read
    what it can name.

    Args:
        folder: see above.
        send: told of what a workload writes.
    """

    def __init__(self, folder: Path, send: Callable[[Blob, bytes], None]) -> None:
        self._folder = folder
        self._send = send

    def path(self, blob: Blob) -> Path:
        """See `Blobs`."""
        found = self._folder / blob.digest.hex()
        if not found.is_file() or found.stat().st_size != blob.size_bytes:
            raise InputRefused(f"blob {blob.digest.hex()} of {blob.size_bytes} bytes isn't here")
        return found

    def read(self, blob: Blob) -> bytes:
        """See `Blobs`."""
        return self.path(blob).read_bytes()

    def read_range(self, blob: Blob, start: int, stop: int) -> bytes:
        """See `Blobs`."""
        with self.path(blob).open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def write(self, data: bytes) -> Blob:
        """See `Blobs`."""
        blob = blob_of(data)
        self._send(blob, data)
        return blob


class MemoryBlobs:
    """Blobs held in memory, for callers that run a workload in their own process."""

    def __init__(self, *contents: bytes) -> None:
        self._contents = {blob_of(data): data for data in contents}

    def contents(self) -> list[bytes]:
        """All of them, in the order in which they came."""
        return list(self._contents.values())

    def path(self, blob: Blob) -> Path:
        """See `Blobs`; there are no files here."""
        raise InputRefused(f"blob {blob.digest.hex()} isn't in a file")

    def read(self, blob: Blob) -> bytes:
        """See `Blobs`."""
        if blob not in self._contents:
            raise InputRefused(f"blob {blob.digest.hex()} of {blob.size_bytes} bytes isn't here")
        return self._contents[blob]

    def read_range(self, blob: Blob, start: int, stop: int) -> bytes:
        """See `Blobs`."""
        return self.read(blob)[start:stop]

    def write(self, data: bytes) -> Blob:
        """See `Blobs`."""
        blob = blob_of(data)
        self._contents[blob] = data
        return blob


class _NoBlobs:
    """For workloads that name none."""

    def path(self, blob: Blob) -> Path:
        raise InputRefused(f"blob {blob.digest.hex()} isn't here: nobody gave any")

    def read(self, blob: Blob) -> bytes:
        raise InputRefused(f"blob {blob.digest.hex()} isn't here: nobody gave any")

    def read_range(self, blob: Blob, start: int, stop: int) -> bytes:
        raise InputRefused(f"blob {blob.digest.hex()} isn't here: nobody gave any")

    def write(self, data: bytes) -> Blob:
        raise InputRefused(f"{len(data)} bytes can't be left here: nobody takes any")


NO_BLOBS: Blobs = _NoBlobs()


def blob_words(blob: Blob) -> list[int]:
    """The output units that name a blob."""
    return list(_WORDS.unpack(_NAME.pack(blob.digest, blob.size_bytes)))


def blob_from_words(words: Sequence[int]) -> Blob:
    """The blob that output units name.

    Raises:
        InputRefused: there are not `BLOB_WORDS` of them.
    """
    if len(words) != BLOB_WORDS:
        raise InputRefused(f"{len(words)} words must be {BLOB_WORDS} to name a blob")
    return Blob(*_NAME.unpack(_WORDS.pack(*words)))
