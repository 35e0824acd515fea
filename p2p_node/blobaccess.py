"""The node's own store, as tasks and results see it: what a job file names, and what a finished job left."""

from __future__ import annotations

from pathlib import Path

from p2p_node.blobs import BlobError, BlobStore
from protocols.blobs import Blob
from workloads.errors import InputRefused

__all__ = ["StoreBlobs"]


class StoreBlobs:
    """`workloads.blobs.Blobs` over the store. Blocks on the disk."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store

    def path(self, blob: Blob) -> Path:
        """See `workloads.blobs.Blobs`."""
        try:
            return self._store.path(blob)
        except BlobError as error:
            raise InputRefused(str(error)) from error

    def read(self, blob: Blob) -> bytes:
        """See `workloads.blobs.Blobs`."""
        return self.path(blob).read_bytes()

    def read_range(self, blob: Blob, start: int, stop: int) -> bytes:
        """See `workloads.blobs.Blobs`."""
        with self.path(blob).open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def write(self, data: bytes) -> Blob:
        """See `workloads.blobs.Blobs`."""
        try:
            return self._store.add(data)
        except BlobError as error:
            raise InputRefused(str(error)) from error
