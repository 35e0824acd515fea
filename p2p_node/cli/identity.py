"""`p2p-node id`."""

from __future__ import annotations

from pathlib import Path

import click

from p2p_node.cli.options import datadir_option, output_option

__all__ = ["show_id"]


@click.command("id", short_help="Print this node's peer id and key.")
@datadir_option
@output_option
def show_id(datadir: Path | None, output: str) -> None:
    """Print this node's peer id and public key; needs no passphrase."""
    from p2p_node import keystore
    from p2p_node.cli.output import print_record
    from p2p_node.datadir import DataDir
    from protocols.identity import peer_id

    place = DataDir.open(datadir)
    key = keystore.public_key(place.keystore)
    print_record(
        {
            "peer_id": peer_id(key),
            "public_key": key.hex(),
            "encrypted": keystore.is_encrypted(place.keystore),
            "datadir": str(place.path),
        },
        output,
    )
