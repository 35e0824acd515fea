"""Two nodes that listen nowhere: one gives a job, and the other does it and earns, through a relay."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from p2p_node import keystore
from p2p_node.client import connect
from p2p_node.datadir import DataDir
from p2p_node.swarm import Swarm
from protocols.identity import peer_id
from tests.swarm.jobs import DOCUMENT

PATIENCE_S = 90


@contextmanager
def hidden_node(path: Path, swarm: Swarm, *, price_micros: int) -> Iterator[str]:
    """A node that nobody can dial; its peer id."""
    place = DataDir.open(path)
    identity = keystore.create(place.keystore, None)
    place.config.write_text("listen = []\n")
    options = {
        "--datadir": str(path),
        "--api": "unix",
        "--network": swarm.network,
        "--price": str(price_micros),
        "--measured": str(swarm.folder / "measured.json"),
        "--bootstrap": swarm.peers[1].address,
        "--parent": str(os.getpid()),
    }
    command = [sys.executable, "-I", "-m", "p2p_node", "start", "--no-mdns"]
    with (path / "node.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *(part for pair in options.items() for part in pair)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    try:
        yield peer_id(identity.public)
    finally:
        process.terminate()
        process.wait(10)


def until(holds: Callable[[], bool], path: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, (path / "node.log").read_text()[-3_000:]
        time.sleep(0.2)


def test_who_cannot_be_dialled_earns_all_the_same(swarm: Swarm, tmp_path: Path) -> None:
    client_at, executor_at = tmp_path / "client", tmp_path / "executor"
    with (
        hidden_node(client_at, swarm, price_micros=10_000) as _,
        hidden_node(executor_at, swarm, price_micros=1) as executor,
    ):
        for path in (client_at, executor_at):
            until((path / "api.json").exists, path)
        with connect(executor_at) as client:
            # Once it is measured: then it has something to sell, and an address through a relay.
            until(lambda: bool(client.status()["offerings"] and client.status()["addresses"]), executor_at)
            (address, *_) = client.status()["addresses"]
            assert "/p2p-circuit/" in address
        with connect(client_at) as client:

            def knows_it() -> bool:
                return any(row["peer_id"] == executor and row["offerings"] for row in client.peers())

            until(knows_it, client_at)
            # The others only verify, so that it doesn't matter who is quicker today.
            others = ", ".join(peer.peer_id for peer in swarm.peers)
            document = f"{DOCUMENT.format(max_tokens=64)}placement: {{exclude: [{others}]}}\n"
            job = client.submit(document.encode())["id"]
            events = list(client.events(job))
            assert client.job(job)["state"] == "verified"
            assert [event["peer"] for event in events if event["event"] == "awarded"] == [executor]
            (link,) = [row for row in client.peers() if row["peer_id"] == executor]
            assert "/p2p-circuit/" in link["address"]
        with connect(executor_at) as client:
            until(lambda: client.status()["earned_micros"] > 0, executor_at)
