"""Peers beyond those that the node knows, found by `GET /v1/providers` in the directory of its network."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio

from p2p_node.client import ApiError, NodeClient
from p2p_node.finding import Finder
from p2p_node.sim.scenario import MODEL
from protocols.identity import peer_id
from tests.api.rig import Rig

STRANGER = peer_id(bytes(range(32)))


@pytest.fixture(scope="module")
def directory(rig: Rig) -> Iterator[None]:
    """A directory that the client and its neighbours keep, with all that they offer."""
    nodes = [rig.node, *rig.others]
    notes = rig.node.runtime._on_notify

    def open_all() -> None:
        rig.node.finder = notes.finder = Finder(rig.node.runtime, rig.node.network)  # type: ignore[attr-defined]
        for node in nodes:
            node.core.discovery.directory.is_on = True
        for node in nodes:
            node.runtime.perform(node.core.discovery.keep_house(node.runtime.clock()))

    def close_all() -> None:
        rig.node.finder = notes.finder = None  # type: ignore[attr-defined]
        for node in nodes:
            node.core.discovery.directory.is_on = False

    trio.from_thread.run_sync(open_all, trio_token=rig.token)
    yield
    trio.from_thread.run_sync(close_all, trio_token=rig.token)


def test_a_node_without_a_directory_says_so(client: NodeClient) -> None:
    with pytest.raises(ApiError, match="takes no part in the directory"):
        client.find_providers(peer=STRANGER)


@pytest.mark.usefixtures("directory")
@pytest.mark.parametrize(
    ("query", "rule"),
    [
        ({}, "either peer or workload must be given"),
        ({"peer": STRANGER, "workload": "lm.generate"}, "either peer or workload must be given"),
        ({"peer": "nobody"}, "isn't the peer id"),
        ({"workload": "lm.generate", "model": "nothing"}, "what a model of this node is called"),
    ],
)
def test_what_a_question_must_be(client: NodeClient, query: dict[str, str], rule: str) -> None:
    with pytest.raises(ApiError, match=rule):
        client.find_providers(**query)


@pytest.mark.usefixtures("directory")
def test_a_peer_is_found_with_where_it_is(rig: Rig, client: NodeClient) -> None:
    other = rig.others[0].core
    (row,) = client.find_providers(peer=peer_id(other.key))
    assert row["peer_id"] == peer_id(other.key)
    assert row["addresses"] == list(other.capability.addresses)
    assert row["connected"]
    assert row["known"]
    assert 0 < row["expires_in_ms"] <= 2 * 3_600_000
    assert client.find_providers(peer=STRANGER) == []
    assert client.find_providers(workload="render.trace", model=MODEL.hex()) == []
