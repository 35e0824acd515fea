"""Every job is gossiped; a posted one's proposal goes out before, and nobody answers its offer."""

from __future__ import annotations

import pytest

from p2p_node.core.outbox import Transmit, split_frame
from p2p_node.core.request import JobState
from protocols.effects import Publish
from protocols.envelope import open_envelope
from tests.support.keys import CRYPTO
from tests.support.swarm import NETWORK, Swarm, request


@pytest.mark.parametrize(("mode", "said"), [("auction", ["offer"]), ("posted", ["proposal", "offer"])])
def test_every_job_is_published_and_a_proposal_does_not_wait_for_it(mode: str, said: list[str]) -> None:
    swarm = Swarm(4)
    client = swarm.nodes[swarm.keys[0]]
    _, acts = client.submit(request(mode=mode), nonce=bytes(32), now_ms=swarm.now_ms)
    kinds = []
    for act in acts:
        if isinstance(act, Publish):
            kinds.append(act.message.body.KIND)
        elif isinstance(act, Transmit):
            raw = split_frame(act.frame)[1]
            kinds.append(open_envelope(raw, network=NETWORK, crypto=CRYPTO).body.KIND)
    assert kinds == said


def test_nobody_answers_a_posted_offer() -> None:
    swarm = Swarm(4)
    client = swarm.nodes[swarm.keys[0]]
    _, acts = client.submit(request(mode="posted"), nonce=bytes(32), now_ms=swarm.now_ms)
    [offer] = [act.message.raw for act in acts if isinstance(act, Publish)]
    for key in swarm.keys[1:]:
        other = swarm.nodes[key]
        ruling, why = other.judge("jobs", offer, swarm.now_ms)
        assert ruling.name == "ACCEPT", why
        heard = other.gossip_received("jobs", offer, client.key, swarm.now_ms)
        assert not any(isinstance(act, Transmit) for act in heard)


def test_a_posted_job_is_verified() -> None:
    job = Swarm(5).run_job(request(mode="posted"))
    assert job.state is JobState.VERIFIED
