"""`p2p-node blob list`, `pin`, `unpin` and `rm`."""

from __future__ import annotations

from pathlib import Path

import click

from p2p_node.cli.options import datadir_option, output_option

__all__ = ["list_blobs", "pin", "remove", "unpin"]


@click.command("list", short_help="List the blobs that the node keeps.")
@datadir_option
@output_option
def list_blobs(*, datadir: Path | None, output: str) -> None:
    """List the blobs that the running node keeps, the most recently used first, and who holds on to them."""
    from p2p_node.cli.output import print_rows
    from p2p_node.client import connect

    with connect(datadir) as client:
        rows = client.blobs()
    if output == "table":
        if not rows:
            click.echo("no blobs yet", err=True)
            return
        rows = [
            {
                "blob": row["blob"],
                "for": "parties of its job" if row["private"] else "whoever names it",
                "pinned by": row["pins"] or None,
            }
            for row in rows
        ]
    print_rows(rows, output)


@click.command(short_help="Keep a blob until it is unpinned.")
@click.argument("name")
@datadir_option
@output_option
def pin(*, name: str, datadir: Path | None, output: str) -> None:
    """Keep the blob NAME, which is on this node, however much room is needed."""
    from p2p_node.cli.output import print_record
    from p2p_node.client import connect

    with connect(datadir) as client:
        print_record(client.pin_blob(name), output)


@click.command(short_help="Let a blob go when room is needed.")
@click.argument("name")
@datadir_option
@output_option
def unpin(*, name: str, datadir: Path | None, output: str) -> None:
    """Let go of the blob NAME: it is thrown away once room is needed and nobody else holds on to it."""
    from p2p_node.cli.output import print_record
    from p2p_node.client import connect

    with connect(datadir) as client:
        print_record(client.unpin_blob(name), output)


@click.command("rm", short_help="Throw a blob away.")
@click.argument("name")
@datadir_option
@output_option
def remove(*, name: str, datadir: Path | None, output: str) -> None:
    """Throw the blob NAME away. One that is pinned must be unpinned before."""
    from p2p_node.cli.output import print_record
    from p2p_node.client import connect

    with connect(datadir) as client:
        print_record(client.remove_blob(name), output)
