"""`p2p-node model list`."""

from __future__ import annotations

from pathlib import Path

import click

from p2p_node.cli.options import datadir_option, models_option, output_option

__all__ = ["list_models"]


@click.command("list", short_help="List the models on this machine.")
@datadir_option
@models_option
@output_option
def list_models(*, datadir: Path | None, models: tuple[Path, ...], output: str) -> None:
    """List the models that a node on this machine offers, with the workload that each is run by.

    These are the built-in ones, those that were added, and those in the directories that config.toml
    and --models name. Of a running node, also what it does about each: it is measuring how fast it is with
    the model, offers it, or can't.
    """
    from p2p_node.cli.output import print_rows
    from p2p_node.client import NodeNotRunning, connect
    from p2p_node.models import builtin_models, models_here, size_bytes

    states: dict[str, str] = {}
    try:
        with connect(datadir) as client:
            states = {row["digest"]: row["state"] for row in client.models()}
    except NodeNotRunning:
        pass
    built_in = {model.path for _, model in builtin_models()}
    rows = [
        {
            "name": model.name,
            "workload": kind.name,
            "state": states.get(model.digest.hex()),
            "size": size_bytes(model),
            "source": "built in" if model.path in built_in else str(model.path.parent),
            "digest": model.digest.hex(),
        }
        for kind, model in models_here(datadir, models)
    ]
    print_rows(rows, output)
