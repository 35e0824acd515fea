"""Items of a batch in files: texts out of JSON lines, Parquet or plain lines, results as JSON lines.

Files are read on the client's side, where the job file lies. What is handed to a node has one form: lines of
JSON, each an item's id and text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from p2p_node.errors import UserError

__all__ = ["Item", "json_lines", "pack_items", "read_items", "unpack_items"]

LINE_BYTES_MAX = 1 << 20
ITEMS_MAX = 1_000_000
ID_BYTES_MAX = 256
_JSON_LINES = (".jsonl", ".ndjson")
_PARQUET = ".parquet"
_PLAIN = (".txt", ".text", "")


@dataclass(frozen=True, slots=True)
class Item:
    """One text and what its owner calls it."""

    id: str
    text: str


def read_items(path: Path, *, column: str, id_column: str) -> list[Item]:
    """The texts in a file, by its name's ending: ``.jsonl``, ``.parquet`` or ``.txt``.

    Args:
        path: of the file.
        column: that the texts are in; a file of plain lines has none.
        id_column: that their ids are in; without it, ids are line or row numbers from 0.

    Raises:
        UserError: the file can't be read, is empty or breaks a rule; the message names the line or column.
    """
    ending = path.suffix.lower()
    if ending in _JSON_LINES:
        items = list(_bounded(path, _from_json(path, column, id_column)))
    elif ending == _PARQUET:
        items = list(_bounded(path, _from_parquet(path, column, id_column)))
    elif ending in _PLAIN:
        lines = enumerate(_lines(path))
        items = list(_bounded(path, (Item(str(number), line) for number, line in lines if line.strip())))
    else:
        raise UserError(f"{path}: must be called .jsonl, .parquet or .txt")
    if not items:
        raise UserError(f"{path}: must not be empty")
    return items


def pack_items(items: Iterable[Item]) -> bytes:
    """Items as they are handed to a node."""
    return json_lines([{"id": item.id, "text": item.text} for item in items])


def unpack_items(data: bytes) -> list[Item]:
    """Items out of the bytes of `pack_items`.

    Raises:
        UserError: they are other bytes.
    """
    items = []
    for number, line in enumerate(data.splitlines(), start=1):
        fields = _object(f"packed texts: line {number}", line)
        items.append(_item(f"packed texts: line {number}", fields, "text", "id", number))
    if not items:
        raise UserError("packed texts: must not be empty")
    return items


def json_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Rows as lines of JSON in UTF-8."""
    return b"".join(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n" for row in rows)


def _bounded(path: Path, items: Iterator[Item]) -> Iterator[Item]:
    for number, item in enumerate(items):
        if number >= ITEMS_MAX:
            raise UserError(f"{path}: must have at most {ITEMS_MAX} texts")
        yield item


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(_bounded_lines(path, file), start=1):
                try:
                    yield line.decode("utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise UserError(f"{path}: line {number}: must be UTF-8: {error.reason}") from None
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from error


def _bounded_lines(path: Path, file: BinaryIO) -> Iterator[bytes]:
    number = 0
    while line := file.readline(LINE_BYTES_MAX + 1):
        number += 1
        if len(line) > LINE_BYTES_MAX:
            raise UserError(f"{path}: line {number}: must have at most {LINE_BYTES_MAX} bytes")
        yield line


def _from_json(path: Path, column: str, id_column: str) -> Iterator[Item]:
    for number, line in enumerate(_lines(path)):
        if line.strip():
            where = f"{path}: line {number + 1}"
            yield _item(where, _object(where, line), column, id_column, number)


def _object(where: str, line: str | bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: must be JSON: {error}") from None
    if not isinstance(fields, dict):
        raise UserError(f"{where}: must be an object, got {type(fields).__name__}")
    return fields


def _item(where: str, fields: Mapping[str, Any], column: str, id_column: str, number: int) -> Item:
    text = fields.get(column)
    if not isinstance(text, str):
        known = ", ".join(sorted(fields)[:8]) or "nothing"
        held = f"it holds {type(fields[column]).__name__}" if column in fields else f"has {known}"
        raise UserError(f"{where}: must have text in {column!r}, {held}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where}: {column!r} must be text without lone surrogates") from None
    return Item(_id(where, fields.get(id_column, number)), text)


def _id(where: str, value: object) -> str:
    if type(value) not in {str, int}:
        raise UserError(f"{where}: an id must be text or an integer, got {type(value).__name__}")
    written = str(value)
    if not 1 <= len(written.encode("utf-8", errors="replace")) <= ID_BYTES_MAX:
        raise UserError(f"{where}: an id must have 1 to {ID_BYTES_MAX} bytes")
    return written


def _from_parquet(path: Path, column: str, id_column: str) -> Iterator[Item]:
    try:
        from pyarrow import lib as arrow
        from pyarrow import parquet
        from pyarrow import types as kinds  # type: ignore[attr-defined]
    except ImportError:
        raise UserError(f"{path}: reading Parquet takes pyarrow: pip install 'p2p-node[parquet]'") from None
    try:
        with parquet.ParquetFile(path) as file:  # type: ignore[no-untyped-call]
            names: Sequence[str] = file.schema_arrow.names
            if column not in names:
                raise UserError(f"{path}: must have a column {column!r}, has {', '.join(names) or 'none'}")
            kind = file.schema_arrow.field(column).type
            if not (kinds.is_string(kind) or kinds.is_large_string(kind)):
                raise UserError(f"{path}: column {column!r} must hold text, holds {kind}")
            wanted = [column, *([id_column] if id_column in names else [])]
            number = 0
            for batch in file.iter_batches(columns=wanted, batch_size=1_024):
                for row in batch.to_pylist():
                    yield _item(f"{path}: row {number}", row, column, id_column, number)
                    number += 1
    except (OSError, arrow.ArrowException) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"can't read {path}: {reason}") from error
