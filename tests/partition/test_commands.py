"""Jobs in parts from the command line and through the API, on a node with a real API."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from p2p_node.cli import cli
from p2p_node.client import ApiError, NodeClient, connect
from p2p_node.errors import ExitCode
from tests.api.rig import Rig, running_rig

LEFT, RIGHT = [[1, 2], [3, 4], [5, 6], [-7, 8]], [[0, 1], [1, 2]]

JOB = f"""\
apiVersion: p2p/v1
kind: Job
name: product
task:
  workload: linalg.matmul
  rows: 4
  inner: 2
  columns: 2
  left: {LEFT}
  right: {RIGHT}
parts: 3
timeouts: {{queue: 10s, execution: 30s, total: 40s}}
"""


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running_rig(tmp_path_factory.mktemp("rig")) as running:
        yield running


@pytest.fixture
def client(rig: Rig) -> Iterator[NodeClient]:
    with connect(rig.datadir) as connected:
        yield connected


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "product.yaml"
    path.write_text(JOB)
    return path


def call(rig: Rig, *arguments: Any) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments), "--datadir", str(rig.datadir)])


def array_of(content: bytes) -> Any:
    return np.load(io.BytesIO(content))


def test_one_command_one_result_one_receipt(
    rig: Rig, client: NodeClient, job_file: Path, tmp_path: Path
) -> None:
    out, receipt = tmp_path / "product.npy", tmp_path / "receipt.json"
    ran = call(rig, "job", "run", job_file, "-O", out, "--receipt", receipt)
    assert ran.exit_code == ExitCode.OK, ran.stderr
    assert (array_of(out.read_bytes()) == np.array(LEFT) @ np.array(RIGHT)).all()
    assert "4 rows in 3 parts" in ran.stderr
    assert "3 of 3 are done" in ran.stderr
    checked = CliRunner().invoke(cli, ["job", "verify", str(receipt), "-o", "json"])
    assert checked.exit_code == ExitCode.OK, checked.stderr
    report = json.loads(checked.stdout)
    assert (report["state"], report["parts"], report["parts_verified"], report["units"]) == (
        "verified",
        3,
        3,
        8,
    )
    receipt.write_text(receipt.read_text().replace('"units": 8', '"units": 9'))
    refused = CliRunner().invoke(cli, ["job", "verify", str(receipt)])
    assert "file field 'units'" in str(refused.exception)

    job = next(job for job in client.jobs() if job["id"] == report["job_id"])
    assert sum(report["earnings_micros"].values()) == job["paid_micros"]
    part = client.job(job["parts"][0]["verified_by"])
    assert part["part_of"] == job["id"]
    # A part's result is its own rows, and its receipt holds by itself.
    assert array_of(client.result(part["id"])[0]).tolist() == [[2, 5], [4, 11]]
    (tmp_path / "part.json").write_bytes(client.receipt(part["id"]))
    assert CliRunner().invoke(cli, ["job", "verify", str(tmp_path / "part.json")]).exit_code == ExitCode.OK

    listed = call(rig, "job", "list").stdout
    assert (job["id"][:12] in listed, part["id"][:12] in listed) == (True, False)
    assert part["id"][:12] in call(rig, "job", "list", "--parts").stdout
    shown = call(rig, "job", "status", job["id"]).stdout
    assert "3 of 3" in shown and "rows 0 to 1" in shown
    assert "part 2" in call(rig, "job", "logs", job["id"]).stdout
    with pytest.raises(ApiError, match="nothing to resume"):
        client.resume(job["id"])
    with pytest.raises(ApiError, match="wasn't split"):
        client.resume(part["id"])


def test_a_quote_shows_the_parts(rig: Rig, job_file: Path) -> None:
    quoted = json.loads(call(rig, "job", "quote", job_file, "-o", "json").stdout)
    assert (quoted["parts"], quoted["items_of_parts"]) == (3, [2, 1, 1])
    assert quoted["total_micros"] == quoted["execution_micros"] + quoted["verification_micros"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("parts: 3", "parts: 5"), "parts: 5 must be at most the job's 4 rows"),
        (("parts: 3", "parts: 65"), "parts: must be an integer from 1 to 64, or auto"),
    ],
)
def test_parts_that_there_cannot_be(rig: Rig, job_file: Path, change: tuple[str, str], message: str) -> None:
    job_file.write_text(JOB.replace(*change))
    assert message in str(call(rig, "job", "run", job_file).exception)


def test_work_that_does_not_fall_into_parts_says_so(rig: Rig, tmp_path: Path) -> None:
    path = tmp_path / "verse.yaml"
    path.write_text(
        "{apiVersion: p2p/v1, kind: Job, name: verse, parts: 2, "
        "task: {workload: lm.generate, model: kjv-2m, prompts: [a, b], logprobs: 1}}"
    )
    for command in ("run", "quote"):
        assert "parts: a job with logprobs isn't split" in str(call(rig, "job", command, path).exception)


def test_a_ceiling_that_is_too_low_ends_the_job_and_more_time_does_not_help(
    rig: Rig, client: NodeClient, job_file: Path
) -> None:
    job_file.write_text(f"{JOB}auction: {{max_total: 10}}\n")
    ran = call(rig, "job", "run", job_file)
    assert ran.exit_code == ExitCode.TASK_FAILED
    assert "auction.max_total: part 0 (rows 0 to 1) may cost" in ran.stderr
    assert "parts 0, 1, 2 are missing" in ran.stderr
    job_id = next(job["id"] for job in client.jobs() if job["reason"].startswith("auction.max_total"))
    again = call(rig, "job", "run", "--resume", job_id)
    assert again.exit_code == ExitCode.TASK_FAILED
    assert "0 of 3 parts are done already" in again.stderr


def test_cancelled_and_resumed(rig: Rig, client: NodeClient, job_file: Path) -> None:
    job_id = call(rig, "job", "run", job_file, "--id-only").stdout.strip()
    call(rig, "job", "cancel", job_id)
    list(client.events(job_id))
    assert client.job(job_id)["state"] in ("cancelled", "verified")
    if client.job(job_id)["state"] == "cancelled":
        resumed = call(rig, "job", "run", "--resume", job_id)
        assert resumed.exit_code == ExitCode.OK, resumed.stderr
    assert client.job(job_id)["parts_verified"] == 3


def test_usage(rig: Rig, job_file: Path) -> None:
    for arguments in ((), (job_file, "--resume", "ab")):
        assert "either a job FILE or --resume ID" in call(rig, "job", "run", *arguments).stderr


def test_the_document_tells_of_every_event(client: NodeClient) -> None:
    text = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    section = text.split("### Jobs in parts\n")[1].split("\n### ")[0]
    told = set(re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE))
    for job in client.jobs():
        if "parts" in job:
            assert {event["event"] for event in client.events(job["id"])} <= told
            assert all(f"`{name}`" in section for name in job["parts"][0])
