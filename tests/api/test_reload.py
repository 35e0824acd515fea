"""The owner changes whom to have to do with, by command, while the node runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from p2p_node.cli import cli
from p2p_node.client import ApiError, NodeClient
from protocols.identity import peer_id
from tests.api.rig import Rig

STRANGER = peer_id(bytes(range(32)))


@pytest.fixture
def config(rig: Rig) -> Iterator[Path]:
    path = rig.datadir / "config.toml"
    before = path.read_text() if path.exists() else None
    yield path
    if before is None:
        path.unlink(missing_ok=True)
    else:
        path.write_text(before)


def test_the_command_has_the_node_read_its_lists_and_tells_what_came_of_it(rig: Rig, config: Path) -> None:
    config.write_text(f'deny_peers = ["{STRANGER}"]\nallow_addresses = ["192.0.2.0/24", "198.51.100.7"]\n')
    done = CliRunner().invoke(cli, ["reload", "--datadir", str(rig.datadir)], catch_exceptions=False)
    assert (done.exit_code, done.output) == (
        0,
        "read again: allow_peers 0, deny_peers 1, allow_addresses 2, deny_addresses 0; peers cut off: 1\n",
    )


def test_a_file_that_breaks_a_rule_is_refused_with_the_rule(client: NodeClient, config: Path) -> None:
    config.write_text('deny_peers = ["nobody"]\n')
    with pytest.raises(ApiError, match="deny_peers") as refused:
        client.reload_lists()
    assert refused.value.status == 400
