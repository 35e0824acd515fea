"""What a node must not forget, in one SQLite file.

The protocol core asks for changes to named tables; this module makes all changes of one call in
one transaction that has reached the disk when the call returns, because a signed voucher must
never be sent before it is written. Changes to tables that owe nobody anything (`EASY_TABLES`) reach it with
the next such transaction. It does not know what keys and values mean.

Calls must not overlap; which thread makes them does not matter.
"""

# ruff: noqa: S608 - the only text put into SQL is a table's name, and `_check` passes none but TABLES

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from p2p_node.errors import UserError
from protocols.effects import Persist

__all__ = ["EASY_TABLES", "TABLES", "Store", "StoreError"]

TABLES = frozenset(
    {
        "meta",
        "jobs",
        "contracts",
        "outbox",
        "vouchers",
        "registry",
        "convictions",
        "receipts",
        "addresses",
        "standings",
        "frauds",
        "wholes",
        "lanes",
        "drafts",
        "recent",
    }
)

EASY_TABLES = frozenset({"jobs", "registry", "addresses", "contracts", "standings", "drafts", "recent"})
"""A power cut (not the death of the process) may take back their newest changes: what a list shows, what the
network tells again, what we think of peers, and contracts on which nothing was paid yet, since a voucher
takes what it is for to the disk with it. Waiting for the disk would hold up each job by milliseconds; a
client's job waits for it beside its work, by `Store.wait_for_disk`."""

PAGE_ROWS = 256
_BUSY_TIMEOUT_S = 5.0
_PRIMARY_CODE = 0xFF
# With less than FULL, a power cut may take back a transaction after its voucher was sent.
_WAIT_FOR_DISK = "PRAGMA synchronous = FULL"
_DONT_WAIT = "PRAGMA synchronous = NORMAL"

# Step i takes a file from user_version i to i + 1. Steps are only ever appended.
_COLUMNS = "(key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"
_FIRST_TABLES = TABLES - {"standings", "frauds", "wholes", "lanes", "drafts", "recent"}
_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    tuple(f"CREATE TABLE {table} {_COLUMNS}" for table in sorted(_FIRST_TABLES)),
    (f"CREATE TABLE standings {_COLUMNS}",),
    (f"CREATE TABLE frauds {_COLUMNS}",),
    (f"CREATE TABLE wholes {_COLUMNS}",),
    (f"CREATE TABLE lanes {_COLUMNS}", f"CREATE TABLE drafts {_COLUMNS}"),
    (f"CREATE TABLE recent {_COLUMNS}",),
)


class StoreError(UserError):
    """The file can't be read, or was written by a newer release."""


class Store:
    """The open file. Use `open`, then `close`, or a ``with`` block."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection

    @classmethod
    def open(cls, path: Path) -> Store:
        """Open or make the file at ``path`` and bring it to the present schema.

        Raises:
            StoreError: the file is damaged, of a newer release, or out of reach.
        """
        try:
            connection = sqlite3.connect(
                path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise StoreError(f"can't open {path}: {error}") from error
        store = cls(path, connection)
        try:
            with store._explained():
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute(_WAIT_FOR_DISK)
                store._migrate()
        except BaseException:
            connection.close()
            raise
        return store

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file. Closing twice is fine."""
        self._connection.close()

    def apply(self, changes: Sequence[Persist]) -> None:
        """Make all ``changes``, in order, in one transaction, durable on return unless all tables are easy.

        Raises:
            ValueError: a change names an unknown table; nothing was changed.
            StoreError: the file is damaged or the disk is full; nothing was changed.
        """
        for change in changes:
            _check(change.table)
        if not changes:
            return
        is_easy = all(map(_is_easy, changes))
        with (
            self._explained(),
            self._not_waiting() if is_easy else contextlib.nullcontext(),
            self._transaction(),
        ):
            for change in changes:
                if change.value is None:
                    self._connection.execute(f"DELETE FROM {change.table} WHERE key = ?", (change.key,))
                else:
                    self._connection.execute(
                        f"INSERT INTO {change.table} (key, value) VALUES (?, ?) "
                        "ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                        (change.key, change.value),
                    )

    def wait_for_disk(self) -> None:
        """Return once all that was applied has reached the disk. May overlap other calls, in any thread.

        Raises:
            StoreError: the disk failed.
        """
        try:
            # SQLite appends to this file, and waits for it alone when it waits.
            descriptor = os.open(f"{self.path}-wal", os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            os.fsync(descriptor)
        except OSError as error:
            raise StoreError(f"can't use {self.path}: {error.strerror}") from error
        finally:
            os.close(descriptor)

    def get(self, table: str, key: bytes) -> bytes | None:
        """The value under ``key``, or None.

        Raises:
            ValueError: there is no such table.
            StoreError: the file is damaged.
        """
        _check(table)
        with self._explained():
            row = self._connection.execute(f"SELECT value FROM {table} WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def load(self, table: str) -> dict[bytes, bytes]:
        """All of a table, in the order of its keys.

        Raises:
            ValueError: there is no such table.
            StoreError: the file is damaged.
        """
        return dict(self.items(table))

    def page(
        self, table: str, *, after: bytes | None = None, rows_max: int = PAGE_ROWS
    ) -> list[tuple[bytes, bytes]]:
        """At most ``rows_max`` entries whose keys follow ``after``, in the order of their keys.

        Raises:
            ValueError: there is no such table, or ``rows_max`` is below 1.
            StoreError: the file is damaged.
        """
        _check(table)
        if rows_max < 1:
            raise ValueError(f"rows_max must be >= 1, got {rows_max}")
        where, parameters = ("", (rows_max,)) if after is None else ("WHERE key > ?", (after, rows_max))
        with self._explained():
            return self._connection.execute(
                f"SELECT key, value FROM {table} {where} ORDER BY key LIMIT ?", parameters
            ).fetchall()

    def keys_under(self, table: str, prefix: bytes) -> list[bytes]:
        """The keys of a table that begin with ``prefix``, in order; the values stay where they are.

        Raises:
            ValueError: there is no such table.
            StoreError: the file is damaged.
        """
        _check(table)
        with self._explained():
            # Keys come in order, so the first without the prefix is the end: no other is looked at.
            rows = self._connection.execute(f"SELECT key FROM {table} WHERE key >= ? ORDER BY key", (prefix,))
            return list(itertools.takewhile(lambda key: key.startswith(prefix), (key for (key,) in rows)))

    def keys(self, table: str) -> list[bytes]:
        """All keys of a table, in order.

        Raises:
            ValueError: there is no such table.
            StoreError: the file is damaged.
        """
        return self.keys_under(table, b"")

    def under(self, table: str, prefix: bytes) -> dict[bytes, bytes]:
        """The entries of a table whose keys begin with ``prefix``, in the order of their keys.

        Raises:
            ValueError: there is no such table.
            StoreError: the file is damaged.
        """
        found = ((key, self.get(table, key)) for key in self.keys_under(table, prefix))
        return {key: value for key, value in found if value is not None}

    def items(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """All of a table, a page at a time; changes made meanwhile behind the reader are not seen.

        Raises:
            ValueError: there is no such table.
            StoreError: the file is damaged.
        """
        after: bytes | None = None
        while page := self.page(table, after=after):
            yield from page
            after = page[-1][0]

    def count(self, table: str) -> int:
        """Entries in a table.

        Raises:
            ValueError: there is no such table.
            StoreError: the file is damaged.
        """
        _check(table)
        with self._explained():
            (entries,) = self._connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        return int(entries)

    def _migrate(self) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > len(_MIGRATIONS):
            raise StoreError(
                f"{self.path} has schema version {version}, and this release knows versions up to "
                f"{len(_MIGRATIONS)}; use the newer p2p-node that wrote it"
            )
        for step in range(version, len(_MIGRATIONS)):
            with self._transaction():
                for statement in _MIGRATIONS[step]:
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA user_version = {step + 1}")

    @contextlib.contextmanager
    def _not_waiting(self) -> Iterator[None]:
        # The log is written in order, so the next commit that waits takes these to the disk too.
        self._connection.execute(_DONT_WAIT)
        try:
            yield
        finally:
            self._connection.execute(_WAIT_FOR_DISK)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            # SQLite has rolled back by itself after some faults, such as a full disk.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:
            # Misuse, such as a closed store: our bug, not the file's fault.
            raise
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise StoreError(f"can't use {self.path}: {error}{_remedy(error)}") from error
            raise StoreError(
                f"{self.path} is damaged ({error}); keep what can be read of it with: p2p-node store salvage"
            ) from error


def _remedy(error: sqlite3.OperationalError) -> str:
    if error.sqlite_errorcode & _PRIMARY_CODE not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return ""
    return "; make room on the disk and start again: what was promised is written, and nothing else was said"


def _is_easy(change: Persist) -> bool:
    # What was acknowledged and isn't struck off is only sent once more.
    return change.table in EASY_TABLES or (change.table == "outbox" and change.value is None)


def _check(table: str) -> None:
    # Table names go into SQL as text, so none but these may pass.
    if table not in TABLES:
        raise ValueError(f"table {table!r} must be one of {', '.join(sorted(TABLES))}")
