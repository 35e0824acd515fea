"""`p2p-node init`."""

from __future__ import annotations

from pathlib import Path

import click

from p2p_node.cli.options import datadir_option, passphrase, password_file_option

__all__ = ["init"]


@click.command(short_help="Make this node's identity.")
@datadir_option
@password_file_option
@click.option("--no-passphrase", is_flag=True, help="Store the key unencrypted (file mode 0600).")
def init(datadir: Path | None, password_file: Path | None, no_passphrase: bool) -> None:
    """Make this node's identity: an Ed25519 key, encrypted with a passphrase.

    An existing identity is never overwritten.
    """
    if no_passphrase and password_file is not None:
        raise click.UsageError("--no-passphrase and --password-file exclude each other")
    from p2p_node import keystore
    from p2p_node.datadir import DataDir
    from protocols.identity import peer_id

    place = DataDir.open(datadir)
    # Before asking: nobody should choose a passphrase for nothing.
    keystore.refuse_existing(place.keystore)
    chosen = None if no_passphrase else passphrase(password_file, confirm=True)
    identity = keystore.create(place.keystore, chosen)
    click.echo(peer_id(identity.public))
    click.echo(
        f"The identity is in {place.keystore}. Keep a copy elsewhere: if it is lost, so are its standing and "
        f"earnings.",
        err=True,
    )
