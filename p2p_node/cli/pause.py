"""`p2p-node pause` and `p2p-node resume`."""

from __future__ import annotations

from pathlib import Path

import click

from p2p_node.cli.options import datadir_option

__all__ = ["pause", "resume"]


@click.command(short_help="Take the machine back: running work is handed back.")
@click.argument("device", required=False)
@datadir_option
def pause(datadir: Path | None, device: str | None) -> None:
    """Take the machine, or one DEVICE such as cuda:0, back from the network.

    The running node bids on nothing more there. What it computes now is handed back after the last
    segment that it committed to: that is paid, the rest goes on at another peer, and no standing is
    lost. Its own jobs go on. Lasts until p2p-node resume, or until the node is started again.
    """
    from p2p_node.client import connect

    with connect(datadir) as client:
        _tell(client.pause_work(device))


@click.command(short_help="Give the machine to the network again.")
@click.argument("device", required=False)
@datadir_option
def resume(datadir: Path | None, device: str | None) -> None:
    """Give the machine, or one DEVICE, to the network again."""
    from p2p_node.client import connect

    with connect(datadir) as client:
        _tell(client.resume_work(device))


def _tell(paused: list[str]) -> None:
    click.echo(f"paused: {', '.join(paused)}" if paused else "not paused: work is taken on again")
