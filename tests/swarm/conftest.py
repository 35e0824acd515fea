"""One swarm of real processes for all tests here: starting peers is what takes the time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import psutil
import pytest

from p2p_node.swarm import Swarm, running_swarm
from tests.swarm.jobs import Run, run_job


@pytest.fixture(scope="session")
def swarm() -> Iterator[Swarm]:
    """Five honest peers, which log all they can and relay for others.

    Tests may add peers and end those that they added.
    """
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("P2P_NODE_LOG_LEVEL", "debug")
        patch.setenv("P2P_NODE_RELAY", "1")
        running = stack.enter_context(running_swarm(5, seed=1))
        patch.undo()
        yield running
        processes = [peer.process.pid for peer in running.peers if peer.is_running]
        workers = [child for pid in processes for child in psutil.Process(pid).children(recursive=True)]
    assert len(workers) >= len(processes), "the peers had workers to be stopped"
    _, left = psutil.wait_procs(workers, timeout=5)
    assert [worker.pid for worker in left] == []
    assert not running.folder.exists()


@pytest.fixture(scope="session")
def honest_run(swarm: Swarm) -> Run:
    """The job of these tests, done by a swarm that is honest throughout."""
    return run_job(swarm)
