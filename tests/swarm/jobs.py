"""A job for real swarms, and how to see it through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from p2p_node.core.keyring import RealCrypto
from p2p_node.receipts import check_file
from p2p_node.swarm import Swarm, SwarmPeer
from verification.receipt import ReceiptReport

DOCUMENT = """
apiVersion: p2p/v1
kind: Job
name: test-verse
task:
  workload: lm.generate
  model: kjv-2m
  prompt: "And it came to pass"
  max_tokens: {max_tokens}
  seed: 7
auction:
  window: 1s
verify:
  profile: exact14
  verifiers: 2
  chunks: all
"""


@dataclass(frozen=True, slots=True)
class Run:
    """A job that is over."""

    events: list[dict[str, Any]]
    summary: dict[str, Any]
    report: ReceiptReport

    def of(self, event: str) -> list[dict[str, Any]]:
        """All events of one name."""
        return [entry for entry in self.events if entry["event"] == event]

    @property
    def awarded(self) -> list[str]:
        """Who got the job, in order."""
        return [event["peer"] for event in self.of("awarded")]


def run_job(
    swarm: Swarm, *, max_tokens: int = 64, on_event: Callable[[dict[str, Any]], None] = lambda event: None
) -> Run:
    """Give the requester a job and see it through; its receipt holds, or this raises."""
    with swarm.requester.connect() as client:
        job_id = client.submit(DOCUMENT.format(max_tokens=max_tokens).encode())["id"]
        events = []
        for event in client.events(job_id):
            events.append(event)
            on_event(event)
        report = check_file(client.receipt(job_id), RealCrypto())
        return Run(events, client.job(job_id), report)


def peer_named(swarm: Swarm, peer_id: str) -> SwarmPeer:
    """The peer with this id."""
    return next(peer for peer in swarm.peers if peer.peer_id == peer_id)
