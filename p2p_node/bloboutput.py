"""What a worker leaves as blobs, taken piece by piece into the store.

The worker may be running a stranger's job, so nothing that it says of a blob is believed: parts must follow
one another, all of a run's blobs have a bound, and a blob is what its bytes hash to.
"""

from __future__ import annotations

from contextlib import ExitStack

from p2p_node.blobs import BlobStore
from p2p_node.blobs.sealing import SealingWriter
from p2p_node.blobs.store import BlobWriter
from protocols.blobs import Blob
from protocols.limits import BLOB_PIECE_BYTES, RUN_BLOB_BYTES_MAX, RUN_BLOBS_MAX
from workloads.frames import BlobPart

__all__ = ["OutputRefused", "OutputTaker"]


class OutputRefused(Exception):
    """A run left more than it may, or parts that make no blob."""


class OutputTaker:
    """Of one run.

    Args:
        store: where complete blobs go.
        owner: who holds on to them.
        reader: Ed25519 key of the peer that alone may open them; empty leaves them open.
        borrower: who holds on to open copies of what is sealed, while the run reads them; empty for nobody.
    """

    def __init__(self, store: BlobStore, owner: str, reader: bytes = b"", borrower: str = "") -> None:
        self._store = store
        self._owner = owner
        self._reader = reader
        self._borrower = borrower
        self._copy: BlobWriter | None = None
        self._open = ExitStack()
        self._writer: BlobWriter | SealingWriter | None = None
        self._blob: Blob | None = None
        self._offset = 0
        self._bytes_total = 0
        self._blobs_total = 0

    def take(self, part: BlobPart) -> None:
        """Take the next part.

        Raises:
            OutputRefused: it isn't the next part of a blob, or too much.
            BlobError: the store has no room.
        """
        blob = Blob(part.digest, part.size_bytes)
        writer = self._writer or self._begin(blob)
        left = blob.size_bytes - self._offset
        if blob != self._blob or part.offset != self._offset or len(part.data) != min(left, BLOB_PIECE_BYTES):
            raise OutputRefused(
                f"a part of {len(part.data)} bytes at {part.offset} of {blob.size_bytes} isn't the next one, "
                f"at {self._offset}"
            )
        writer.write(part.data)
        if self._copy is not None:
            self._copy.write(part.data)
        self._offset += len(part.data)
        if self._offset == blob.size_bytes:
            self._finish(blob, writer)

    def _begin(self, blob: Blob) -> BlobWriter | SealingWriter:
        self._bytes_total += blob.size_bytes
        self._blobs_total += 1
        if self._bytes_total > RUN_BLOB_BYTES_MAX or self._blobs_total > RUN_BLOBS_MAX:
            raise OutputRefused(
                f"a run leaves {self._blobs_total} blobs of {self._bytes_total} bytes, which must be "
                f"{RUN_BLOBS_MAX} of {RUN_BLOB_BYTES_MAX} at most"
            )
        plain = self._open.enter_context(self._store.writer())
        self._writer = self._store.sealing_writer(plain, blob, self._reader) if self._reader else plain
        if self._reader and self._borrower:
            self._store.set_private(blob, is_lent=True)
            self._store.pin(blob, self._borrower)
            self._copy = self._open.enter_context(self._store.writer())
        self._blob, self._offset = blob, 0
        return self._writer

    def _finish(self, blob: Blob, writer: BlobWriter | SealingWriter) -> None:
        if not self._reader:
            # First, so that it can't be evicted between the two.
            self._store.pin(blob, self._owner)
        found = writer.finish()
        if self._copy is not None and found == blob:
            self._copy.finish()
        if self._reader and (sealed := self._store.sealed(found, self._reader)) is not None:
            self._store.pin(sealed, self._owner)
        self.close()
        if found != blob:
            raise OutputRefused(f"what was called blob {blob.digest.hex()} is {found.digest.hex()}")

    def close(self) -> None:
        """Throw away what isn't whole."""
        self._writer = self._copy = None
        self._open.close()
