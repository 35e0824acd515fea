"""Two attacks by real processes; `p2p-node swarm attack` mounts them all."""

from __future__ import annotations

import pytest

from p2p_node.hostile.live import VERSE, attack_live
from p2p_node.swarm import Swarm
from tests.swarm.jobs import Run


@pytest.mark.parametrize("kind", ["equivocation", "malformed-bytes"])
def test_an_attack_is_caught_and_harms_nobody(swarm: Swarm, honest_run: Run, kind: str) -> None:
    before = len(swarm.peers)
    report = attack_live(swarm, kind, {VERSE: honest_run.report.units})
    assert report.is_caught, report
    assert report.is_answer_right, report
    assert report.harmed == 0
    assert len(swarm.peers) == before
    if kind == "equivocation":
        honest = [peer for peer in swarm.peers if peer.is_running and not peer.cheat]
        assert report.convicted_by == len(honest)
