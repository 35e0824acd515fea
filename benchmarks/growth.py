"""What a job costs whom it doesn't concern, as a network grows: traffic, registry, time to award.

python -m benchmarks.growth [--quick] [--peers N …] [--minutes M]

Simulated peers, half of which serve, at a constant rate of jobs for each peer. The baseline is the smallest
network.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.table import print_table
from p2p_node.sim.play import Play
from p2p_node.sim.scenariofile import parse_scenario

__all__ = ["main", "measure"]

START_S = 60
"""Peers start one after another: a network doesn't begin with a thousand strangers at once."""

WARM_UP_S = 180
"""Nothing is counted before. A newcomer has counted the network itself by then, and rooms have split."""

SIZES = (100, 300, 1_000)
QUICK_SIZES = (20, 40)
SCENARIO: dict[str, Any] = {
    "name": "growth",
    "regions": {"names": ["europe", "america"], "latency_ms": [[10, 45], [45, 15]]},
    "class": [
        {"name": "servers", "share": 0.5, "serves": ["text"], "asks": False, "slots": 4},
        {"name": "clients", "share": 0.5},
    ],
    "load": [{"name": "text", "per_peer_hour": 6, "units": 64}],
}


def measure(
    peers: int, minutes: float, *, per_peer_hour: float = 6, seed: int = 1, is_brief: bool = False
) -> dict[str, Any]:
    """The report of a network of this size, counted once it has settled, or at once if ``is_brief``."""
    load = [SCENARIO["load"][0] | {"per_peer_hour": per_peer_hour}]
    changes = {"peers": peers, "minutes": minutes, "seed": seed, "load": load}
    if not is_brief:
        changes |= {"start_s": START_S, "warm_up_s": WARM_UP_S}
    play = Play(parse_scenario(SCENARIO | changes))
    play.run()
    return play.report()


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two small networks")
    parser.add_argument("--peers", type=int, nargs="+", help="sizes of the networks")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long jobs are submitted")
    arguments = parser.parse_args(argv)
    rows: list[list[str]] = []
    first: dict[str, float] = {}
    for peers in arguments.peers or (QUICK_SIZES if arguments.quick else SIZES):
        started = time.perf_counter()
        quick = arguments.quick
        report = measure(peers, arguments.minutes, per_peer_hour=60 if quick else 6, is_brief=quick)
        real_s = time.perf_counter() - started
        traffic, jobs = report["traffic"], report["jobs"]["submitted"]
        heard = traffic["idle_heard_per_peer_per_job_milli"]
        served = max(1, traffic["counted_ms"] // 1_000)
        values = {
            "heard": (heard.get("jobs", 0) + heard.get("rooms", 0)) / 1_000,
            "frames": traffic["frame_bytes"] / peers / served,
            "gossip": traffic["gossip_bytes"] / peers / served,
            "per job": traffic["frames"] / max(1, jobs),
            "registry": report["registry"]["p50"],
            "award": report["times_ms"].get("text", {"award": {"p50": 0}})["award"]["p50"],
        }
        first = first or values
        cells = [f"{value:,.1f} ({value / (first[name] or 1):.2f})" for name, value in values.items()]
        rows.append([f"{peers} peers, {jobs} jobs", *cells, f"{real_s:.0f}"])
    print_table(
        "Growth at a constant rate of jobs per peer (in brackets: over the first row)",
        [
            "network",
            "copies of a job's gossip heard by an idle peer",
            "direct B/s per peer",
            "gossip B/s per peer",
            "frames per job",
            "registry",
            "award p50 ms",
            "real s",
        ],
        rows,
    )


if __name__ == "__main__":
    main()
