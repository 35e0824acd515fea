"""`p2p-node doctor`."""

from __future__ import annotations

from pathlib import Path

import click

from p2p_node.cli.options import datadir_option, output_option

__all__ = ["doctor"]

EXIT_WEAK = 1
"""A node runs, slower or less protected than it could."""


@click.command(short_help="Say what this machine can do, and how well its owner is protected.")
@datadir_option
@click.option(
    "--bootstrap",
    multiple=True,
    metavar="MULTIADDR",
    help="Peer to ask whether others can reach this machine, if no node runs here; ends in /p2p/<peer id>.",
)
@click.option("--network", metavar="NAME", help="That peer's network.")
@output_option
def doctor(datadir: Path | None, bootstrap: tuple[str, ...], network: str | None, output: str) -> None:
    """Say what a node would find on this machine, and what each layer of the sandbox enforces here.

    A worker is started and locked in as a node's would be. Peers of the node that runs here, or those that
    --bootstrap names, are asked to dial back, to learn whether others can reach this machine. Exit status: 0
    if all is well, 1 if a node runs but something is weaker or slower than it could be, 2 if a node can't
    run.
    """
    from p2p_node.cli.output import print_rows
    from p2p_node.config import load_config
    from p2p_node.datadir import DataDir
    from p2p_node.health import State, run

    place = DataDir.open(datadir)
    flags = {"bootstrap": bootstrap or None, "network": network}
    checks = run(load_config(place.config, flags), place)
    print_rows(
        [{"check": check.name, "state": check.state.value, "detail": check.detail} for check in checks],
        output,
    )
    states = {check.state for check in checks}
    code = 2 if State.FAILS in states else EXIT_WEAK if State.WEAK in states else 0
    click.get_current_context().exit(code)
