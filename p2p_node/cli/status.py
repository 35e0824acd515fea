"""`p2p-node status`."""

from __future__ import annotations

from pathlib import Path

import click

from p2p_node.cli.options import datadir_option, output_option

__all__ = ["status"]


@click.command(short_help="Show what the running node is, has and does.")
@datadir_option
@output_option
def status(datadir: Path | None, output: str) -> None:
    """Show what the running node is, has and does, and if it isn't earning, why."""
    from p2p_node.cli.durations import duration_text
    from p2p_node.cli.output import print_record
    from p2p_node.client import connect

    with connect(datadir) as client:
        record = client.status()
    if output == "table":
        record["uptime"] = duration_text(record.pop("uptime_ms"))
        record["offerings"] = [
            f"{offering['model'] or offering['digest'][:12]} at {offering['price_micros']} per unit"
            for offering in record["offerings"]
        ]
        record["paused"] = record["paused"] or None
        record["idle_reason"] = record["idle_reason"] or None
    print_record(record, output)
