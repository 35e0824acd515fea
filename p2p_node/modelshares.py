"""Models whose files this node gives to whoever asks, and those of which other peers say the same.

A model is shared by its manifest, a blob; the store's pins remember which, over restarts. What others share
is read off their adverts: anybody can call anything by any name, so a name alone picks a model only where all
who use it mean the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import structlog

from p2p_node.blobs import BlobError, BlobStore
from p2p_node.errors import UserError
from p2p_node.modelmanifest import ModelManifest, read_manifest
from protocols.blobs import Blob, blob_name, parse_blob_name
from protocols.envelope import Signed
from protocols.identity import peer_id
from protocols.limits import SHARED_MODELS_PER_PEER_MAX
from protocols.messages import Advert, SharedModel

__all__ = ["ModelShares", "shared_rows"]

log = structlog.get_logger(__name__)

OWNER = "shared-model:"
"""How the names begin under which manifests of shared models are pinned; files are under `FILES_OWNER`."""

FILES_OWNER = "shared-files:"


class ModelShares:
    """What this node shares.

    Args:
        store: where manifests and files are.
        tell: given all of it whenever it changes.
    """

    def __init__(self, store: BlobStore, tell: Callable[[tuple[SharedModel, ...]], None]) -> None:
        self._store = store
        self._tell = tell
        self._models: dict[str, SharedModel] = {}

    @property
    def models(self) -> dict[str, SharedModel]:
        """By name."""
        return dict(self._models)

    def restore(self) -> None:
        """Take up what was shared before a restart, as far as it is still here. Reads the store."""
        for stored in self._store.stored():
            for owner in stored.pins:
                if not owner.startswith(OWNER):
                    continue
                try:
                    name = owner.removeprefix(OWNER)
                    self._models[name] = self.read(name, stored.blob)
                except UserError as error:
                    log.warning("a model is shared no longer", owner=owner, why=str(error))
        self._tell(tuple(self._models.values()))

    def share(self, name: str, manifest: Blob) -> SharedModel:
        """Give a model's files to whoever asks from now on, and say so.

        Args:
            name: what it is called here.
            manifest: that lists its files, all of which are in the store.

        Raises:
            UserError: the manifest or a file isn't here, or it is none; or too many models are shared.
        """
        if name not in self._models and len(self._models) >= SHARED_MODELS_PER_PEER_MAX:
            raise UserError(f"{SHARED_MODELS_PER_PEER_MAX} models are shared already: stop sharing one")
        shared = self.read(name, manifest)
        self.stop(name)
        self._store.pin(manifest, OWNER + name)
        for blob in self._files(self._read(manifest)):
            self._store.pin(blob, FILES_OWNER + name)
        self._models[name] = shared
        self._tell(tuple(self._models.values()))
        return shared

    def stop(self, name: str) -> None:
        """Share a model no longer; does nothing if it isn't shared."""
        if self._models.pop(name, None) is None:
            return
        self._store.unpin(OWNER + name)
        self._store.unpin(FILES_OWNER + name)
        self._tell(tuple(self._models.values()))

    def read(self, name: str, manifest: Blob) -> SharedModel:
        """What would be said of a model that is shared by this manifest. Blocks on the disk.

        Raises:
            UserError: as `share`.
        """
        listed = self._read(manifest)
        for blob in self._files(listed):
            if not self._store.has(blob):
                raise UserError(f"blob {blob_name(blob)} of its manifest isn't here")
        return SharedModel(name, bytes.fromhex(listed.digest), manifest.digest, manifest.size_bytes)

    def _read(self, manifest: Blob) -> ModelManifest:
        try:
            return read_manifest(self._store.path(manifest).read_bytes())
        except (BlobError, OSError) as error:
            raise UserError(f"the manifest {blob_name(manifest)} can't be read: {error}") from error

    @staticmethod
    def _files(manifest: ModelManifest) -> list[Blob]:
        try:
            return [parse_blob_name(file.blob) for file in manifest.files]
        except ValueError as error:
            raise UserError(f"not a model's manifest: {error}") from error


def shared_rows(adverts: Iterable[Signed[Advert]], own: Sequence[SharedModel]) -> list[dict[str, Any]]:
    """Models that can be pulled, each with the peers that share it under this name.

    Args:
        adverts: of other peers.
        own: shared by this node; listed without a peer.
    """
    rows: dict[tuple[str, bytes, bytes], dict[str, Any]] = {}

    def row(model: SharedModel) -> dict[str, Any]:
        manifest = blob_name(Blob(model.manifest, model.manifest_bytes))
        fields = {"name": model.name, "digest": model.model.hex(), "manifest": manifest, "peers": []}
        return rows.setdefault((model.name, model.model, model.manifest), fields)

    for model in own:
        row(model)
    for advert in adverts:
        for model in advert.body.models:
            row(model)["peers"].append(peer_id(advert.signer))
    return sorted(rows.values(), key=lambda fields: (fields["name"], -len(fields["peers"]), fields["digest"]))
