"""`p2p-node job run` against a running node: output, files and exit codes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
import yaml

from p2p_node import swarm
from p2p_node.client import NodeClient, NodeNotRunning, connect
from p2p_node.core.keyring import RealCrypto
from p2p_node.errors import UserError
from p2p_node.receipts import check_file
from tests.api.rig import PRODUCT, Rig
from tests.cli.conftest import Run

JobFile = Callable[..., Path]


def test_the_text_goes_to_stdout_and_the_story_to_stderr(run: Run, rig: Rig, job_file: JobFile) -> None:
    result = run("job", "run", job_file(name="told"))
    assert result.exit_code == 0
    with connect(rig.datadir) as client:
        job = client.jobs()[-1]
    assert result.stdout == job["text"] + "\n"
    for word in ("offered", "bid", "awarded", "tokens", "committed", "drawn", "verdict", "paid", "finished"):
        assert f"  {word} " in result.stderr
    assert "40 tokens by " in result.stderr


@pytest.mark.parametrize(("output", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_machines_get_one_document(
    run: Run, job_file: JobFile, output: str, load: Callable[[str], dict[str, Any]]
) -> None:
    result = run("job", "run", job_file(), "-o", output)
    job = load(result.stdout)
    assert (result.exit_code, job["state"], job["units"]) == (0, "verified", 40)
    assert job["executor"] in job["paid_micros"]
    assert set(job["verifiers"].values()) == {"agrees"}
    assert job["milestones_ms"]["awarded"] <= job["milestones_ms"]["finished"]


def test_the_receipt_is_written(run: Run, job_file: JobFile, tmp_path: Path) -> None:
    path = tmp_path / "receipt.json"
    assert run("job", "run", job_file(), "--receipt", path).exit_code == 0
    assert check_file(path.read_bytes(), RealCrypto()).state == "verified"
    with pytest.raises(UserError, match="can't write the receipt to"):
        run("job", "run", job_file(), "--receipt", tmp_path / "nowhere" / "receipt.json")


def test_what_is_not_text_goes_to_a_file(run: Run, tmp_path: Path) -> None:
    document, path = tmp_path / "product.yaml", tmp_path / "product.npy"
    document.write_bytes(PRODUCT)
    result = run("job", "run", document, "-O", path)
    assert (result.exit_code, result.stdout) == (0, "")
    assert np.load(path).tolist() == [[2, 1], [4, 3]]
    assert f"{path}: NumPy file of 2 x 2 32-bit integers" in result.stderr
    assert "4 entries by " in result.stderr
    without = run("job", "run", document)
    assert (without.exit_code, without.stdout) == (0, "")
    assert "isn't text: --output-file FILE would have kept it" in without.stderr
    with pytest.raises(UserError, match="can't write the result to"):
        run("job", "run", document, "-O", tmp_path / "nowhere" / "product.npy")


def test_no_bids(run: Run, job_file: JobFile) -> None:
    result = run("job", "run", job_file(max_price=1))
    assert (result.exit_code, result.stdout) == (3, "")
    assert "3 peers: price; raise auction.max_price from 1 to 100" in result.stderr


def test_the_timeout_cancels(run: Run, rig: Rig, job_file: JobFile) -> None:
    result = run("job", "run", job_file(window="9s", max_price=1), "--timeout", "100ms", "-o", "json")
    assert result.exit_code == 6
    assert json.loads(result.stdout)["state"] == "cancelled"
    with connect(rig.datadir) as client:
        assert client.status()["jobs_open"] == 0


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("verified", 0),
        ("no_bids", 3),
        ("task_failed", 4),
        ("cancelled", 4),
        ("verification_failed", 5),
        ("timed_out", 6),
    ],
)
def test_the_final_state_is_the_exit_code(
    run: Run, job_file: JobFile, monkeypatch: pytest.MonkeyPatch, state: str, code: int
) -> None:
    real = NodeClient.job

    def ended(self: NodeClient, prefix: str) -> dict[str, Any]:
        return real(self, prefix) | {"state": state}

    monkeypatch.setattr(NodeClient, "job", ended)
    assert run("job", "run", job_file()).exit_code == code
    # A job with another end than verified has no text to print.
    assert bool(run("job", "run", job_file()).stdout) == (state == "verified")


def test_without_following(run: Run, rig: Rig, job_file: JobFile) -> None:
    result = run("job", "run", job_file(name="later"), "--no-follow", "-o", "json")
    job = json.loads(result.stdout)
    assert (result.exit_code, job["name"], job["state"]) == (0, "later", "bidding")
    with connect(rig.datadir) as client:
        assert list(client.events(job["id"]))[-1]["state"] == "verified"


def test_the_id_alone(run: Run, rig: Rig, job_file: JobFile) -> None:
    result = run("job", "run", job_file(), "--id-only")
    assert result.stderr == ""
    with connect(rig.datadir) as client:
        assert list(client.events(result.stdout.strip()))[-1]["state"] == "verified"
    followed = run("job", "run", job_file(max_price=1), "--id-only", "--follow")
    assert followed.exit_code == 3
    assert len(followed.stdout.strip()) == 64


def test_a_bad_file_is_located(run: Run, job_file: JobFile, tmp_path: Path) -> None:
    path = job_file(max_tokens=0)
    with pytest.raises(UserError, match=rf"{path}: line 8: task\.max_tokens") as refused:
        run("job", "run", path)
    assert refused.value.exit_code == 2
    # Before a swarm is started for it.
    with pytest.raises(UserError, match=r"task\.max_tokens"):
        run("job", "run", path, "--swarm", "3")
    with pytest.raises(UserError, match="can't read the job file"):
        run("job", "run", tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--no-follow", "--receipt", "r.json"], "need --follow"),
        (["--id-only", "--timeout", "1s"], "need --follow"),
        (["--no-follow", "--swarm", "3"], "need --follow"),
        (["--cheat", "skipped-layer=1"], "--cheat and --models need --swarm"),
        (["--swarm", "3", "--datadir", "/tmp"], "--swarm and --datadir exclude each other"),
        (["--swarm", "3", "--cheat", "skipped-layer"], "must be KIND=COUNT"),
        (["--swarm", "3", "--cheat", "=1"], "must be KIND=COUNT"),
        (["--swarm", "3", "--cheat", "skipped-layer=-1"], "must be KIND=COUNT"),
        (["--timeout", "soon"], "must be a whole number and one of"),
    ],
)
def test_usage(run: Run, job_file: JobFile, arguments: list[str], why: str) -> None:
    result = run("job", "run", job_file(), *arguments)
    assert result.exit_code == 2
    assert why in " ".join(result.stderr.split())


def test_a_swarm_of_its_own(run: Run, rig: Rig, job_file: JobFile, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whether real swarms start is tested with them; here it is how one is asked for and left.
    story: list[Any] = []

    @contextlib.contextmanager
    def running(
        count: int, *, cheats: dict[str, int], models: tuple[Path, ...], on_event: Any
    ) -> Iterator[SimpleNamespace]:
        story.append((count, cheats))
        on_event("up", {"peer": SimpleNamespace(peer_id="12D3KooWpeer", cheat="")})
        on_event("acquainted", {"peers": [1, 2, 3]})
        yield SimpleNamespace(requester=SimpleNamespace(datadir=rig.datadir))
        story.append("ended")

    monkeypatch.setattr(swarm, "running_swarm", running)
    cheats = ["--cheat", "skipped-layer=1", "--cheat", "quantized-weights=2", "--cheat", "skipped-layer=1"]
    result = run("job", "run", job_file(), "--swarm", "6", *cheats)
    assert result.exit_code == 0
    assert story == [(6, {"skipped-layer": 2, "quantized-weights": 2}), "ended"]
    assert "3 peers know each other" in result.stderr


def test_ctrl_c_leaves_the_job_running(
    run: Run, rig: Rig, job_file: JobFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = NodeClient.events

    def interrupted(self: NodeClient, prefix: str) -> Iterator[dict[str, Any]]:
        yield next(real(self, prefix))
        raise KeyboardInterrupt

    monkeypatch.setattr(NodeClient, "events", interrupted)
    result = run("job", "run", job_file())
    assert result.exit_code == 130
    assert "the job goes on; follow it with: p2p-node job logs -f" in result.stderr
    monkeypatch.undo()
    with connect(rig.datadir) as client:
        assert list(client.events(client.jobs()[-1]["id"]))[-1]["state"] == "verified"


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["peers"],
        ["job", "list"],
        ["job", "get", "00"],
        ["job", "explain", "00"],
        ["job", "logs", "00"],
    ],
)
def test_without_a_node(run: Run, tmp_path: Path, arguments: list[str]) -> None:
    with pytest.raises(NodeNotRunning, match="start one with: p2p-node start --datadir"):
        run(*arguments, "--datadir", tmp_path)


def test_every_command_has_help(run: Run) -> None:
    from p2p_node.cli.job import COMMANDS

    assert {"run", "status", "logs", "get", "list", "cancel", "explain", "verify"} <= set(COMMANDS)
    for name, entry in COMMANDS.items():
        command = entry.load()
        assert isinstance(command, click.Command)
        assert command.name == name
        assert run("job", name, "--help").exit_code == 0
