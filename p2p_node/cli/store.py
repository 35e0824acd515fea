"""`p2p-node store …`."""

from __future__ import annotations

from pathlib import Path

import click

from p2p_node.cli import LazyCommand, LazyGroup
from p2p_node.cli.options import datadir_option, output_option

__all__ = ["salvage", "store"]

COMMANDS = {
    "salvage": LazyCommand("p2p_node.cli.store:salvage", "Keep what can be read of a damaged store."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, short_help="Mend what the node remembers.")
def store() -> None:
    """What the node remembers: jobs, receipts, contracts, earnings."""


@click.command("salvage", short_help="Keep what can be read of a damaged store.")
@datadir_option
@output_option
def salvage(datadir: Path | None, output: str) -> None:
    """Put a new store with all that can be read of the old one in its place, while the node is stopped.

    The damaged file stays beside it. What is lost of peers, adverts and addresses comes back from the
    network; a receipt or a voucher that is lost may be had from whoever it was made with.
    """
    from p2p_node.cli.output import print_record
    from p2p_node.datadir import DataDir
    from p2p_node.salvage import salvage as mend

    place = DataDir.open(datadir)
    with place.lock():
        done = mend(place.store)
    print_record(
        {
            "rows": sum(done.rows.values()),
            **{f"rows in {table}": rows for table, rows in done.rows.items()},
            "damaged tables": ", ".join(done.unreadable) or "none",
            "the old file": str(done.damaged),
        },
        output,
    )
