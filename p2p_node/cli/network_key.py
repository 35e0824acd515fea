"""`p2p-node network-key`."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["network_key"]


@click.command("network-key", short_help="Make the key of a private network.")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def network_key(file: Path) -> None:
    """Draw the key of a private network and write it to FILE, for its owner only.

    Give a copy to every peer of the network, over a channel that you trust, and start each with
    --network-key FILE. Whoever has the key may join; to shut somebody out, make another.
    """
    from p2p_node import networkkey

    networkkey.create(file)
    click.echo(f"The key is in {file}.", err=True)
