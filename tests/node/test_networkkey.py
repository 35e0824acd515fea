"""The file with a private network's key."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

from p2p_node import networkkey
from p2p_node.cli import cli
from p2p_node.networkkey import NetworkKeyError

GOOD = f"/key/swarm/psk/1.0.0/\n/base16/\n{'ab' * 32}\n"


def test_what_the_command_makes_is_read_and_differs_each_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert CliRunner().invoke(cli, ["network-key", str(tmp_path / name)]).exit_code == 0
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    one, two = networkkey.load(tmp_path / "one"), networkkey.load(tmp_path / "two")
    assert len(one) == len(two) == 32
    assert one != two


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    networkkey.create(tmp_path / "key")
    before = (tmp_path / "key").read_bytes()
    with pytest.raises(NetworkKeyError, match="never overwritten"):
        networkkey.create(tmp_path / "key")
    assert (tmp_path / "key").read_bytes() == before


def written(tmp_path: Path, content: str, mode: int = 0o600) -> Path:
    path = tmp_path / "swarm.key"
    path.write_text(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("content", [GOOD, GOOD.strip(), GOOD.replace("\n", "\r\n")])
def test_files_of_other_libp2p_programs_are_read(tmp_path: Path, content: str) -> None:
    assert networkkey.load(written(tmp_path, content)) == b"\xab" * 32


@pytest.mark.parametrize(
    "content",
    ["", "ab" * 32, GOOD[:-3], GOOD.replace("base16", "base64"), GOOD.replace("ab", "zz"), GOOD * 40],
)
def test_what_is_no_key_is_refused_and_not_shown(tmp_path: Path, content: str) -> None:
    with pytest.raises(NetworkKeyError, match="must hold /key/swarm/psk") as caught:
        networkkey.load(written(tmp_path, content))
    assert "abab" not in str(caught.value)


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NetworkKeyError, match="mode 0640"):
        networkkey.load(written(tmp_path, GOOD, 0o640))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NetworkKeyError, match="No such file"):
        networkkey.load(tmp_path / "absent")
