"""When a node wants relays, and what `doctor` finds out about it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing

from p2p_node import reachable
from p2p_node.config import NodeConfig, load_config
from p2p_node.datadir import DataDir
from p2p_node.dialledback import dialled_back
from p2p_node.network.reachability import Found
from p2p_node.reachable import Reachable
from tests.network.hosts import LOOPBACK, network

YES = Found("198.51.100.7:4150", "reachable", "1 of 1", "")
NO = Found("198.51.100.7:4150", "not reachable", "0 of 1", "forward")
UNKNOWN = Found("?:4150", "unknown", "nobody", "connect")


@pytest.mark.parametrize(
    ("relays", "listens", "found", "wants"),
    [
        ("auto", True, [], False),
        ("auto", True, [NO], True),
        ("auto", True, [NO, YES], False),
        ("auto", True, [UNKNOWN], False),
        ("auto", False, [], True),
        ("always", True, [YES], True),
        ("never", False, [NO], False),
    ],
)
def test_relays_are_wanted_by_who_cannot_be_reached(
    relays: str, listens: bool, found: list[Found], wants: bool
) -> None:
    node = Reachable(relays, listens=listens)  # type: ignore[arg-type]
    node.found = found
    assert node.wants_relays() is wants


async def test_what_is_not_known_is_asked_again_soon_and_forgets_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    node = Reachable("auto", listens=True)
    answers, asked_at = [[UNKNOWN], [NO], [UNKNOWN], [YES]], []

    async def ask() -> list[Found]:
        asked_at.append(trio.current_time())
        assert len(asked_at) < 4 or node.wants_relays()
        return answers[len(asked_at) - 1]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.watch, ask)
        while len(asked_at) < len(answers):
            await trio.sleep(1)
        assert not node.wants_relays()
        nursery.cancel_scope.cancel()
    waits = [later - earlier for earlier, later in pairwise(asked_at)]
    assert waits == [reachable.UNKNOWN_AGAIN_S, reachable.AGAIN_S, reachable.UNKNOWN_AGAIN_S]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[DataDir]:
    yield DataDir.open(tmp_path / "node")


async def test_without_a_node_the_named_peers_are_asked(place: DataDir) -> None:
    async with network(2) as peer:
        config = NodeConfig(listen=(LOOPBACK,), bootstrap=(peer.addresses[0],), network="test")
        (found,) = await dialled_back(config, place)
        assert found.state == "reachable"
        (found,) = await dialled_back(
            NodeConfig(listen=(LOOPBACK,), bootstrap=(peer.addresses[0],), network="other"), place
        )
        assert (found.state, found.remedy) == ("unknown", "see to that, and ask again")
        # A port that is taken is told, not raised.
        taken = peer.addresses[0].rpartition("/p2p/")[0]
        config = NodeConfig(listen=(taken,), bootstrap=(peer.addresses[0],), network="test")
        (found,) = await dialled_back(config, place)
        assert "can't listen on" in found.reason


async def test_with_nobody_to_ask_that_is_said(place: DataDir) -> None:
    (found,) = await dialled_back(NodeConfig(listen=(LOOPBACK,)), place)
    assert (found.state, found.remedy) == ("unknown", "start the node, or give --bootstrap")
    (found,) = await dialled_back(NodeConfig(listen=()), place)
    assert "relays" in found.remedy


def test_a_flag_says_whether_to_relay_and_the_file_how_much(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[relay]\nmax_reservations = 3\n")
    assert not load_config(path, {}).relay.volunteer
    relay = load_config(path, {"relay": True}).relay
    assert (relay.volunteer, relay.max_reservations) == (True, 3)
