"""Why peers didn't take a job, and the smallest change that would have helped."""

from __future__ import annotations

from typing import Any

import pytest

from p2p_node.explain import add_up, reasons
from p2p_node.jobspec import parse_job_spec
from protocols.bidding import DeclineReason
from protocols.identity import peer_id
from tests.support.keys import keyring
from tests.support.swarm import Swarm, request

PEERS = [keyring(number).public for number in range(4)]


@pytest.mark.parametrize(
    ("found", "change"),
    [
        (
            [("price", 50, 120), ("price", 50, 100), ("price", 50, 110)],
            "raise auction.max_price from 50 to 100",
        ),
        ([("ram", 10, 99), ("ram", 30, 99), ("ram", 20, 99)], "lower resources.ram from 99B to 30B"),
        ([("rate", 1_000, 9_500), ("rate", 2_050, 9_500)], "lower resources.min_rate from 9.5 to 2.05"),
        (
            [("context", 256, 600), ("context", 512, 600)],
            "shorten prompt and max_tokens together from 600 to 512",
        ),
        ([("busy", 0, 1)], "wait, or raise timeouts.queue"),
        ([("model", 0, 1)], "name a model that peers offer"),
        ([("workload", 0, 1)], "name a model that peers offer"),
        ([("profile", 0, 0)], "choose another verify.profile"),
        ([("excluded", 0, 0)], "drop the peer from placement.exclude"),
        ([("standing", 0, 0)], ""),
    ],
)
def test_the_smallest_change(found: list[tuple[str, int, int]], change: str) -> None:
    given = [(PEERS[i], DeclineReason(*why, f"detail {i}")) for i, why in enumerate(found)]
    for order in (given, list(reversed(given))):
        (group,) = add_up(order)
        assert group["change"].startswith(change) if change else group["change"] == ""
        assert group["count"] == len(found)
        assert group["details"] == [f"detail {i}" for i in range(len(found))]


def test_a_peer_that_declines_twice_counts_once() -> None:
    why = DeclineReason("price", 50, 100)
    groups = add_up([(PEERS[0], why), (PEERS[0], why), (PEERS[1], DeclineReason("busy", 0, 1))])
    assert [(group["reason"], group["count"]) for group in groups] == [("busy", 1), ("price", 1)]
    assert groups[1]["peers"] == [peer_id(PEERS[0])]


@pytest.mark.parametrize("mode", ["auction", "posted"])
def test_both_modes_give_the_same_reasons(mode: str) -> None:
    """Peer n asks 100 + n, and peer 0 serves nothing."""
    swarm = Swarm(4)
    job = swarm.run_job(request(mode=mode, price_micros_max=50, rebids=0))
    adverts = list(swarm.nodes[PEERS[0]].registry.current(swarm.now_ms))
    (group,) = add_up(reasons(job, adverts))
    assert (group["reason"], group["count"]) == ("price", 3)
    assert group["change"] == "raise auction.max_price from 50 to 101"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rate_milli_min": 2_000_000}, "rate"),
        ({"profile": "exact21"}, "profile"),
        ({"model": bytes(32)}, "model"),
        ({"exclude": tuple(PEERS[1:])}, "excluded"),
    ],
)
def test_what_adverts_tell_of_a_posted_job(changes: dict[str, Any], reason: str) -> None:
    swarm = Swarm(4)
    job = swarm.run_job(request(mode="posted", rebids=0, **changes))
    adverts = list(swarm.nodes[PEERS[0]].registry.current(swarm.now_ms))
    assert job.state.value == "no_bids"
    assert [group["reason"] for group in add_up(reasons(job, adverts))] == [reason]


def test_the_changes_are_what_a_job_file_takes() -> None:
    document = (
        "apiVersion: p2p/v1\nkind: Job\nname: n\ntask: {workload: lm.generate, model: m, prompt: p}\n"
        "resources: {ram: 30B, min_rate: 2.05}\nauction: {max_price: 100}\n"
    )
    spec = parse_job_spec(document.encode())
    assert (spec.resources.ram_bytes_min, spec.resources.rate_milli_min) == (30, 2_050)
