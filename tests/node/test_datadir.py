"""One directory, one running node."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from p2p_node.datadir import DataDir, DataDirError, DataDirLocked

HOLDER = """
import sys
from pathlib import Path
from p2p_node.datadir import DataDir
with DataDir.open(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_new_directory_is_its_owners_alone(tmp_path: Path) -> None:
    place = DataDir.open(tmp_path / "new" / "node")
    assert place.path.stat().st_mode & 0o777 == 0o700
    assert place.keystore.parent == place.config.parent == place.store.parent == place.path


def test_the_default_lies_in_the_users_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    place = DataDir.open()
    assert place.path.is_relative_to(tmp_path)
    assert place.path.name == "p2p-node"


def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(DataDirError, match=r"has mode 0777.*chmod 700"):
        DataDir.open(tmp_path)


def test_a_file_in_its_place_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataDirError, match="can't make the data directory"):
        DataDir.open(tmp_path / "file")


def test_the_second_node_is_told_the_pid_of_the_first(tmp_path: Path) -> None:
    place = DataDir.open(tmp_path / "node")
    holder = hold(place.path)
    try:
        with pytest.raises(DataDirLocked, match=f"process {holder.pid};") as caught, place.lock():
            pass
        assert caught.value.pid == holder.pid
    finally:
        holder.communicate()
    with place.lock():
        assert (place.path / "lock").read_text() == f"{os.getpid()}\n"


def test_a_killed_node_leaves_no_lock(tmp_path: Path) -> None:
    place = DataDir.open(tmp_path / "node")
    holder = hold(place.path)
    holder.kill()
    holder.communicate()
    with place.lock():
        pass
