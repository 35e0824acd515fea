"""`p2p-node swarm up`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2p_node.cli.durations import DURATION
from p2p_node.cli.options import models_option

if TYPE_CHECKING:
    from rich.table import Table

    from p2p_node.client import NodeClient
    from p2p_node.swarm import Swarm, SwarmPeer

__all__ = ["up"]

REFRESH_S = 1.0
COLUMNS = ("#", "peer", "address", "datadir", "cheat", "connected", "jobs", "earned")


@click.command(short_help="Run peers on this machine until Ctrl-C.")
@click.option("-n", "count", type=click.IntRange(2, 64), default=5, show_default=True, help="How many peers.")
@click.option(
    "--cheat",
    "cheats",
    multiple=True,
    metavar="KIND=COUNT",
    help="How many of them cheat, and how; they underbid the others. 'list' shows the kinds.",
)
@click.option("--seed", type=int, help="Makes their identities the same each time.")
@click.option("--latency", type=DURATION, default="0ms", help="Added to everything they send, e.g. 80ms.")
@models_option
def up(count: int, cheats: tuple[str, ...], seed: int | None, latency: int, models: tuple[Path, ...]) -> None:
    """Run a swarm of real peers on this machine until Ctrl-C, with a table of them.

    The first peer is honest: give it jobs.
    """
    if "list" in cheats:
        _list_cheats()
        return
    wanted = _parse_cheats(cheats)
    from rich.console import Console

    from p2p_node.swarm import running_swarm

    console = Console()

    def on_event(event: str, details: dict[str, Any]) -> None:
        match event:
            case "measured":
                click.echo(f"measured this machine; starting {count} peers", err=True)
            case "up":
                click.echo(f"peer {details['peer'].index} is up", err=True)
            case "killed":
                click.echo(f"peer {details['peer'].index} didn't stop in time and was killed", err=True)

    try:
        with (
            running_swarm(
                count, cheats=wanted, seed=seed, latency_ms=latency, models=models, on_event=on_event
            ) as swarm,
            contextlib.ExitStack() as stack,
        ):
            clients = [stack.enter_context(peer.connect()) for peer in swarm.peers]
            command = f"p2p-node job run examples/verse.yaml --datadir {swarm.requester.datadir}"
            click.echo(f"\nGive the first peer a job, from another terminal:\n  {command}", err=True)
            click.echo("Ctrl-C stops all peers.\n", err=True)
            if console.is_terminal:
                _show_live(swarm, clients)
            else:
                _show_lines(swarm, clients)
    except KeyboardInterrupt:
        click.echo("stopped", err=True)


def _parse_cheats(given: tuple[str, ...]) -> dict[str, int]:
    from p2p_node.hostile import CHEATS

    cheats: dict[str, int] = {}
    for text in given:
        kind, _, number = text.partition("=")
        if kind not in CHEATS:
            kinds = "\n".join(f"  {name}: {what}" for name, what in CHEATS.items())
            raise click.BadParameter(f"{kind!r} must be one of these kinds:\n{kinds}", param_hint="--cheat")
        if number and not (number.isascii() and number.isdecimal()):
            raise click.BadParameter(f"{text!r} must be KIND=COUNT with a whole COUNT", param_hint="--cheat")
        cheats[kind] = cheats.get(kind, 0) + int(number or 1)
    return cheats


def _list_cheats() -> None:
    from p2p_node.cli.output import print_rows
    from p2p_node.hostile import CHEATS

    rows = []
    for kind, text in CHEATS.items():
        does, _, caught = text.partition("; ")
        rows.append({"kind": kind, "does": does, "caught by": caught.removeprefix("caught by ")})
    print_rows(rows, "table")


# --- The table ---------------------------------------------------------------------------------------


def _show_live(swarm: Swarm, clients: list[NodeClient]) -> None:
    from rich.live import Live

    with Live(_table(_rows(swarm, clients)), auto_refresh=False) as live:
        while True:
            time.sleep(REFRESH_S)
            live.update(_table(_rows(swarm, clients)), refresh=True)


def _show_lines(swarm: Swarm, clients: list[NodeClient]) -> None:
    """A pipe gets each peer once, and again when something about it changes."""
    shown: dict[int, dict[str, str]] = {}
    while True:
        for row in _rows(swarm, clients):
            index = int(row["#"])
            if shown.get(index) != row:
                shown[index] = row
                click.echo("  ".join(f"{name}={value}" for name, value in row.items()))
        time.sleep(REFRESH_S)


def _table(rows: Iterator[dict[str, str]]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in COLUMNS:
        numeric = name in ("connected", "jobs", "earned")
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        style = "dim" if row["connected"] == "ended" else "yellow" if row["cheat"] else ""
        table.add_row(*(row[name] for name in COLUMNS), style=style)
    return table


def _rows(swarm: Swarm, clients: list[NodeClient]) -> Iterator[dict[str, str]]:
    for peer, client in zip(swarm.peers, clients, strict=True):
        yield dict(zip(COLUMNS, _cells(peer, client), strict=True))


def _cells(peer: SwarmPeer, client: NodeClient) -> tuple[str, ...]:
    from p2p_node.errors import UserError

    fixed = (str(peer.index), peer.peer_id, peer.address.split("/p2p/")[0], str(peer.datadir), peer.cheat)
    try:
        status = client.status()
    except UserError:
        return (*fixed, "ended" if not peer.is_running else "silent", "", "")
    counts = (status["connected"], status["engagements_total"], status["earned_micros"])
    return (*fixed, *(str(count) for count in counts))
