"""A swarm cut in two in the middle of a job, and healed: real processes in two network namespaces.

Peers of the left half and of the right half reach each other over one virtual cable. While the left half's
client has a job at work on the right, the cable is pulled; later it is put back. Then jobs must be verified
again over the whole swarm, and all accounts be square.

python -m benchmarks.partition [--quick] [--peers N] [--cut SECONDS]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.accounts import unsettled
from benchmarks.table import machine_line, print_table
from p2p_node.client import NodeClient
from p2p_node.listening import UNIX
from p2p_node.swarm import Site, Swarm, running_swarm

__all__ = ["main"]

PEERS = 6
CUT_S = 45.0
HEAL_S = 90.0
SETTLE_S = 60.0
TRIES_MAX = 12
INSIDE = "P2P_NODE_PARTITION_INSIDE"

DOCUMENT = b"""
apiVersion: p2p/v1
kind: Job
name: partition
task:
  workload: lm.generate
  model: kjv-2m
  prompt: "And it came to pass"
  max_tokens: 384
  seed: 7
auction:
  window: 1s
verify:
  profile: exact14
  verifiers: 2
timeouts:
  execution: 3m
  total: 4m
"""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _lay_cable() -> None:
    """Two namespaces with a cable between them; we stay outside, and talk to nodes by their sockets."""
    # `ip netns` keeps names here, and this mount is ours alone.
    subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
    for name, host in (("left", "10.77.0.1/24"), ("right", "10.77.0.2/24")):
        _ip("netns", "add", name)
        _ip("-n", name, "link", "set", "lo", "up")
        if name == "left":
            _ip("link", "add", "name", "cable0", "type", "veth", "peer", "name", "cable1")
        cable = "cable0" if name == "left" else "cable1"
        _ip("link", "set", cable, "netns", name)
        _ip("-n", name, "addr", "add", host, "dev", cable)
        _ip("-n", name, "link", "set", cable, "up")


def _set_cable(state: str) -> None:
    _ip("-n", "left", "link", "set", "cable0", state)


def _site_of(index: int) -> Site:
    name, host = (("left", "10.77.0.1"), ("right", "10.77.0.2"))[index % 2]
    return Site(host, ("nsenter", f"--net=/run/netns/{name}", "--"), UNIX)


def _connected(client: NodeClient) -> int:
    return int(client.status()["connected"])


def _play(swarm: Swarm, cut_s: float) -> tuple[list[list[str]], bool]:
    """One job cut through, and one after the heal; a row for each thing seen, and whether all was well."""
    rows: list[list[str]] = []
    began = time.monotonic()
    right = {peer.peer_id for peer in swarm.peers if peer.index % 2}
    cut_ms = 0
    with swarm.requester.connect() as client:
        before = _connected(client)
        story: list[str] = []
        heal_at = 0.0
        # Whoever wins executes: what is wanted is one on the other side.
        for _ in range(TRIES_MAX):
            job_id, story, executor = client.submit(DOCUMENT)["id"], [], ""
            for event in client.events(job_id):
                story.append(event["event"])
                executor = event["peer"] if event["event"] == "accepted" else executor
                if event["event"] == "output" and not heal_at and executor in right:
                    _set_cable("down")
                    heal_at = time.monotonic() + cut_s
                    cut_ms = event["at_ms"]
            if heal_at:
                break
        else:
            raise SystemExit(f"none of {TRIES_MAX} jobs went to the other side")
        job = client.job(job_id)
        took_s = (job["finished_ms"] - cut_ms) / 1_000
        executors = story.count("accepted")
        rows.append(["the job that was cut through", f"{job['state']} {job['reason']}".strip()])
        rows.append(["executors it had", str(executors)])
        rows.append(["over so long after the cut", f"{took_s:.1f} s"])
        time.sleep(max(0.0, heal_at - time.monotonic()))
        rows.append(["linked to, before and at the end of the cut", f"{before}, {_connected(client)}"])
        _set_cable("up")
        healed = time.monotonic()
        while _connected(client) < before and time.monotonic() - healed < HEAL_S:
            time.sleep(0.5)
        again = _connected(client)
        rows.append(["linked to again", f"{again} after {time.monotonic() - healed:.1f} s"])
        last_id = client.submit(DOCUMENT)["id"]
        for _ in client.events(last_id):
            pass
        last = client.job(last_id)
        rows.append(["a job after the heal", f"{last['state']} {last['reason']}".strip()])
        is_well = job["state"] == last["state"] == "verified" and again == before
    broken = list(unsettled(swarm))
    deadline = time.monotonic() + SETTLE_S
    while broken and time.monotonic() < deadline:
        time.sleep(1)
        broken = list(unsettled(swarm))
    rows.append(["accounts of both halves", ", ".join(broken) or "square"])
    rows.append(["peers on the other side", str(len(right))])
    rows.append(["in all", f"{time.monotonic() - began:.0f} s"])
    return rows, is_well and not broken


def main(argv: Sequence[str] | None = None) -> int:
    """Cut, heal, print; the exit status is 1 if a promise didn't hold, 2 where the kernel allows no cable."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.partition", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="4 peers, and a short cut")
    parser.add_argument("--peers", type=int, default=PEERS)
    parser.add_argument("--cut", type=float, default=CUT_S, metavar="SECONDS")
    arguments = parser.parse_args(argv)
    if INSIDE not in os.environ:
        if not all(map(shutil.which, ("ip", "unshare", "nsenter"))):
            print("this needs ip, unshare and nsenter (iproute2, util-linux)")
            return 2
        words = sys.argv[1:] if argv is None else list(argv)
        inside = ["unshare", "-Urnm", sys.executable, "-m", "benchmarks.partition", *words]
        return subprocess.run(inside, env={**os.environ, INSIDE: "1"}, check=False).returncode
    try:
        _lay_cable()
    except subprocess.CalledProcessError as error:
        print(f"this kernel allows no cable between two namespaces: {error}")
        return 2
    peers, cut_s = (4, 15.0) if arguments.quick else (arguments.peers, arguments.cut)
    with running_swarm(peers, seed=1, site_of=_site_of) as swarm:
        rows, is_well = _play(swarm, cut_s)
    print_table(f"{peers} peers, cut in two for {cut_s:g} s while one works for another", ["", ""], rows)
    print(machine_line())
    return int(not is_well)


if __name__ == "__main__":
    sys.exit(main())
