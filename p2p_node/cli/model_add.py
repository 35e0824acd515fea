"""`p2p-node model add` and `rm`."""

from __future__ import annotations

from pathlib import Path

import click

from p2p_node.cli.options import datadir_option

__all__ = ["add", "remove"]


@click.command("add", short_help="Have the node offer the model in a directory.")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path))
@click.option("--name", help="What jobs call it; the directory's name unless given.")
@datadir_option
def add(*, directory: Path, name: str | None, datadir: Path | None) -> None:
    """Copy the model in DIRECTORY into the node's data directory and check it there.

    The node offers it from its next start on. A broken model is refused by file and rule.
    """
    from p2p_node.cli.follow import say
    from p2p_node.datadir import DataDir
    from p2p_node.models import add_model, size_bytes

    place = DataDir.open(datadir)
    kind, model = add_model(place, directory, name or directory.name)
    say(
        "added", f"{model.name} of {size_bytes(model)} bytes, run by {kind.name}; digest {model.digest.hex()}"
    )
    if place.is_in_use():
        say("restart", "the running node offers it from its next start on")


@click.command("rm", short_help="Remove a model that was added or pulled.")
@click.argument("name")
@datadir_option
def remove(*, name: str, datadir: Path | None) -> None:
    """Remove the model NAME from the node's data directory. The node must not run: it may be using it."""
    from p2p_node.cli.follow import say
    from p2p_node.datadir import DataDir
    from p2p_node.models import remove_model

    place = DataDir.open(datadir)
    with place.lock():
        remove_model(place, name)
    say("removed", name)
