"""`p2p-node job …`."""

from __future__ import annotations

import click

from p2p_node.cli import LazyCommand, LazyGroup

__all__ = ["job"]

COMMANDS = {
    "validate": LazyCommand("p2p_node.cli.job_validate:validate", "Check a job file without running it."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, short_help="Run jobs, follow them, check their receipts.")
def job() -> None:
    """Run jobs, follow them, check their receipts."""
