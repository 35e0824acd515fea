"""Gossip is the scarce resource: an offer goes to everybody only if everybody is asked to bid."""

from __future__ import annotations

import pytest

from p2p_node.core.outbox import Transmit, split_frame
from p2p_node.core.request import JobState
from protocols.effects import Publish
from protocols.envelope import open_envelope
from tests.support.keys import CRYPTO
from tests.support.swarm import NETWORK, Swarm, request


@pytest.mark.parametrize(
    ("mode", "published", "sent"), [("auction", ["offer"], []), ("posted", [], ["proposal"])]
)
def test_only_an_auction_is_announced(mode: str, published: list[str], sent: list[str]) -> None:
    swarm = Swarm(4)
    client = swarm.nodes[swarm.keys[0]]
    _, acts = client.submit(request(mode=mode), nonce=bytes(32), now_ms=swarm.now_ms)
    assert [act.message.body.KIND for act in acts if isinstance(act, Publish)] == published
    frames = [split_frame(act.frame)[1] for act in acts if isinstance(act, Transmit)]
    assert [open_envelope(raw, network=NETWORK, crypto=CRYPTO).body.KIND for raw in frames] == sent


def test_a_posted_job_needs_no_more_than_its_proposal() -> None:
    job = Swarm(5).run_job(request(mode="posted"))
    assert job.state is JobState.VERIFIED
