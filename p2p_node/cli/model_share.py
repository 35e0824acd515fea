"""`p2p-node model share` and `unshare`: models travel as blobs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2p_node.cli.options import datadir_option, models_option
from p2p_node.errors import UserError

if TYPE_CHECKING:
    from p2p_node.client import NodeClient

__all__ = ["share", "unshare"]

PART_BYTES = 1 << 20


@click.command(short_help="Let other peers pull a model; prints its name for them.")
@click.argument("name")
@datadir_option
@models_option
def share(*, name: str, datadir: Path | None, models: tuple[Path, ...]) -> None:
    """Put the files of the model NAME into the running node's store, and tell other peers.

    They pull it by NAME, by its digest, or by the manifest's name, which is printed. The files stay in the
    store, beside the model itself, until it is unshared.
    """
    from p2p_node.client import connect
    from p2p_node.modelmanifest import ModelFile, ModelManifest, write_manifest
    from p2p_node.models import models_here

    found = next(((kind, model) for kind, model in models_here(datadir, models) if model.name == name), None)
    if found is None:
        raise UserError(f"no model called {name!r} is on this machine; see: p2p-node model list")
    kind, model = found
    paths = sorted(path for path in model.path.iterdir() if path.is_file()) if model.path != Path() else []
    if not paths:
        raise UserError(f"{name} has no files to share: every node can run it")
    with connect(datadir) as client:
        files = tuple(ModelFile(path.name, _upload(client, path)) for path in paths)
        manifest = ModelManifest(model.name, kind.name, model.digest.hex(), files)
        shared = client.add_blob(write_manifest(manifest))
        client.share_model(name, shared)
    click.echo(shared)


def _upload(client: NodeClient, path: Path) -> str:
    from p2p_node.cli.blob_move import progress_bar

    with path.open("rb") as source, progress_bar(path.name, path.stat().st_size) as advance:

        def parts() -> Iterator[bytes]:
            sent = 0
            while part := source.read(PART_BYTES):
                yield part
                sent += len(part)
                advance(sent)

        return str(client.upload_blob(parts())["blob"])


@click.command(short_help="Let other peers pull a model no longer.")
@click.argument("name")
@datadir_option
def unshare(*, name: str, datadir: Path | None) -> None:
    """Tell peers no longer that the model NAME can be had here, and let its files go from the store.

    The model itself stays. Who has its name can have a file for as long as it lies in the store.
    """
    from p2p_node.cli.follow import say
    from p2p_node.client import connect

    with connect(datadir) as client:
        client.stop_sharing_model(name)
    say("unshared", name)
