"""Real processes killed and stopped at every phase of a job, and started again with what they had.

Five peers on loopback run one job after another. In each one peer is killed (-9) as soon as the client hears
of a phase: the executor, a verifier, a bystander that others know as their bootstrap peer, or the requester
itself. It is started again on the same directory. In the end all stores are compared.

python -m benchmarks.faults [--quick] [--stop SECONDS]
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from benchmarks.accounts import unsettled
from benchmarks.table import machine_line, print_table
from p2p_node.client import NodeGone
from p2p_node.core.keyring import RealCrypto
from p2p_node.errors import UserError
from p2p_node.receipts import check_file
from p2p_node.swarm import Swarm, SwarmPeer, running_swarm

__all__ = ["PHASES", "ROLES", "Outcome", "main", "strike"]

ROLES = ("executor", "verifier", "bootstrap", "requester")
PHASES = ("offered", "accepted", "output", "committed", "verifier-drawn", "segment-verdict", "concluded")
PEERS = 5
SETTLE_S = 20
STOP_S = 60

DOCUMENT = b"""
apiVersion: p2p/v1
kind: Job
name: faults
task:
  workload: lm.generate
  model: kjv-2m
  prompt: "And it came to pass"
  max_tokens: 256
  seed: 7
auction:
  window: 1s
verify:
  profile: exact14
  verifiers: 2
"""


@dataclass(slots=True)
class Outcome:
    """One job, and what was done to whom in it."""

    role: str
    phase: str
    state: str = ""
    reason: str = ""
    units: int = 0
    seconds: float = 0.0
    broken: list[str] = field(default_factory=list)
    has_struck: bool = False


Blow = Callable[[SwarmPeer], None]


def strike(swarm: Swarm, role: str, phase: str, blow: Blow) -> Outcome:
    """Run one job, and deal a blow to the peer of a role when the client hears of the phase."""
    outcome = Outcome(role, phase)
    started = time.monotonic()
    victims: dict[str, str] = {"requester": swarm.requester.peer_id}
    with swarm.requester.connect() as client:
        job_id = client.submit(DOCUMENT)["id"]
        with suppress(NodeGone):
            for event in client.events(job_id):
                _learn(swarm, victims, event)
                if event["event"] == phase and not outcome.has_struck and role in victims:
                    outcome.has_struck = True
                    blow(next(peer for peer in swarm.peers if peer.peer_id == victims[role]))
    for peer in swarm.peers:
        if not peer.is_running:
            swarm.restart(peer)
    swarm.wait_until_acquainted()
    with swarm.requester.connect() as client:
        job = client.job(job_id)
        outcome.state, outcome.reason, outcome.units = job["state"], job["reason"], job["units"]
        _judge(outcome, client, job_id)
    outcome.seconds = time.monotonic() - started
    return outcome


def _learn(swarm: Swarm, victims: dict[str, str], event: dict[str, Any]) -> None:
    if event["event"] in ("awarded", "accepted"):
        victims["executor"] = event["peer"]
    elif event["event"] == "verifier-drawn":
        victims.setdefault("verifier", event["peer"])
    roles = {victims.get("executor"), swarm.requester.peer_id}
    bystander = next((peer.peer_id for peer in swarm.peers if peer.peer_id not in roles), None)
    if bystander is not None:
        victims["bootstrap"] = bystander


def _judge(outcome: Outcome, client: Any, job_id: str) -> None:
    if outcome.role != "requester" and outcome.state != "verified":
        outcome.broken.append(f"ended {outcome.state}: {outcome.reason}")
    if outcome.state not in ("verified", "task_failed"):
        outcome.broken.append(f"a restart found it {outcome.state}")
    if outcome.state != "verified" and not outcome.reason:
        outcome.broken.append("it doesn't say why")
    try:
        report = check_file(client.receipt(job_id), RealCrypto())
    except UserError as error:
        if outcome.phase not in ("offered", "awarded"):
            outcome.broken.append(f"no receipt: {error}")
        return
    if report.state != outcome.state or len(report.units) != outcome.units:
        outcome.broken.append("job and receipt differ")


def _kill(peer: SwarmPeer) -> None:
    peer.process.kill()
    peer.process.wait()


def main(argv: Sequence[str] | None = None) -> int:
    """Every role at every phase; the exit status is 1 if a promise didn't hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one phase for each role, and a short stop")
    parser.add_argument("--stop", type=int, default=STOP_S, metavar="SECONDS", help="how long to stop one")
    parser.add_argument("--role", action="append", choices=ROLES, help="only these; may be repeated")
    arguments = parser.parse_args(argv)
    phases = PHASES[2:3] if arguments.quick else PHASES
    outcomes: list[Outcome] = []
    with running_swarm(PEERS, seed=1) as swarm:
        for role in arguments.role or ROLES:
            for phase in phases:
                outcomes.append(strike(swarm, role, phase, _kill))
                _tell(outcomes[-1])
        for role in () if arguments.role else ("executor", "verifier"):
            stopped: list[SwarmPeer] = []

            def stop(peer: SwarmPeer, stopped: list[SwarmPeer] = stopped) -> None:
                peer.process.send_signal(signal.SIGSTOP)
                stopped.append(peer)

            began = time.monotonic()
            phase = "output" if role == "executor" else "verifier-drawn"
            try:
                outcome = _stop_and_go(swarm, role, phase, stop)
                pause_s = 10 if arguments.quick else arguments.stop
                time.sleep(max(0.0, pause_s - (time.monotonic() - began)))
            finally:
                for peer in stopped:
                    peer.process.send_signal(signal.SIGCONT)
            outcomes.append(outcome)
            _tell(outcome)
        again = strike(swarm, "nobody", "after the stop", _kill)
        outcomes.append(again)
        broken = _wait_until_settled(swarm)
    rows = [
        [
            o.role,
            o.phase,
            o.state + (f" ({o.reason})" if o.reason else ""),
            str(o.units),
            f"{o.seconds:.0f} s",
            "; ".join(o.broken) or ("kept" if o.has_struck or o.role == "nobody" else "phase not reached"),
        ]
        for o in outcomes
    ]
    print_table(
        "Real processes, one killed (or stopped) in each job",
        ["role", "phase", "the job ended", "units", "in", "promises"],
        rows,
    )
    print(f"accounts of all peers: {', '.join(broken) or 'square'}\n{machine_line()}")
    return int(bool(broken) or any(outcome.broken for outcome in outcomes))


def _stop_and_go(swarm: Swarm, role: str, phase: str, stop: Blow) -> Outcome:
    """A peer that is stopped isn't waited for: others do its work."""
    outcome = Outcome(f"{role} (stopped)", phase)
    victims: dict[str, str] = {}
    began = time.monotonic()
    with swarm.requester.connect() as client:
        job_id = client.submit(DOCUMENT)["id"]
        for event in client.events(job_id):
            _learn(swarm, victims, event)
            if event["event"] == phase and not outcome.has_struck and role in victims:
                outcome.has_struck = True
                stop(next(peer for peer in swarm.peers if peer.peer_id == victims[role]))
        job = client.job(job_id)
        outcome.state, outcome.reason, outcome.units = job["state"], job["reason"], job["units"]
        _judge(outcome, client, job_id)
    outcome.seconds = time.monotonic() - began
    return outcome


def _wait_until_settled(swarm: Swarm) -> list[str]:
    deadline = time.monotonic() + SETTLE_S
    while (broken := list(unsettled(swarm))) and time.monotonic() < deadline:
        time.sleep(1)
    return broken


def _tell(outcome: Outcome) -> None:
    print(
        f"{outcome.role} at {outcome.phase}: {outcome.state} {outcome.reason} {outcome.broken or ''}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
