"""A bug that a peer's message reaches is loud, and doesn't end the node."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio

from p2p_node.core.request import JobState
from p2p_node.network.simulated import Conditions, open_internet
from p2p_node.sim.scenario import job_request
from tests.runtime.test_scenario import UNITS, open_peer
from tests.support.deterministic_trio import run_deterministically


def test_a_node_outlives_a_bug_that_a_frame_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        def clock() -> int:
            return 1_700_000_000_000 + int(trio.current_time() * 1_000)

        async with (
            open_internet(seed=1, conditions=Conditions()) as internet,
            trio.open_nursery() as nursery,
            AsyncExitStack() as stack,
        ):
            bootstrap: list[str] = []
            peers = [
                await open_peer(
                    stack, nursery, internet.open_network, clock, index=index, listen=[], bootstrap=bootstrap
                )
                for index in range(4)
            ]
            client = peers[0]
            hear = client.core.frame_received
            heard = 0

            def every_fifth_fails(*arguments: Any) -> Any:
                nonlocal heard
                heard += 1
                if heard % 5 == 0:
                    raise RuntimeError("a bug")
                return hear(*arguments)

            monkeypatch.setattr(client.core, "frame_received", every_fifth_fails)
            with trio.fail_after(300):
                while len(client.core.registry) < 3:
                    await trio.sleep(0.05)
                job_id = client.runtime.submit(job_request(1, units=UNITS), nonce=bytes(16))
                job = client.core.jobs[job_id]
                while not job.is_final:
                    await trio.sleep(0.05)
            # What was lost to the bug came again, as if the network had lost it.
            assert job.state is JobState.VERIFIED, job.reason
            assert client.runtime.bugs_met > 0
            nursery.cancel_scope.cancel()

    run_deterministically(main)
