"""What a swarm's processes do at their beginning and at their end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from p2p_node import swarm as swarms
from p2p_node.swarm import Swarm, SwarmError, running_swarm

P2P_NODE = [sys.executable, "-m", "p2p_node"]


def test_a_second_node_on_a_datadir_refuses_and_names_the_first(swarm: Swarm) -> None:
    peer = swarm.requester
    second = subprocess.run(
        [*P2P_NODE, "start", "--datadir", str(peer.datadir)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert second.returncode == 2
    assert f"in use by process {peer.process.pid}" in second.stderr


def test_sigterm_ends_a_node_and_its_workers_within_5_s(swarm: Swarm) -> None:
    peer = swarm.add()
    swarm.wait_until_acquainted()
    workers = psutil.Process(peer.process.pid).children(recursive=True)
    assert len(workers) == 4, "two workers, what they were forked from, and the process that waits for it"
    peer.process.send_signal(signal.SIGTERM)
    assert peer.process.wait(timeout=5) == 0
    _, left = psutil.wait_procs(workers, timeout=5)
    assert left == []
    assert not (peer.datadir / "api.json").exists()


def test_a_peer_that_does_not_start_is_told_with_the_end_of_its_log(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = int(swarm.requester.address.split("/")[4])
    monkeypatch.setattr(swarms, "_free_ports", lambda count: [taken])
    peer = swarm.add()
    with pytest.raises(SwarmError, match=rf"(?s)peer {peer.index} ended with status 2.*{taken}"):
        swarm.wait_until_acquainted()
    assert peer not in swarm.peers


def test_ctrl_c_ends_swarm_up_and_leaves_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*P2P_NODE, "swarm", "up", "-n", "2", "--cheat", "skipped-layer=1", "--latency", "5ms"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    try:
        shown = ""
        assert process.stdout is not None
        for line in process.stdout:
            shown += line
            if "skipped-layer" in line:
                break
        assert "p2p-node job run" in shown, shown
        (folder,) = tmp_path.glob("p2p-node-swarm-*")
        assert str(folder / "peer-0") in shown
        peers = psutil.Process(process.pid).children(recursive=True)
        assert len(peers) == 10, "two nodes, each with two workers and what it takes to fork them"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=15) == 0
        _, left = psutil.wait_procs(peers, timeout=5)
        assert left == []
        assert list(tmp_path.iterdir()) == []
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_a_peer_ends_with_its_parent(tmp_path: Path) -> None:
    made = subprocess.run([*P2P_NODE, "init", "--no-passphrase", "--datadir", str(tmp_path)], check=False)
    assert made.returncode == 0
    command = [*P2P_NODE, "start", "--datadir", str(tmp_path), "--api", "off", "--no-mdns", "--parent"]
    program = (
        "import json, os, subprocess, sys, time\n"
        "child = subprocess.Popen([*json.loads(sys.argv[1]), str(os.getpid())])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, json.dumps(command)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        lock = tmp_path / "lock"
        while not lock.exists() or not lock.read_text():
            assert child.is_running()
        parent.kill()
        psutil.wait_procs([child], timeout=10)
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()


@pytest.mark.parametrize(
    ("count", "cheats", "complaint"),
    [
        (5, {"optimism": 1}, "cheat 'optimism' must be one of smaller-model"),
        (1, {}, "a swarm must have 2 to 64 peers, one of them honest, got 1 with 0 cheaters"),
        (3, {"skipped-layer": 3}, "got 3 with 3 cheaters"),
        (65, {}, "got 65"),
    ],
)
def test_a_swarm_that_cannot_be_is_refused(count: int, cheats: dict[str, int], complaint: str) -> None:
    with pytest.raises(SwarmError, match=complaint), running_swarm(count, cheats=cheats):
        pytest.fail("it must not start")
