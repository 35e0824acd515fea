"""Blobs through the local API and the command line: in, out, from peers, kept and thrown away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from p2p_node.blobs import BlobUnavailable
from p2p_node.cli import cli
from p2p_node.client import ApiError, NodeClient
from p2p_node.errors import UserError
from protocols.blobs import blob_name, blob_of
from protocols.identity import peer_id
from tests.api.rig import Rig
from tests.blobs.rig import MIB, content

DATA = content(11, 2 * MIB + 99)
NAME = blob_name(blob_of(DATA))
ELSEWHERE = content(12, 3 * MIB + 1)
ELSEWHERE_NAME = blob_name(blob_of(ELSEWHERE))


@pytest.fixture(autouse=True)
def empty_store(client: NodeClient) -> None:
    for row in client.blobs():
        client.unpin_blob(row["blob"])
        client.remove_blob(row["blob"])


def parts(data: bytes, size: int = 300_000) -> Any:
    return (data[at : at + size] for at in range(0, len(data), size))


def test_what_is_uploaded_is_listed_and_read_back(client: NodeClient) -> None:
    assert client.upload_blob(parts(DATA)) == {"blob": NAME, "size_bytes": len(DATA)}
    (row,) = client.blobs()
    assert (row["blob"], row["size_bytes"], row["pins"]) == (NAME, len(DATA), [])
    assert b"".join(client.blob_content(NAME)) == DATA
    assert client.pin_blob(NAME) == {"blob": NAME, "pinned": True}
    assert client.blobs()[0]["pins"] == ["user"]
    with pytest.raises(ApiError, match="must not be pinned, and is by user") as refusal:
        client.remove_blob(NAME)
    assert refusal.value.status == 409
    client.unpin_blob(NAME)
    assert client.remove_blob(NAME) == {"blob": NAME, "removed": True}
    for call in (client.pin_blob, client.remove_blob, lambda name: list(client.blob_content(name))):
        with pytest.raises(ApiError, match="isn't here") as refusal:
            call(NAME)
        assert refusal.value.status == 404


def test_a_blob_is_fetched_from_a_peer_with_progress(rig: Rig, client: NodeClient) -> None:
    giver = rig.others[1]
    assert giver.blobs is not None
    giver.blobs.store.add(ELSEWHERE)
    steps = list(client.fetch_blob(ELSEWHERE_NAME, peer_id(giver.core.key)))
    assert steps == sorted(steps) and steps[-1] == len(ELSEWHERE)
    assert b"".join(client.blob_content(ELSEWHERE_NAME)) == ELSEWHERE
    client.remove_blob(ELSEWHERE_NAME)
    # And from whoever is connected.
    assert list(client.fetch_blob(ELSEWHERE_NAME))[-1] == len(ELSEWHERE)


def test_a_fetch_that_fails_says_why(rig: Rig, client: NodeClient) -> None:
    with pytest.raises(BlobUnavailable, match=r"can't be had from 1 peers .*refused: not here"):
        list(client.fetch_blob(NAME, peer_id(rig.others[0].core.key)))
    with pytest.raises(ApiError, match="peer id"):
        list(client.fetch_blob(NAME, "12D3KooWnobody"))


def test_a_blob_that_doesnt_fit_is_refused(client: NodeClient) -> None:
    with pytest.raises(ApiError, match="must fit into blob_bytes_max") as refusal:
        client.upload_blob(bytes(MIB) for _ in range(17))
    assert refusal.value.status == 507
    assert client.blobs() == []


@pytest.mark.parametrize("name", ["junk", "ab" * 32, "ab" * 32 + ":x"])
def test_a_bad_name_is_refused_by_its_rule(client: NodeClient, http: httpx.Client, name: str) -> None:
    with pytest.raises(UserError, match="blob name"):
        client.pin_blob(name)
    answer = http.get(f"/v1/blobs/{name}")
    assert answer.status_code == 400
    assert "blob name" in answer.json()["error"]["message"]


# --- The command line ---------------------------------------------------------------------------

Run = Callable[..., Result]


@pytest.fixture
def run(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("P2P_NODE_DATADIR", str(rig.datadir))

    def call(*arguments: str | Path) -> Result:
        result = CliRunner().invoke(cli, ["blob", *(str(argument) for argument in arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit | UserError):
            raise result.exception
        return result

    return call


def test_a_files_way_in_and_out(run: Run, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(DATA)
    assert run("add", source).stdout == f"{NAME}\n"
    assert '"pinned": true' in run("add", source, "--pin", "-o", "json").stdout
    assert "user" in run("list").stdout
    got = run("get", NAME, "-o", target)
    assert got.exit_code == 0 and got.stdout == ""
    assert target.read_bytes() == DATA
    assert run("get", NAME, "-o", "-").stdout_bytes == DATA
    assert "must not be pinned" in str(run("rm", NAME).exception)
    assert '"pinned": false' in run("unpin", NAME, "-o", "json").stdout
    assert run("rm", NAME).exit_code == 0
    assert "no blobs yet" in run("list").stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


def test_a_blob_comes_from_a_named_peer(run: Run, rig: Rig, tmp_path: Path) -> None:
    giver = rig.others[2]
    assert giver.blobs is not None
    giver.blobs.store.add(ELSEWHERE)
    target = tmp_path / "target"
    assert run("get", ELSEWHERE_NAME, "-o", target, "--from", peer_id(giver.core.key)).exit_code == 0
    assert target.read_bytes() == ELSEWHERE


def test_what_cant_be_done_is_said(run: Run, tmp_path: Path) -> None:
    assert "can't read" in str(run("add", tmp_path / "absent").exception)
    assert "must be <digest in hex>:<size in bytes>" in str(run("get", "junk", "-o", "x").exception)
    failed = run("get", NAME, "-o", tmp_path / "target").exception
    assert isinstance(failed, BlobUnavailable) and failed.exit_code == 4
    assert list(tmp_path.iterdir()) == []
