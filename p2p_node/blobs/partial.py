"""A blob on its way: a file that fills with pieces in any order, and what is known of them.

Beside the data lie the index and a mark for each piece that is there, written after the piece. After a crash
the marked pieces are checked again, so a mark that reached the disk before its piece does no harm.
"""

from __future__ import annotations

import os
from pathlib import Path

from p2p_node.blobs.errors import BlobMissing
from protocols.blobs import Blob, index_blob, piece_count, piece_digest, piece_range
from protocols.digest import DIGEST_BYTES
from protocols.errors import Rejected

__all__ = ["PartialBlob", "PieceRejected", "is_index_of"]

_HERE = 1


class PieceRejected(Rejected):
    """What was sent isn't what the blob's name promises."""

    points = 40


def is_index_of(blob: Blob, index: bytes) -> bool:
    """Whether these are the digests of a blob's pieces, in order."""
    if len(index) != DIGEST_BYTES * piece_count(blob.size_bytes):
        return False
    pieces = (index[at : at + DIGEST_BYTES] for at in range(0, len(index), DIGEST_BYTES))
    return index_blob(blob.size_bytes, pieces) == blob


class PartialBlob:
    """See above. Its methods block on the disk: call them from a thread, one at a time but for `read`.

    Args:
        folder: of blobs on their way.
        blob: what it will be.
    """

    def __init__(self, folder: Path, blob: Blob) -> None:
        self.blob = blob
        self.path = folder / blob.digest.hex()
        self.index_path = self.path.with_suffix(".index")
        self._marks_path = self.path.with_suffix(".have")
        self._marks = bytearray(piece_count(blob.size_bytes))
        self.index: bytes | None = None
        """What each piece hashes to; None until a source told us."""
        self.bytes_here = 0
        """How much of the blob is here."""
        self._restore()

    @property
    def missing(self) -> list[int]:
        """Pieces that aren't here, in order."""
        return [piece for piece, mark in enumerate(self._marks) if not mark]

    def has(self, piece: int) -> bool:
        """Whether a piece is here."""
        return 0 <= piece < len(self._marks) and bool(self._marks[piece])

    def held(self) -> bytes:
        """One byte for each piece, 1 where it is here."""
        return bytes(self._marks)

    def accept_index(self, index: bytes) -> None:
        """Take the index from a source.

        Raises:
            PieceRejected: it isn't this blob's.
        """
        if not is_index_of(self.blob, index):
            raise PieceRejected(f"index of {len(index)} bytes isn't that of blob {self.blob.digest.hex()}")
        self.index_path.write_bytes(index)
        self.index = index

    def write(self, piece: int, data: bytes) -> None:
        """Take a piece from a source.

        Raises:
            PieceRejected: it isn't what the index says; nothing was written.
            ValueError: there is no such piece, or no index yet.
        """
        place = piece_range(self.blob, piece)
        if self.index is None:
            raise ValueError("a piece can't be checked before the index is here")
        if len(data) != len(place) or piece_digest(data) != self._digest(self.index, piece):
            raise PieceRejected(
                f"piece {piece} of blob {self.blob.digest.hex()} isn't what its name promises"
            )
        _write_at(self.path, place.start, data, to_disk=True)
        _write_at(self._marks_path, piece, bytes((_HERE,)))
        self._mark(piece, _HERE)

    def read(self, piece: int) -> bytes:
        """A piece that is here.

        Raises:
            BlobMissing: it isn't, or no longer what it was.
        """
        if self.index is not None and self.has(piece):
            place = piece_range(self.blob, piece)
            try:
                with self.path.open("rb") as file:
                    data = os.pread(file.fileno(), len(place), place.start)
            except OSError:
                data = b""
            if len(data) == len(place) and piece_digest(data) == self._digest(self.index, piece):
                return data
            self._mark(piece, 0)
        raise BlobMissing(f"piece {piece} of blob {self.blob.digest.hex()} isn't here")

    def discard(self) -> None:
        """Remove what is left of it."""
        for path in (self.path, self.index_path, self._marks_path):
            path.unlink(missing_ok=True)

    def _restore(self) -> None:
        try:
            index, marks = self.index_path.read_bytes(), self._marks_path.read_bytes()
        except FileNotFoundError:
            index, marks = b"", b""
        if is_index_of(self.blob, index):
            self.index = index
            for piece, mark in enumerate(marks[: len(self._marks)]):
                if mark == _HERE:
                    self._mark(piece, _HERE)
                    self._check(piece)
        else:
            self.discard()
        # The file exists from here on, with its marks, however few pieces follow.
        for path in (self.path, self._marks_path):
            path.touch(mode=0o600)

    def _mark(self, piece: int, mark: int) -> None:
        self.bytes_here += (mark - self._marks[piece]) * len(piece_range(self.blob, piece))
        self._marks[piece] = mark

    def _check(self, piece: int) -> None:
        try:
            self.read(piece)
        except BlobMissing:
            _write_at(self._marks_path, piece, b"\0")

    @staticmethod
    def _digest(index: bytes, piece: int) -> bytes:
        return index[piece * DIGEST_BYTES : (piece + 1) * DIGEST_BYTES]


def _write_at(path: Path, offset: int, data: bytes, *, to_disk: bool = False) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        written = 0
        while written < len(data):
            written += os.pwrite(descriptor, memoryview(data)[written:], offset + written)
        if to_disk and hasattr(os, "posix_fadvise"):
            # Linux begins to write what it is told to forget, and keeps it until then: at the end of a large
            # blob nearly all of it is on the disk, and little waits for it in memory.
            os.posix_fadvise(descriptor, offset, len(data), os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
