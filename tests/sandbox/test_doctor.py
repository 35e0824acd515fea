"""`p2p-node doctor`: what it looks at, and what its exit status says."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

import p2p_node.health
from p2p_node.cli import cli
from p2p_node.health import Check, State, _port
from workloads.sandbox import LAYERS


def test_every_layer_is_told_of_with_what_it_enforces(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('listen = ["/ip4/127.0.0.1/tcp/0"]\n')
    tmp_path.chmod(0o700)
    result = CliRunner().invoke(cli, ["doctor", "--datadir", str(tmp_path), "-o", "json"])
    rows = {row["check"]: row for row in json.loads(result.stdout)}
    assert result.exit_code == (1 if any(row["state"] == "weak" for row in rows.values()) else 0)
    assert {f"sandbox: {name}" for name in LAYERS} <= rows.keys()
    assert all(row["detail"] for row in rows.values())
    parts = {"torch", "kernels", "machine", "devices", "worker", "threads", "bubblewrap", "disk"}
    assert parts | {"port", "reachable"} <= rows.keys()
    assert rows["port"]["state"] == "ok"
    if sys.platform == "linux":
        assert rows["threads"]["detail"].startswith("2 in a worker")


@pytest.mark.parametrize(
    ("states", "code"),
    [((State.OK,), 0), ((State.OK, State.WEAK), 1), ((State.WEAK, State.FAILS), 2)],
)
def test_the_exit_status_is_the_worst_of_the_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: Sequence[State], code: int
) -> None:
    checks = [Check(f"thing {number}", state, "as it is") for number, state in enumerate(states)]
    monkeypatch.setattr(p2p_node.health, "run", lambda config, place: checks)
    tmp_path.chmod(0o700)
    result = CliRunner().invoke(cli, ["doctor", "--datadir", str(tmp_path)])
    assert result.exit_code == code
    assert all(check.state.value in result.stdout for check in checks)


def test_a_port_is_free_or_answered_or_not_ours() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.getsockname()[1]
        assert _port(f"/ip4/127.0.0.1/tcp/{number}").state is State.WEAK
    assert _port(f"/ip4/127.0.0.1/tcp/{number}").state is State.OK
    # A documentation address: no machine has it.
    assert _port("/ip4/192.0.2.1/tcp/4150").state is State.FAILS
    assert _port("/dns4/example.org/tcp/4150").state is State.WEAK
