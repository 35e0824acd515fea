"""`p2p-node model add` and `rm`."""

from __future__ import annotations

from pathlib import Path

import click

from p2p_node.cli.options import datadir_option

__all__ = ["add", "remove", "tell_offered"]

MEASURED_S_MAX = 30
"""How long a node is watched while it measures a new model."""


@click.command("add", short_help="Have the node offer the model in a directory or archive.")
@click.argument("source", type=click.Path(exists=True, resolve_path=True, path_type=Path))
@click.option("--name", help="What jobs call it; the directory's or archive's name unless given.")
@datadir_option
def add(*, source: Path, name: str | None, datadir: Path | None) -> None:
    """Copy the model in SOURCE, a directory or a zip or tar archive of one, into the node's data directory.

    A broken model is refused by file and rule. A running node offers it as soon as it has measured how fast
    it is with it; one that doesn't run, from its next start on.
    """
    from p2p_node.cli.follow import say
    from p2p_node.datadir import DataDir
    from p2p_node.models import add_model, size_bytes

    place = DataDir.open(datadir)
    kind, model = add_model(place, source, name or _plain_name(source))
    say(
        "added", f"{model.name} of {size_bytes(model)} bytes, run by {kind.name}; digest {model.digest.hex()}"
    )
    tell_offered(datadir, model.name)


def _plain_name(source: Path) -> str:
    """What an archive is called without its endings; versions have dots too."""
    if source.is_dir():
        return source.name
    name = source.name
    for ending in (".gz", ".bz2", ".xz", ".tar", ".tgz", ".tbz2", ".txz", ".zip"):
        name = name.removesuffix(ending)
    return name


def tell_offered(datadir: Path | None, name: str) -> None:
    """Have a running node look for models, and say what it does about a new one."""
    import time

    from p2p_node.cli.follow import say
    from p2p_node.client import NodeNotRunning, connect

    try:
        with connect(datadir) as client:
            rows = {row["name"]: row for row in client.refresh_models()}
            give_up_at = time.monotonic() + MEASURED_S_MAX
            if name in rows and rows[name]["state"] == "measuring":
                say("measuring", f"how fast this machine is with {name}")
            while name in rows and rows[name]["state"] == "measuring" and time.monotonic() < give_up_at:
                time.sleep(0.2)
                rows = {row["name"]: row for row in client.models()}
    except NodeNotRunning:
        say("", "no node is running here; it is offered from the next start on")
        return
    if name not in rows:
        say("not offered", f"{name} doesn't fit into what a worker may take of this machine's memory")
    elif rows[name]["state"] == "refused":
        say("not offered", f"{name}: {rows[name]['why']}")
    else:
        say(rows[name]["state"], f"{name}, by the running node")


@click.command("rm", short_help="Remove a model that was added or pulled.")
@click.argument("name")
@datadir_option
def remove(*, name: str, datadir: Path | None) -> None:
    """Remove the model NAME from the node's data directory.

    A running node offers it no longer from then on, and refuses while the model is being run for somebody.
    """
    from p2p_node.cli.follow import say
    from p2p_node.client import NodeNotRunning, connect
    from p2p_node.datadir import DataDir
    from p2p_node.models import remove_model

    try:
        with connect(datadir) as client:
            client.remove_model(name)
    except NodeNotRunning:
        place = DataDir.open(datadir)
        with place.lock():
            remove_model(place, name)
    say("removed", name)
