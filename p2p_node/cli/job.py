"""`p2p-node job …`."""

from __future__ import annotations

import click

from p2p_node.cli import LazyCommand, LazyGroup

__all__ = ["job"]

COMMANDS = {
    "run": LazyCommand("p2p_node.cli.job_run:run", "Have a job done and verified."),
    "quote": LazyCommand("p2p_node.cli.job_quote:quote", "Show how a job would be checked, and its cost."),
    "list": LazyCommand("p2p_node.cli.job_show:list_jobs", "List jobs, oldest first."),
    "status": LazyCommand("p2p_node.cli.job_show:status", "Show where a job stands."),
    "logs": LazyCommand("p2p_node.cli.job_show:logs", "Show what happened to a job."),
    "get": LazyCommand(
        "p2p_node.cli.job_show:get", "Print a job's verified text, or write its result to a file."
    ),
    "cancel": LazyCommand("p2p_node.cli.job_show:cancel", "Cancel a job."),
    "explain": LazyCommand("p2p_node.cli.job_show:explain", "Show why peers didn't bid on a job."),
    "verify": LazyCommand("p2p_node.cli.job_verify:verify", "Check a receipt, offline."),
    "validate": LazyCommand("p2p_node.cli.job_validate:validate", "Check a job file without running it."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, short_help="Run jobs, follow them, check their receipts.")
def job() -> None:
    """Run jobs, follow them, check their receipts."""
