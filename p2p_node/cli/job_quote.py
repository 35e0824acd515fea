"""`p2p-node job quote`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from p2p_node.cli.options import datadir_option, output_option
from p2p_node.errors import ExitCode

__all__ = ["quote"]


@click.command(short_help="Show how a job would be checked and what it would cost.")
@click.argument("file", type=click.Path(path_type=Path))
@datadir_option
@output_option
@click.pass_context
def quote(ctx: click.Context, *, file: Path, datadir: Path | None, output: str) -> None:
    """Show how the job in FILE would be checked and what it would cost, before anything is spent.

    Asks the running node, which goes by the peers that it knows now and offers nothing to anybody. Ends
    with exit code 3 if the job can't be done as asked, and says why and what would help.
    """
    from p2p_node.cli.job_run import read_job
    from p2p_node.cli.output import print_record
    from p2p_node.client import connect
    from workloads.blobs import MemoryBlobs

    blobs = MemoryBlobs()
    document = read_job(file, blobs)
    with connect(datadir) as client:
        for content in blobs.contents():
            client.add_blob(content)
        found = client.quote(document)
    if output == "table":
        _print_table(found)
    else:
        print_record(found, output)
    ctx.exit(ExitCode.NO_BIDS if found["reason"] else ExitCode.OK)


def _print_table(found: dict[str, Any]) -> None:
    from p2p_node.cli.output import print_record, print_rows

    shown = {name: value for name, value in found.items() if name != "best_asks" and value not in ("", None)}
    for name in ("escape", "escape_accepted", "escape_formula"):
        if name in shown:
            shown[name] = f"{shown[name]:.3g}"
    print_record(shown, "table")
    if found["best_asks"]:
        click.echo()
        print_rows(found["best_asks"], "table")
