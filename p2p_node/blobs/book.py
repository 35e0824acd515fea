"""What must outlive the process beside the blobs themselves: when each was last used, and who holds on to it.

A file of its own in the store's folder rather than tables of the node's: it may be lost with the blobs it
speaks of, and both can be moved or deleted together. Losing it loses pins; the blobs are found again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from p2p_node.blobs.errors import BlobStoreBroken, StoreFull
from protocols.blobs import Blob

__all__ = ["BlobBook", "Entry"]

log = structlog.get_logger(__name__)

_BUSY_TIMEOUT_S = 5.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS blobs (
    digest BLOB PRIMARY KEY, size_bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, used_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pins (
    owner TEXT NOT NULL, digest BLOB NOT NULL, PRIMARY KEY (owner, digest)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS private (digest BLOB PRIMARY KEY, is_lent INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sealed (
    digest BLOB NOT NULL, reader BLOB NOT NULL, sealed BLOB NOT NULL, size_bytes INTEGER NOT NULL,
    PRIMARY KEY (digest, reader)
) WITHOUT ROWID;
"""


@dataclass(slots=True)
class Entry:
    """A complete blob. ``mtime_ns`` is its file's: a change means that somebody else wrote to it."""

    size_bytes: int
    mtime_ns: int
    used_ms: int


class BlobBook:
    """The open file. One caller at a time, from any thread.

    Those that change it raise `StoreFull` if the disk is full.
    """

    def __init__(self, path: Path) -> None:
        """Open or make the file at ``path``; one that is damaged is replaced by an empty one.

        Raises:
            BlobStoreBroken: it can't be had.
        """
        try:
            self._connection = _open(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise BlobStoreBroken(f"can't open {path}: {error}") from error
            log.warning("the record of blobs is damaged and starts anew: pins are lost", why=str(error))
            path.unlink()
            self._connection = _open(path)

    def close(self) -> None:
        """Let go of the file. Closing twice is fine."""
        self._connection.close()

    def entries(self) -> Iterator[tuple[bytes, Entry]]:
        """Every blob that was complete."""
        for digest, *rest in self._connection.execute("SELECT * FROM blobs ORDER BY digest"):
            yield digest, Entry(*rest)

    def keep(self, digest: bytes, entry: Entry) -> None:
        """Note a blob, or what has changed about it."""
        self._change(
            "INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, ?)",
            (digest, entry.size_bytes, entry.mtime_ns, entry.used_ms),
        )

    def forget(self, digest: bytes) -> None:
        """The blob is gone; who wants it still does."""
        self._change("DELETE FROM blobs WHERE digest = ?", (digest,))

    def pins(self) -> Iterator[tuple[str, bytes]]:
        """Every owner with what it holds."""
        yield from self._connection.execute("SELECT owner, digest FROM pins ORDER BY owner, digest")

    def pin(self, owner: str, digest: bytes) -> None:
        """Note a pin."""
        self._change("INSERT OR IGNORE INTO pins VALUES (?, ?)", (owner, digest))

    def unpin(self, owner: str, digest: bytes) -> None:
        """Strike a pin out."""
        self._change("DELETE FROM pins WHERE owner = ? AND digest = ?", (owner, digest))

    def private(self) -> Iterator[tuple[bytes, bool]]:
        """Every blob that isn't for everybody, and whether it was lent to us for a run."""
        for digest, is_lent in self._connection.execute("SELECT digest, is_lent FROM private"):
            yield digest, bool(is_lent)

    def set_private(self, digest: bytes, is_lent: bool) -> None:
        """Note that a blob isn't for everybody."""
        self._change("INSERT OR REPLACE INTO private VALUES (?, ?)", (digest, int(is_lent)))

    def forget_private(self, digest: bytes) -> None:
        """Strike that out."""
        self._change("DELETE FROM private WHERE digest = ?", (digest,))

    def sealed(self, digest: bytes, reader: bytes) -> Blob | None:
        """What a blob is as sealed to a reader."""
        row = self._connection.execute(
            "SELECT sealed, size_bytes FROM sealed WHERE digest = ? AND reader = ?", (digest, reader)
        ).fetchone()
        return Blob(*row) if row is not None else None

    def keep_sealed(self, digest: bytes, reader: bytes, sealed: Blob) -> None:
        """Note it."""
        values = (digest, reader, sealed.digest, sealed.size_bytes)
        self._change("INSERT OR REPLACE INTO sealed VALUES (?, ?, ?, ?)", values)

    def forget_sealed(self, sealed: bytes) -> None:
        """The sealed blob is gone."""
        self._change("DELETE FROM sealed WHERE sealed = ?", (sealed,))

    def _change(self, statement: str, values: tuple[Any, ...]) -> None:
        try:
            self._connection.execute(statement, values)
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise StoreFull(f"the disk of the blob store is full: {error}") from error
            raise BlobStoreBroken(f"can't write the blob store's records: {error}") from error


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        # A power cut may take back the newest lines, never more: the blobs are still there.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(_SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection
