"""`p2p-node reload`."""

from __future__ import annotations

from pathlib import Path

import click

from p2p_node.cli.options import datadir_option

__all__ = ["reload"]


@click.command(short_help="Read the lists of peers and addresses again.")
@datadir_option
def reload(datadir: Path | None) -> None:
    """Have the running node read its lists of peers and addresses again, as SIGHUP does.

    Whom they keep out is cut off at once. If config.toml breaks a rule, that is said and nothing changes.
    Other settings take effect at the next start.
    """
    from p2p_node.client import connect

    with connect(datadir) as client:
        found = client.reload_lists()
    cut_off = found.pop("cut_off")
    lengths = ", ".join(f"{name} {length}" for name, length in found.items())
    click.echo(f"read again: {lengths}; peers cut off: {cut_off}")
