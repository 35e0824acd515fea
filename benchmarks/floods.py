"""Floods against one real peer of a swarm: what they cost it, and what is left for honest jobs.

Sockets from a stranger's addresses connect without end, connect and say nothing, send junk, and knock at the
local API. Meanwhile the victim gives its own jobs to the others, whose rate is compared with that of quiet
times before.

python -m benchmarks.floods [--quick] [--seconds S]
"""

from __future__ import annotations

import argparse
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import psutil

from benchmarks.table import machine_line, print_table
from p2p_node.swarm import Swarm, SwarmPeer, running_swarm

__all__ = ["FLOODS", "main"]

PEERS = 3
SECONDS = 30.0
ATTACKERS = 4
HELD_MAX = 200
CONNECT_S = 2.0
RATE_SHARE_MIN = 0.5
GROWTH_MIB_MAX = 64

DOCUMENT = b"""
apiVersion: p2p/v1
kind: Job
name: floods
task:
  workload: lm.generate
  model: kjv-2m
  prompt: "And it came to pass"
  max_tokens: 32
  seed: 7
auction:
  mode: posted
verify:
  profile: exact14
  verifiers: 1
"""

Flood = Callable[[tuple[str, int], random.Random, threading.Event], int]
"""Mounts an attack until told to stop; how often it struck."""


def _connect(target: tuple[str, int], luck: random.Random) -> socket.socket:
    # Loopback has 16 million addresses: these are a stranger's.
    source = f"127.{luck.randint(1, 3)}.{luck.randint(0, 3)}.{luck.randint(1, 250)}"
    return socket.create_connection(target, timeout=CONNECT_S, source_address=(source, 0))


def _connections(target: tuple[str, int], luck: random.Random, stop: threading.Event) -> int:
    count = 0
    while not stop.is_set():
        with suppress(OSError), _connect(target, luck):
            count += 1
    return count


def _silence(target: tuple[str, int], luck: random.Random, stop: threading.Event) -> int:
    held: list[socket.socket] = []
    count = 0
    while not stop.is_set():
        with suppress(OSError):
            held.append(_connect(target, luck))
            count += 1
        if len(held) > HELD_MAX:
            held.pop(0).close()
    for connection in held:
        connection.close()
    return count


def _junk(target: tuple[str, int], luck: random.Random, stop: threading.Event) -> int:
    count = 0
    while not stop.is_set():
        with suppress(OSError), _connect(target, luck) as connection:
            connection.sendall(b"\x13/multistream/1.0.0\n\x07/noise\n" + luck.randbytes(4_000))
            count += 1
    return count


def _api(target: tuple[str, int], luck: random.Random, stop: threading.Event) -> int:
    count = 0
    while not stop.is_set():
        with suppress(OSError), socket.create_connection(target, timeout=CONNECT_S) as connection:
            connection.sendall(
                b"POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999\r\n\r\n"
            )
            connection.sendall(luck.randbytes(50_000))
            count += 1
    return count


FLOODS: dict[str, Flood] = {
    "connections": _connections,
    "connections that say nothing": _silence,
    "junk for a handshake": _junk,
    "junk to the local API": _api,
}


def _jobs_per_minute(swarm: Swarm, seconds: float) -> tuple[float, int]:
    """Verified jobs in a minute, one after another, and how many weren't verified."""
    began, done, failed = time.monotonic(), 0, 0
    with swarm.requester.connect() as client:
        while time.monotonic() - began < seconds:
            job_id = client.submit(DOCUMENT)["id"]
            for event in client.events(job_id):
                if event["event"] == "finished":
                    done += event["state"] == "verified"
                    failed += event["state"] != "verified"
    return 60 * done / (time.monotonic() - began), failed


def _target(peer: SwarmPeer, name: str) -> tuple[str, int]:
    if "API" not in name:
        _, _, host, _, port, *_ = peer.address.split("/")
        return host, int(port)
    with peer.connect() as client:
        url = str(client._http.base_url)
    host, _, port = url.partition("//")[2].strip("/").partition(":")
    return host, int(port)


def main(argv: Sequence[str] | None = None) -> int:
    """Every flood; the exit status is 1 if jobs slowed to below half or the victim grew too much."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floods", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a third of the time")
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="S", help="of each flood")
    arguments = parser.parse_args(argv)
    seconds = arguments.seconds / (3 if arguments.quick else 1)
    rows: list[list[str]] = []
    bad = False
    with running_swarm(PEERS, seed=1) as swarm:
        victim = psutil.Process(swarm.requester.process.pid)
        _jobs_per_minute(swarm, seconds / 3)
        for name, flood in FLOODS.items():
            quiet, _ = _jobs_per_minute(swarm, seconds)
            target, stop = _target(swarm.requester, name), threading.Event()
            struck: list[int] = []
            before = victim.memory_info().rss
            cpu, began = sum(victim.cpu_times()[:2]), time.monotonic()

            def mount(number: int, flood: Flood = flood, target: tuple[str, int] = target) -> None:
                struck.append(flood(target, random.Random(number), stop))  # noqa: B023

            threads = [threading.Thread(target=mount, args=(number,)) for number in range(ATTACKERS)]
            for thread in threads:
                thread.start()
            flooded, failed = _jobs_per_minute(swarm, seconds)
            took = time.monotonic() - began
            share_of_core = (sum(victim.cpu_times()[:2]) - cpu) / took
            grown = (victim.memory_info().rss - before) / 2**20
            stop.set()
            for thread in threads:
                thread.join()
            share = flooded / quiet if quiet else 0.0
            bad = bad or share < RATE_SHARE_MIN or grown > GROWTH_MIB_MAX or failed > 0
            rows.append(
                [
                    name,
                    f"{sum(struck) / took:.0f}",
                    f"{quiet:.0f}",
                    f"{flooded:.0f}",
                    f"{share:.2f}",
                    str(failed),
                    f"{100 * share_of_core:.0f} %",
                    f"{grown:+.0f}",
                ]
            )
    head = ["flood", "a second", "jobs/min before", "meanwhile", "ratio", "failed", "of a core", "MiB"]
    print_table("One victim, four attackers", head, rows)
    print(machine_line())
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
