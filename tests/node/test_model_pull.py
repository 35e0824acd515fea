"""Which model a name means, among what peers share; and what this node shares, over restarts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from p2p_node.blobs import BlobStore
from p2p_node.cli.model_pull import _find
from p2p_node.client import NodeClient
from p2p_node.errors import UserError
from p2p_node.modelmanifest import ModelFile, ModelManifest, write_manifest
from p2p_node.modelshares import ModelShares, shared_rows
from protocols.blobs import Blob, blob_name
from protocols.identity import peer_id
from protocols.messages import SharedModel
from tests.support.builders import advert, changed, key, signed

ONE, OTHER = b"1" * 32, b"2" * 32
MANIFEST = b"m" * 32


def shared(name: str, digest: bytes = ONE, manifest: bytes = MANIFEST) -> SharedModel:
    return SharedModel(name, digest, manifest, 300)


def rows(*sharing: tuple[int, SharedModel]) -> list[dict[str, Any]]:
    adverts = [signed(number, changed(advert(number).body, models=(model,))) for number, model in sharing]
    return shared_rows(adverts, [])


class Client:
    def __init__(self, *sharing: tuple[int, SharedModel]) -> None:
        self.rows = rows(*sharing)

    def shared_models(self, wanted: str | None = None) -> list[dict[str, Any]]:
        return self.rows


def found(wanted: str, *sharing: tuple[int, SharedModel]) -> tuple[str, list[str], str | None]:
    return _find(cast(NodeClient, Client(*sharing)), wanted)


def test_a_name_is_found_with_all_who_share_it() -> None:
    name = blob_name(Blob(MANIFEST, 300))
    peers = [peer_id(key(2)), peer_id(key(3))]
    sharing = ((2, shared("fox")), (3, shared("fox")), (1, shared("dog", OTHER)))
    assert found("fox", *sharing) == (name, peers, ONE.hex())
    assert found(ONE.hex(), *sharing) == (name, peers, ONE.hex())
    assert found(MANIFEST.hex(), *sharing[:2]) == (name, peers, ONE.hex())
    assert found(name, *sharing[:2]) == (name, peers, None)
    assert found(name)[:2] == (name, [])


def test_a_name_that_means_two_models_is_refused_with_both() -> None:
    with pytest.raises(UserError) as refused:
        found("fox", (1, shared("fox")), (2, shared("fox", OTHER)), (3, shared("fox", OTHER)))
    told = str(refused.value)
    assert "'fox' means 2 models; pull one by its digest:" in told
    assert f"{OTHER.hex()}  from 2 peers, e.g. {peer_id(key(2))}" in told
    assert f"{ONE.hex()}  from 1 peers, e.g. {peer_id(key(1))}" in told
    assert told.index(OTHER.hex()) < told.index(ONE.hex())


def test_a_name_that_nobody_shares_gets_near_ones() -> None:
    with pytest.raises(UserError, match="no peer known here shares model 'fxo'; did you mean fox"):
        found("fxo", (1, shared("fox")))
    with pytest.raises(UserError, match="shared: none"):
        found("fox")
    with pytest.raises(UserError, match="a model's manifest 65536 at most"):
        found(blob_name(Blob(MANIFEST, 1 << 20)))


def opened(folder: Path) -> BlobStore:
    return BlobStore.open(folder, bytes_max=1 << 24, clock=lambda: 1)


def test_what_is_shared_is_told_and_outlives_a_restart(tmp_path: Path) -> None:
    store, told = opened(tmp_path), list[tuple[SharedModel, ...]]()
    file = store.add(b"weights")
    listed = ModelManifest(
        "fox", "lm.generate", ONE.hex(), (ModelFile("model.safetensors", blob_name(file)),)
    )
    manifest = store.add(write_manifest(listed))
    shares = ModelShares(store, told.append)
    shares.share("fox", manifest)
    expected = SharedModel("fox", ONE, manifest.digest, manifest.size_bytes)
    assert told == [(expected,)]
    assert store.owners(file) == ("shared-files:fox",)
    store.close()
    again = ModelShares(opened(tmp_path), told.append)
    again.restore()
    assert told[-1] == (expected,)
    again.stop("fox")
    assert told[-1] == () and again.models == {}


def test_what_isnt_whole_isnt_shared(tmp_path: Path) -> None:
    store = opened(tmp_path)
    missing = ModelFile("model.safetensors", blob_name(Blob(b"x" * 32, 7)))
    manifest = store.add(write_manifest(ModelManifest("fox", "lm.generate", ONE.hex(), (missing,))))
    shares = ModelShares(store, lambda models: None)
    with pytest.raises(UserError, match="of its manifest isn't here"):
        shares.share("fox", manifest)
    with pytest.raises(UserError, match="not a model's manifest"):
        shares.share("fox", store.add(b"{}"))
    assert shares.models == {} and store.owners(manifest) == ()
