"""A store whose file is damaged: what can still be read of it goes into a new one, and the old one is kept.

SQLite reads a table through pages, and one bad page hides what lies under it. So each table is entered at
many places, from both ends of each. What is read may still be wrong where the file was overwritten inside a
row; signed rows are then refused when they are used, and the others when they don't parse.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from p2p_node.store import TABLES, Store
from protocols.effects import Persist

__all__ = ["Salvaged", "salvage"]

_SIDE_FILES = ("", "-wal", "-shm")
_BATCH_ROWS = 1_000
_ENTRIES = 256
"""Places at which a table is entered: keys are hashes, so their first bytes spread evenly."""


@dataclass(frozen=True, slots=True)
class Salvaged:
    """What was done.

    Args:
        rows: found, by table; those of an empty table are left out.
        unreadable: tables of which a part, or all, couldn't be read.
        damaged: where the old file is now.
    """

    rows: dict[str, int]
    unreadable: tuple[str, ...]
    damaged: Path


def salvage(path: Path) -> Salvaged:
    """Put a new store with what can be read of the old one in its place.

    Args:
        path: of a store that no process has open.

    Raises:
        StoreError: the new one can't be written.
        OSError: the old one can't be moved.
    """
    rows: dict[str, int] = {}
    unreadable: list[str] = []
    fresh = path.with_name(f"{path.name}.salvaged")
    _remove(fresh)
    with Store.open(fresh) as store, contextlib.closing(sqlite3.connect(path)) as old:
        # A row whose bytes say that they are text needn't be any.
        old.text_factory = bytes
        for table in sorted(TABLES):
            found, is_whole = _read(old, table)
            changes = [Persist(table, key, value) for key, value in found.items()]
            for first in range(0, len(changes), _BATCH_ROWS):
                store.apply(changes[first : first + _BATCH_ROWS])
            if found:
                rows[table] = len(found)
            if not is_whole:
                unreadable.append(table)
    damaged = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    for suffix in _SIDE_FILES:
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(damaged.with_name(damaged.name + suffix))
    for suffix in _SIDE_FILES:
        with contextlib.suppress(FileNotFoundError):
            fresh.with_name(fresh.name + suffix).rename(path.with_name(path.name + suffix))
    return Salvaged(rows, tuple(unreadable), damaged)


def _read(old: sqlite3.Connection, table: str) -> tuple[dict[bytes, bytes], bool]:
    """The rows of one table that can be read, and whether those are all."""
    found: dict[bytes, bytes] = {}
    is_whole = True
    for entry in range(_ENTRIES):
        low = bytes([entry]) if entry else b""
        high = bytes([entry + 1]) if entry + 1 < _ENTRIES else None
        for order in ("ASC", "DESC"):
            try:
                for key, value in _rows(old, table, low, high, order):
                    if isinstance(key, bytes) and isinstance(value, bytes):
                        found[key] = value
                break  # From one end to the other: nothing is left for the other way.
            except sqlite3.Error:
                is_whole = False
    return found, is_whole


def _rows(
    old: sqlite3.Connection, table: str, low: bytes, high: bytes | None, order: str
) -> Iterator[tuple[object, object]]:
    where, parameters = ("key >= ?", (low,)) if high is None else ("key >= ? AND key < ?", (low, high))
    # The name is one of TABLES, and the order one of two.
    yield from old.execute(
        f"SELECT key, value FROM {table} WHERE {where} ORDER BY key {order}",  # noqa: S608
        parameters,
    )


def _remove(path: Path) -> None:
    for suffix in _SIDE_FILES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)
