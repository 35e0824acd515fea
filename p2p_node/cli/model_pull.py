"""`p2p-node model pull`: a model by its name, from all peers that share it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2p_node.cli.options import datadir_option
from p2p_node.errors import UserError

if TYPE_CHECKING:
    from p2p_node.client import NodeClient
    from p2p_node.modelmanifest import ModelManifest

__all__ = ["pull"]

NEVER_TAKEN = frozenset({"tolerance.json"})
"""The model's digest doesn't cover it, and a stranger's would let forged native work pass here."""

_DIGEST_DIGITS = 64


@click.command(short_help="Fetch a model from peers that share it.")
@click.argument("model")
@click.option("--name", help="What jobs are to call it here; its owner's name unless given.")
@click.option("--from", "peer", metavar="PEER", help="Id of the only peer to ask.")
@click.option(
    "--share/--no-share", default=None, help="Give it to others too, or not; config.toml: share_pulled."
)
@datadir_option
def pull(*, model: str, name: str | None, peer: str | None, share: bool | None, datadir: Path | None) -> None:
    """Fetch MODEL and check it: its name, its digest, or its manifest's name as `model share` prints it.

    A name is looked up among what peers share, and must mean the same model to all of them. Files come from
    several peers at once, and can't be other than the digest says. Bounds for the native profile aren't taken
    over: measure them with model calibrate. A running node offers the model as soon as it has measured it; a
    pull that is interrupted goes on from there the next time.
    """
    from p2p_node.cli.follow import say
    from p2p_node.cli.model_add import tell_offered
    from p2p_node.client import connect
    from p2p_node.config import load_config
    from p2p_node.datadir import DataDir
    from p2p_node.modelmanifest import read_manifest
    from p2p_node.models import refuse_name, size_bytes, take_model

    place = DataDir.open(datadir)
    with connect(datadir) as client:
        manifest_name, peers, digest = _find(client, model)
        sources = [peer] if peer is not None else peers or None
        _fetch(client, manifest_name, sources, lambda here: None)
        manifest = read_manifest(b"".join(client.blob_content(manifest_name)))
        if digest is not None and manifest.digest != digest:
            raise UserError(f"the manifest is of model {manifest.digest}, and {digest} was advertised")
        called = name or manifest.name
        refuse_name(place, called)
        say("pulling", f"{called} from {len(sources) if sources else 'all'} peers; digest {manifest.digest}")
        place.models.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.models, prefix=".pulling-") as folder:
            directory = Path(folder) / called
            directory.mkdir()
            _write_files(client, manifest, directory, sources)
            kind, taken = take_model(place, directory, digest=bytes.fromhex(manifest.digest))
    say("pulled", f"{taken.name} of {size_bytes(taken)} bytes, run by {kind.name}")
    tell_offered(datadir, taken.name)
    if load_config(place.config, {}).share_pulled if share is None else share:
        with connect(datadir) as client:
            client.share_model(taken.name, manifest_name)
        say("shared", taken.name)


def _find(client: NodeClient, wanted: str) -> tuple[str, list[str], str | None]:
    """The manifest's name, the peers that share it, and the model's digest if it was looked up by that.

    Raises:
        UserError: nobody shares it, or not all mean the same by its name.
    """
    from protocols.blobs import parse_blob_name
    from protocols.limits import MANIFEST_BYTES_MAX

    rows = client.shared_models()
    if not any(row["peers"] and wanted in (row["name"], row["digest"], row["manifest"]) for row in rows):
        rows = client.shared_models(wanted.partition(":")[0])
    if ":" in wanted:
        try:
            size = parse_blob_name(wanted).size_bytes
        except ValueError as error:
            raise UserError(str(error)) from None
        if size > MANIFEST_BYTES_MAX:
            raise UserError(f"{wanted} has {size} bytes, and a model's manifest {MANIFEST_BYTES_MAX} at most")
        peers = [peer for row in rows if row["manifest"] == wanted for peer in row["peers"]]
        return wanted, list(dict.fromkeys(peers)), None
    is_digest = len(wanted) == _DIGEST_DIGITS and set(wanted) <= set("0123456789abcdef")
    rows = [row for row in rows if row["peers"]]
    if is_digest:
        found = [row for row in rows if wanted in (row["digest"], row["manifest"].partition(":")[0])]
    else:
        found = [row for row in rows if row["name"] == wanted]
    if not found:
        raise UserError(_nobody(wanted, rows))
    digests = {row["digest"] for row in found}
    if len(digests) > 1:
        raise UserError(f"{wanted!r} means {len(digests)} models; pull one by its digest:{_listed(found)}")
    # One model may be listed in several ways, e.g. with another file beside it: most peers have the first.
    best = max(found, key=lambda row: len(row["peers"]))
    return best["manifest"], list(best["peers"]), best["digest"]


def _listed(rows: Sequence[dict[str, Any]]) -> str:
    lines = sorted((-len(row["peers"]), row["digest"], row["peers"][0]) for row in rows)
    return "".join(f"\n  {digest}  from {-count} peers, e.g. {peer}" for count, digest, peer in lines)


def _nobody(wanted: str, rows: Sequence[dict[str, Any]]) -> str:
    import difflib

    names = sorted({row["name"] for row in rows})
    near = difflib.get_close_matches(wanted, names, n=3)
    hint = f"did you mean {', '.join(near)}?" if near else f"shared: {', '.join(names[:20]) or 'none'}"
    return f"no peer known here shares model {wanted!r}; {hint}"


def _write_files(
    client: NodeClient, manifest: ModelManifest, directory: Path, peers: Sequence[str] | None
) -> None:
    from p2p_node.cli.blob_move import progress_bar
    from protocols.blobs import parse_blob_name

    files = [file for file in manifest.files if file.name not in NEVER_TAKEN]
    try:
        sizes = {file.name: parse_blob_name(file.blob).size_bytes for file in files}
    except ValueError as error:
        raise UserError(f"not a model's manifest: {error}") from None
    before = 0
    with progress_bar(f"fetching {manifest.name}", sum(sizes.values())) as advance:
        for file in files:
            _fetch(client, file.blob, peers, lambda here, before=before: advance(before + here))  # type: ignore[misc]
            before += sizes[file.name]
            try:
                with (directory / file.name).open("xb") as target:
                    for part in client.blob_content(file.blob):
                        target.write(part)
            except OSError as error:
                raise UserError(f"can't write {file.name}: {error.strerror}") from error


def _fetch(
    client: NodeClient, blob: str, peers: Sequence[str] | None, advance: Callable[[int], None]
) -> None:
    for here in client.fetch_blob(blob, peers):
        advance(here)
