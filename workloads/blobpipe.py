"""Blobs in a worker process: read from the node's folder, written to the node through the pipe."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from protocols.blobs import Blob, piece_count, piece_range
from workloads.blobs import BlobFolder
from workloads.errors import InputRefused
from workloads.frames import BlobPart

__all__ = ["PipedBlobs"]

_STORED_S_MAX = 60.0
_POLL_S = 0.005


class PipedBlobs:
    """The node's folder, and a way to leave something there.

    Args:
        send: writes a frame to the node.
    """

    def __init__(self, send: Callable[[BlobPart], None]) -> None:
        self._send = send
        self._run: int | None = None
        self._folder = BlobFolder(Path("/nonexistent"), self._keep)
        self._written: set[Blob] = set()

    def begin(self, run: int | None, folder: Path | None) -> None:
        """From here on a workload works for this run.

        Args:
            run: by which what it writes is kept; None for nobody: what is done again is there already.
            folder: of the node's blobs; None where it has none.
        """
        self._run = run
        self._folder = BlobFolder(folder or Path("/nonexistent"), self._keep)
        self._written.clear()

    def path(self, blob: Blob) -> Path:
        """See `workloads.blobs.Blobs`. What this run has just written may be on its way to the disk."""
        give_up_at = time.monotonic() + (_STORED_S_MAX if blob in self._written else 0)
        while True:
            try:
                return self._folder.path(blob)
            except InputRefused:
                if time.monotonic() >= give_up_at:
                    raise
            time.sleep(_POLL_S)

    def read(self, blob: Blob) -> bytes:
        """See `workloads.blobs.Blobs`."""
        return self.path(blob).read_bytes()

    def read_range(self, blob: Blob, start: int, stop: int) -> bytes:
        """See `workloads.blobs.Blobs`."""
        self.path(blob)
        return self._folder.read_range(blob, start, stop)

    def write(self, data: bytes) -> Blob:
        """See `workloads.blobs.Blobs`."""
        return self._folder.write(data)

    def _keep(self, blob: Blob, data: bytes) -> None:
        if self._run is None:
            return
        view = memoryview(data)
        # An empty blob is one empty part.
        for piece in range(max(1, piece_count(blob.size_bytes))):
            place = piece_range(blob, piece) if data else range(0)
            part = bytes(view[place.start : place.stop])
            self._send(BlobPart(self._run, blob.digest, blob.size_bytes, place.start, part))
        self._written.add(blob)
