"""Commands that show what a running node knows: of itself, its peers and its jobs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from p2p_node.client import ApiError, NodeClient, connect
from p2p_node.errors import UserError
from tests.api.rig import NETWORK, PEERS, PRODUCT, Rig, job_document
from tests.cli.conftest import Run

Load = Callable[[str], Any]
FORMATS = pytest.mark.parametrize(("output", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])


@pytest.fixture(scope="module")
def done(rig: Rig) -> dict[str, Any]:
    """A verified job."""
    with connect(rig.datadir) as client:
        job = client.submit(job_document(name="shown"))
        list(client.events(job["id"]))
        return client.job(job["id"])


@FORMATS
def test_status(run: Run, output: str, load: Load) -> None:
    status = load(run("status", "-o", output).stdout)
    assert (status["network"], status["connected"]) == (NETWORK, PEERS - 1)
    table = run("status").stdout
    assert f"network  {'':12}{NETWORK}".split() == next(
        line.split() for line in table.splitlines() if line.startswith("network")
    )
    assert "it offers no model" in table


@FORMATS
def test_peers(run: Run, output: str, load: Load) -> None:
    rows = load(run("peers", "-o", output).stdout)
    assert len(rows) == PEERS - 1
    lines = run("peers").stdout.splitlines()
    assert len(lines) == PEERS
    assert {line.split()[0] for line in lines[1:]} == {row["peer_id"] for row in rows}
    assert all("kjv-2m" in line for line in lines[1:])


def test_no_peers_yet(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NodeClient, "peers", lambda self: [])
    assert run("peers").stderr == "no peers yet\n"
    assert json.loads(run("peers", "-o", "json").stdout) == []


def test_a_peer_that_has_not_advertised_itself(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    row = dict.fromkeys(
        [
            *("direction", "rtt_ms", "slots_free", "slots_total", "cores", "ram_bytes", "accelerators"),
            *("gemm_fp32_mflops", "gemm_bf16_mflops", "offerings"),
        ]
    )
    row |= {"peer_id": "12D3KooWquiet", "points": 3, "reputation_ppm": 0, "convicted": True}
    monkeypatch.setattr(NodeClient, "peers", lambda self: [row])
    assert run("peers").stdout.splitlines()[1].split()[:5] == ["12D3KooWquiet", "no", "-", "3", "convicted"]


@FORMATS
def test_job_status_and_list(run: Run, done: dict[str, Any], output: str, load: Load) -> None:
    assert load(run("job", "status", done["id"][:16], "-o", output).stdout) == done
    # A list leaves out each prompt's result.
    listed = {name: value for name, value in done.items() if name != "outputs"}
    assert listed in load(run("job", "list", "-o", output).stdout)
    assert f"{done['id'][:12]}  shown" in run("job", "list").stdout
    assert "verified" in run("job", "status", done["id"]).stdout


def test_job_get(run: Run, rig: Rig, done: dict[str, Any]) -> None:
    assert run("job", "get", done["id"]).stdout == done["text"] + "\n"
    with connect(rig.datadir) as client:
        open_job = client.submit(job_document(window="9s", max_price=1))
        with pytest.raises(UserError, match=r"the job is \w+; follow it with: p2p-node job logs -f"):
            run("job", "get", open_job["id"])
        assert run("job", "cancel", open_job["id"]).exit_code == 0
        result = run("job", "get", open_job["id"])
        assert (result.exit_code, result.stdout) == (4, "")
        assert "the job ended as cancelled: cancelled by the client" in result.stderr
        poor = client.submit(job_document(max_price=1))
        list(client.events(poor["id"]))
    assert run("job", "get", poor["id"]).exit_code == 3


def test_job_get_writes_files(run: Run, rig: Rig, done: dict[str, Any], tmp_path: Path) -> None:
    text = tmp_path / "verse.txt"
    assert run("job", "get", done["id"], "-O", str(text)).stdout == ""
    assert text.read_text() == done["text"]
    with connect(rig.datadir) as client:
        identifier = client.submit(PRODUCT)["id"]
        list(client.events(identifier))
        assert client.job(identifier)["text"] == ""
    with pytest.raises(UserError, match="is a NumPy file of 2 x 2 32-bit integers: give --output-file"):
        run("job", "get", identifier)
    run("job", "get", identifier, "-O", str(tmp_path / "product.npy"))
    assert np.load(tmp_path / "product.npy").tolist() == [[2, 1], [4, 3]]
    with pytest.raises(UserError, match="can't write the result to"):
        run("job", "get", identifier, "-O", str(tmp_path / "no" / "product.npy"))
    assert "per entry" in run("job", "logs", identifier).stdout


def test_job_logs(run: Run, done: dict[str, Any]) -> None:
    lines = run("job", "logs", done["id"]).stdout.splitlines()
    assert lines[0].split() == ["0.00", "s", "offered", "to", "whoever", "bids"]
    assert lines[-1].endswith("finished    verified")
    events = [
        json.loads(line) for line in run("job", "logs", "-f", done["id"], "-o", "json").stdout.splitlines()
    ]
    assert events[-1]["event"] == "finished"
    assert sum(event["event"] == "output" for event in events) > 0


def test_job_explain(run: Run, rig: Rig, done: dict[str, Any]) -> None:
    assert run("job", "explain", done["id"]).stderr == "no peer declined; the job is verified\n"
    with connect(rig.datadir) as client:
        poor = client.submit(job_document(max_price=1))
        list(client.events(poor["id"]))
    assert "raise auction.max_price from 1 to 100" in run("job", "explain", poor["id"]).stdout
    explained = json.loads(run("job", "explain", poor["id"], "-o", "json").stdout)
    assert explained["declines"][0]["count"] == PEERS - 1


def test_an_id_that_names_nothing(run: Run) -> None:
    for command in ("status", "get", "logs", "cancel", "explain"):
        with pytest.raises(ApiError, match="0 jobs have an id that begins with 'zz'") as refused:
            run("job", command, "zz")
        assert refused.value.exit_code == 2


def test_output_to_a_terminal_is_harmless(rig: Rig, done: dict[str, Any], tmp_path: Path) -> None:
    import os
    import pty
    import subprocess
    import sys

    # The rig's text has control characters in it.
    assert not done["text"].replace("\n", "").isprintable()
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "p2p_node", "job", "get", done["id"], "--datadir", str(rig.datadir)]
    subprocess.run(command, stdout=theirs, stderr=theirs, check=True, cwd=Path(__file__).parents[2])
    os.close(theirs)
    shown = os.read(ours, 65_536).decode()
    os.close(ours)
    assert shown.replace("\r\n", "").isprintable()
