"""One running node for all tests of the commands that talk to one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from p2p_node.cli import cli
from tests.api.rig import Rig, job_document, running_rig

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running_rig(tmp_path_factory.mktemp("rig")) as running:
        yield running


@pytest.fixture
def run(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call ``p2p-node`` with these arguments on the running node."""
    monkeypatch.setenv("P2P_NODE_DATADIR", str(rig.datadir))

    def call(*arguments: str | Path) -> Result:
        result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


@pytest.fixture
def job_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a job file with some fields changed."""

    def write(**changes: object) -> Path:
        path = tmp_path / "job.yaml"
        path.write_bytes(job_document(**changes))
        return path

    return write
