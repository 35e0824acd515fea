"""`p2p-node swarm …`."""

from __future__ import annotations

import click

from p2p_node.cli import LazyCommand, LazyGroup

__all__ = ["swarm"]

COMMANDS = {
    "attack": LazyCommand(
        "p2p_node.cli.swarm_attack:attack",
        "Have hostile peers attack a swarm on this machine, once each way.",
    ),
    "sim": LazyCommand(
        "p2p_node.cli.swarm_sim:sim",
        "Play a scenario with many simulated peers, and say what came of it.",
    ),
    "sweep": LazyCommand(
        "p2p_node.cli.swarm_sweep:sweep", "Play scenarios with many seeds, until one breaks a promise."
    ),
    "up": LazyCommand("p2p_node.cli.swarm_up:up", "Run peers on this machine until Ctrl-C."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, short_help="Run many peers on this machine, to try things.")
def swarm() -> None:
    """Run many peers on this machine, to try things."""
