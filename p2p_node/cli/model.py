"""`p2p-node model …`."""

from __future__ import annotations

import click

from p2p_node.cli import LazyCommand, LazyGroup

__all__ = ["model"]

COMMANDS = {
    "list": LazyCommand("p2p_node.cli.model_list:list_models", "List the models on this machine."),
    "add": LazyCommand(
        "p2p_node.cli.model_add:add", "Have the node offer the model in a directory or archive."
    ),
    "share": LazyCommand("p2p_node.cli.model_share:share", "Let other peers pull a model."),
    "unshare": LazyCommand("p2p_node.cli.model_share:unshare", "Let them no longer."),
    "pull": LazyCommand("p2p_node.cli.model_pull:pull", "Fetch a model from peers that share it."),
    "rm": LazyCommand("p2p_node.cli.model_add:remove", "Remove a model that was added or pulled."),
    "calibrate": LazyCommand(
        "p2p_node.cli.model_calibrate:calibrate", "Measure how far honest native runs are apart."
    ),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, short_help="Models on this machine.")
def model() -> None:
    """Models on this machine."""
