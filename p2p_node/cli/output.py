"""Printing results as a table for people, or as JSON or YAML for programs.

Results go to stdout, and nothing else does, so that they can be piped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

__all__ = ["print_record", "print_rows"]


def print_record(record: Mapping[str, Any], output: str) -> None:
    """Print one thing: as two columns, or as one JSON or YAML mapping.

    Args:
        record: names and values made of text, integers, booleans, None, lists and mappings.
        output: ``table``, ``json`` or ``yaml``.
    """
    if output != "table":
        click.echo(_serialised(dict(record), output), nl=False)
        return
    cells = _flat(record, "")
    width = max((len(name) for name in cells), default=0)
    for name, value in cells.items():
        click.echo(f"{name:<{width}}  {_cell(value)}")


def print_rows(
    rows: Sequence[Mapping[str, Any]], output: str, *, columns: Sequence[str] | None = None
) -> None:
    """Print many things: as a table, or as one JSON or YAML list of mappings.

    Args:
        rows: as `print_record` takes them.
        output: ``table``, ``json`` or ``yaml``.
        columns: what the table shows, in this order; None is every key, as they first occur.
            JSON and YAML always show everything.
    """
    if output != "table":
        click.echo(_serialised([dict(row) for row in rows], output), nl=False)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if columns is None:
        columns = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        numeric = bool(rows) and all(_is_number(row.get(name)) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        # As Text: a peer chose some of these words, and they must not act as markup.
        table.add_row(*(Text(_cell(row.get(name))) for name in columns))
    console = Console()
    if not console.is_terminal:
        # A pipe has no width; wrapping there would break lines that programs read.
        console.width = max(console.width, 400)
    console.print(table)


def _serialised(value: Any, output: str) -> str:
    if output == "json":
        return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    import yaml

    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def _flat(record: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Nested mappings as dotted names."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case list() | tuple():
            text = ", ".join(_cell(inner) for inner in value)
        case dict():
            text = ", ".join(f"{name}={_cell(inner)}" for name, inner in value.items())
        case _:
            text = str(value)
    # Control characters from a peer must not reach the terminal.
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
