"""Lists of peers and addresses, read again while the node runs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio
import trio.testing

from p2p_node.accesslists import AccessLists
from p2p_node.config import ConfigError
from p2p_node.network.access import PeerAccess, access_of
from p2p_node.network.port import DialFailed, PeerConnected, PeerDisconnected, PeerRefused
from protocols.identity import peer_id
from tests.network.hosts import join, network, next_event

STRANGER = peer_id(bytes(range(32)))


class Network:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.given: list[PeerAccess] = []

    def admit(self, access: PeerAccess) -> int:
        self.given.append(access)
        return 3


def test_lists_are_read_again_and_given_to_the_network(tmp_path: Path) -> None:
    there, config = Network(), tmp_path / "config.toml"
    config.write_text('deny_addresses = ["192.0.2.0/24"]\n')
    found = AccessLists(config, there.admit).reload()
    assert (found["deny_addresses"], found["allow_peers"], found["cut_off"]) == (1, 0, 3)
    assert there.given == [access_of(deny_addresses=["192.0.2.0/24"])]


@pytest.mark.parametrize("content", ['deny_peers = ["nobody"]', "deny_peers = [", "deny_pears = []"])
def test_a_file_that_breaks_a_rule_changes_nothing(tmp_path: Path, content: str) -> None:
    there, config = Network(), tmp_path / "config.toml"
    config.write_text(content)
    with pytest.raises(ConfigError):
        AccessLists(config, there.admit).reload()
    assert there.given == []


async def test_a_hangup_reads_them_and_a_broken_file_does_not_end_that(tmp_path: Path) -> None:
    there, config = Network(), tmp_path / "config.toml"
    async with trio.open_nursery() as nursery:
        await nursery.start(AccessLists(config, there.admit).reload_on_hangup)
        for content in ("deny_peers = [", f'deny_peers = ["{STRANGER}"]'):
            config.write_text(content)
            os.kill(os.getpid(), signal.SIGHUP)
            await trio.testing.wait_all_tasks_blocked(0.01)
        with trio.fail_after(5):
            while not there.given:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert set(there.given) == {access_of(deny_peers=[STRANGER])}


@pytest.mark.parametrize("by", ["peer", "address"])
async def test_whom_new_lists_keep_out_is_cut_off_and_stays_out_until_they_change(by: str) -> None:
    async with network(1) as one, network(2) as two:
        await join(one, two)
        lists = {
            "peer": access_of(deny_peers=[peer_id(two.local_key)]),
            "address": access_of(deny_addresses=["127.0.0.0/8"]),
        }
        assert one.admit(access_of(deny_peers=[STRANGER])) == 0
        assert one.admit(lists[by]) == 1
        assert (await next_event(two, PeerDisconnected)).peer == one.local_key
        with pytest.raises(PeerRefused):
            await one.dial(two.addresses[0])
        with pytest.raises(DialFailed):
            await two.dial(one.addresses[0])
        one.admit(PeerAccess())
        await two.dial(one.addresses[0])
        assert (await next_event(one, PeerConnected)).peer == two.local_key
