"""`p2p-node program …`."""

from __future__ import annotations

import click

from p2p_node.cli import LazyCommand, LazyGroup

__all__ = ["program"]

COMMANDS = {
    "check": LazyCommand(
        "p2p_node.cli.program_check:check", "Say whether a graph will run, and what it costs."
    ),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, short_help="Graphs of your own.")
def program() -> None:
    """Graphs of your own, for jobs of the kind program.run."""
