"""A report of the simulator for people."""

from __future__ import annotations

import resource
import sys
from typing import Any

from p2p_node.cli.output import print_rows

__all__ = ["speed", "summary"]

_LEGEND = """\
A job's times are from its submission. Traffic is all that peers send, repeats and acknowledgements included.
Idle peers serve nothing; what they hear of jobs, in any room, is what a job costs whom it doesn't concern.
In a large network gossip about jobs is for the members of rooms: its reach is counted among those."""


def summary(report: dict[str, Any]) -> None:
    """Print the tables of one report."""
    jobs, traffic, gossip = report["jobs"], report["traffic"], report["gossip"]
    failed = ", ".join(f"{count} {state}" for state, count in jobs["failed"].items()) or "none"
    heard = traffic["idle_heard_per_peer_per_job_milli"]
    facts = {
        "scenario": f"{report['scenario']}, seed {report['seed']}, {report['peers']} peers, "
        f"{report['network_ms'] / 60_000:.1f} minutes",
        "jobs": f"{jobs['submitted']} submitted, {jobs['verified']} verified, failed: {failed}, "
        f"{jobs['requester_went']} whose requester went",
        "completion": _percent(jobs["completion_ppm"]),
        "false answers": jobs["false_answers"],
        "false convictions": report["false_convictions"],
        "detection": _percent(report["detection_ppm"]) if report["attacks"] else "nobody cheats",
        "messages per peer and job": f"{traffic['messages_per_peer_per_job_milli'] / 1_000:.2f}",
        "bytes per peer and job": traffic["bytes_per_peer_per_job"],
        "heard of each job by idle peers": f"{(heard.get('jobs', 0) + heard.get('rooms', 0)) / 1_000:.2f} "
        f"messages, and {heard.get('peers', 0) / 1_000:.2f} adverts meanwhile",
        "gossip reach": f"{_percent(gossip['flood_reach_ppm'])} of {gossip['messages']} messages' peers, "
        f"within {gossip['flood_ms']['p50']} ms (p99 {gossip['flood_ms']['p99']} ms)",
        "gossip of rooms": _rooms(gossip["rooms"]),
        "churn": ", ".join(f"{count} {what}" for what, count in report["churn"].items()),
        "known peers": f"{report['registry']['p50']} of {report['peers']}",
        "checks": f"{report['invariants']['checks']} after {report['events']} events, "
        f"{report['invariants']['broken'] or 'all held'}",
        "trace": report["trace"],
    }
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
    if report["times_ms"]:
        print()
        print_rows(_times(report["times_ms"]), "table")
    if report["attacks"]:
        print()
        print_rows([{"attack": kind} | row for kind, row in report["attacks"].items()], "table")
    print()
    print_rows([{"earned by": group} | row for group, row in report["earnings"].items()], "table")
    print()
    print(_LEGEND)


def _rooms(rooms: dict[str, Any]) -> str:
    if not rooms["messages"]:
        return "none: everybody is in one"
    return (
        f"{_percent(rooms['flood_reach_ppm'])} of {rooms['messages']} messages' members, "
        f"within {rooms['flood_ms']['p50']} ms (p99 {rooms['flood_ms']['p99']} ms); "
        f"{rooms['occupied']} rooms, {rooms['members']['p50']} members (p99 {rooms['members']['p99']})"
    )


def _times(times: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"kind": kind, "jobs": row["jobs"]}
        | {f"award {name} ms": value for name, value in row["award"].items()}
        | {f"result {name} ms": value for name, value in row["result"].items()}
        for kind, row in times.items()
    ]


def _percent(ppm: int) -> str:
    return f"{ppm / 10_000:.2f}%"


def speed(report: dict[str, Any], real_s: float) -> str:
    """How fast it went on this machine, and what it took."""
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_bytes *= 1 if sys.platform == "darwin" else 1_024
    return (
        f"{real_s:.1f} s, {report['steps'] / real_s:,.0f} steps/s, "
        f"{report['network_ms'] / 1_000 / real_s:.1f} times as fast as the network, "
        f"{peak_bytes / 2**20:.0f} MiB in all, {peak_bytes / 1_024 / report['peers']:.0f} KiB a peer"
    )
