"""`p2p-node model share` and `pull`: models travel as blobs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2p_node.cli.options import datadir_option, models_option
from p2p_node.errors import UserError

if TYPE_CHECKING:
    from p2p_node.client import NodeClient
    from p2p_node.modelmanifest import ModelManifest

__all__ = ["pull", "share"]

PART_BYTES = 1 << 20

NEVER_TAKEN = frozenset({"tolerance.json"})
"""The model's digest doesn't cover it, and a stranger's would let forged native work pass here."""


@click.command(short_help="Let other peers pull a model; prints its name for them.")
@click.argument("name")
@datadir_option
@models_option
def share(*, name: str, datadir: Path | None, models: tuple[Path, ...]) -> None:
    """Put the files of the model NAME into the running node's store, and print by what name others pull it.

    They stay there until their blobs are unpinned, beside the model itself.
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
        client.pin_blob(shared)
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

        added = str(client.upload_blob(parts())["blob"])
    client.pin_blob(added)
    return added


@click.command(short_help="Fetch a model from peers that share it.")
@click.argument("shared")
@click.option("--name", help="What jobs are to call it here; its owner's name unless given.")
@click.option("--from", "peer", metavar="PEER", help="Id of the peer to ask; else those connected.")
@datadir_option
def pull(*, shared: str, name: str | None, peer: str | None, datadir: Path | None) -> None:
    """Fetch the model SHARED, as `model share` printed it, and check it.

    Nothing of it can be other than its name says, whoever gave it. Bounds for the native profile aren't
    taken over: measure them with model calibrate. The node offers the model from its next start on; a pull
    that is interrupted goes on from there the next time.
    """
    from p2p_node.cli.follow import say
    from p2p_node.client import connect
    from p2p_node.datadir import DataDir
    from p2p_node.modelmanifest import MANIFEST_BYTES_MAX, read_manifest
    from p2p_node.models import refuse_name, size_bytes, take_model
    from protocols.blobs import parse_blob_name

    place = DataDir.open(datadir)
    try:
        size = parse_blob_name(shared).size_bytes
    except ValueError as error:
        raise UserError(str(error)) from None
    if size > MANIFEST_BYTES_MAX:
        raise UserError(f"{shared} has {size} bytes, and a model's manifest {MANIFEST_BYTES_MAX} at most")
    with connect(datadir) as client:
        _fetch(client, shared, "manifest", peer)
        manifest = read_manifest(b"".join(client.blob_content(shared)))
        called = name or manifest.name
        refuse_name(place, called)
        place.models.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.models, prefix=".pulling-") as folder:
            directory = Path(folder) / called
            directory.mkdir()
            _write_files(client, manifest, directory, peer)
            kind, model = take_model(place, directory, digest=bytes.fromhex(manifest.digest))
    say("pulled", f"{model.name} of {size_bytes(model)} bytes, run by {kind.name}")
    say("restart", "the running node offers it from its next start on")


def _write_files(client: NodeClient, manifest: ModelManifest, directory: Path, peer: str | None) -> None:
    for file in manifest.files:
        if file.name in NEVER_TAKEN:
            continue
        _fetch(client, file.blob, file.name, peer)
        try:
            with (directory / file.name).open("wb") as target:
                for part in client.blob_content(file.blob):
                    target.write(part)
        except OSError as error:
            raise UserError(f"can't write {file.name}: {error.strerror}") from error


def _fetch(client: NodeClient, blob: str, what: str, peer: str | None) -> None:
    from p2p_node.cli.blob_move import progress_bar
    from protocols.blobs import parse_blob_name

    try:
        size = parse_blob_name(blob).size_bytes
    except ValueError as error:
        raise UserError(f"{what}: {error}") from None
    with progress_bar(f"fetching {what}", size) as advance:
        for here in client.fetch_blob(blob, peer):
            advance(here)
