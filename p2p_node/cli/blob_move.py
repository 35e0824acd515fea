"""`p2p-node blob add` and `get`, with progress, rate and time left on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from p2p_node.cli.options import datadir_option, output_option
from p2p_node.errors import UserError

__all__ = ["add", "get", "progress_bar"]

PART_BYTES = 1 << 20


@click.command(short_help="Hand a file to the node; prints its name.")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--pin", "is_pinned", is_flag=True, help="Keep it until it is unpinned; others can find it.")
@datadir_option
@output_option
def add(*, file: Path, is_pinned: bool, datadir: Path | None, output: str) -> None:
    """Copy FILE into the running node's store, from where peers can have it; prints its name."""
    from p2p_node.cli.output import print_record
    from p2p_node.client import connect

    try:
        source = file.open("rb")
        size = file.stat().st_size
    except OSError as error:
        raise UserError(f"can't read {file}: {error.strerror}") from error
    with source, connect(datadir) as client:
        with progress_bar(f"adding {file.name}", size) as advance:

            def parts() -> Iterator[bytes]:
                sent = 0
                while part := source.read(PART_BYTES):
                    yield part
                    sent += len(part)
                    advance(sent)

            added = client.upload_blob(parts())
        if is_pinned:
            client.pin_blob(added["blob"])
    if output == "table":
        click.echo(added["blob"])
        return
    print_record(added | {"pinned": is_pinned}, output)


@click.command(short_help="Write a blob to a file, from peers if need be.")
@click.argument("name")
@click.option(
    "-o",
    "--to",
    "target",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="Where to write it; - is the standard output.",
)
@click.option("--from", "peer", metavar="PEER", help="Id of the only peer to ask.")
@datadir_option
def get(*, name: str, target: Path, peer: str | None, datadir: Path | None) -> None:
    """Write the blob NAME to a file, fetching it from peers unless the node has it.

    Neighbours are asked, then whom the directory names: those who have pinned it.

    A fetch that is interrupted goes on from there the next time.
    """
    from p2p_node.client import connect
    from protocols.blobs import parse_blob_name

    try:
        size = parse_blob_name(name).size_bytes
    except ValueError as error:
        raise UserError(str(error)) from None
    with connect(datadir) as client:
        with progress_bar("fetching", size) as advance:
            for here in client.fetch_blob(name, peer):
                advance(here)
        with progress_bar("writing", size) as advance:
            _write(client.blob_content(name), target, advance)
    if str(target) != "-":
        click.echo(f"{target}: {size} bytes", err=True)


def _write(parts: Iterator[bytes], target: Path, advance: Callable[[int], None]) -> None:
    written = 0
    if str(target) == "-":
        for part in parts:
            sys.stdout.buffer.write(part)
            written += len(part)
            advance(written)
        sys.stdout.buffer.flush()
        return
    # Under its name only once it is whole.
    unfinished = target.with_name(target.name + ".part")
    try:
        with unfinished.open("wb") as file:
            for part in parts:
                file.write(part)
                written += len(part)
                advance(written)
        unfinished.replace(target)
    except OSError as error:
        raise UserError(f"can't write {target}: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def progress_bar(what: str, size: int) -> Iterator[Callable[[int], None]]:
    """A bar on the error output, if that is a terminal; takes how far it is, in bytes."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with progress:
        task = progress.add_task(what, total=size)
        yield lambda here: progress.update(task, completed=here)
