"""An executor that falls silent, or whose link breaks, is replaced in time."""

from __future__ import annotations

from typing import Any

from p2p_node.core.attempt import RECONNECT_MS, Outcome
from p2p_node.core.request import JobState
from p2p_node.core.requester import Job
from protocols.effects import Execute, Task
from protocols.events import RunEvent
from tests.support.swarm import UNITS_MAX, Runner, Swarm, request

STALL_MS = 20_000


class _Stuck(Runner):
    """Executes the first chunk and no more."""

    def run(self, key: tuple[Any, ...], task: Task) -> list[RunEvent]:
        events = super().run(key, task)
        return events[:2] if isinstance(task, Execute) else events


def _stuck_job() -> tuple[Swarm, Job, bytes]:
    """A swarm whose cheapest peer has the job, has given its first units, and will give no more."""
    swarm = Swarm(5, runners={1: _Stuck()})
    client, executor = swarm.nodes[swarm.keys[0]], swarm.keys[1]
    job_id, acts = client.submit(request(stall_ms=STALL_MS), nonce=bytes(32), now_ms=swarm.now_ms)
    swarm._perform(client.key, acts)
    job = client.jobs[job_id]
    swarm.run_until(lambda: bool(job.attempts) and bool(job.attempts[0]._units))
    assert job.attempts[0].candidate.peer == executor
    return swarm, job, executor


def test_silence_is_noticed_when_the_stall_is_over_and_no_later() -> None:
    swarm, job, _ = _stuck_job()
    silent_since_ms = swarm.now_ms
    swarm.run_until(lambda: len(job.attempts) == 2)
    assert swarm.now_ms - silent_since_ms == STALL_MS
    assert job.attempts[0].outcome is Outcome.UNRESPONSIVE
    swarm.run_until(lambda: job.is_final)
    assert job.state is JobState.VERIFIED
    assert len(job.units) == UNITS_MAX


def test_an_executor_that_is_gone_is_replaced_before_the_stall() -> None:
    swarm, job, executor = _stuck_job()
    client = swarm.nodes[swarm.keys[0]]
    lost_ms = swarm.now_ms
    swarm._perform(client.key, client.peer_disconnected(executor, lost_ms))
    swarm.run_until(lambda: len(job.attempts) == 2)
    assert swarm.now_ms - lost_ms == RECONNECT_MS
    assert job.attempts[0].outcome is Outcome.UNRESPONSIVE
    swarm.run_until(lambda: job.is_final)
    assert job.state is JobState.VERIFIED


def test_an_executor_that_comes_back_keeps_the_job() -> None:
    swarm, job, executor = _stuck_job()
    client = swarm.nodes[swarm.keys[0]]
    lost_ms = swarm.now_ms
    swarm._perform(client.key, client.peer_disconnected(executor, lost_ms))
    swarm._perform(client.key, client.peer_connected(executor, lost_ms + 1_000))
    swarm.run_until(lambda: swarm.now_ms > lost_ms + RECONNECT_MS)
    assert job.attempts[0].outcome is None


def test_the_link_to_a_bystander_does_not_matter() -> None:
    swarm, job, _ = _stuck_job()
    client = swarm.nodes[swarm.keys[0]]
    assert client.peer_disconnected(swarm.keys[4], swarm.now_ms) == []
    assert job.attempts[0].outcome is None
