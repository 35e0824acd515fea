"""`p2p-node verify …`."""

from __future__ import annotations

import click

from p2p_node.cli import LazyCommand, LazyGroup

__all__ = ["verify"]

COMMANDS = {
    "odds": LazyCommand("p2p_node.cli.verify_odds:odds", "Print how likely a cheater is to escape."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, short_help="What checking is worth.")
def verify() -> None:
    """What checking is worth."""
