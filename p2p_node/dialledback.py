"""Whether others can reach this machine, as `p2p-node doctor` finds out.

The node that runs here asks its peers. If none runs, a peer without a history listens where the node would,
and asks those that the operator named.
"""

from __future__ import annotations

import random
import secrets
import time

import trio

from p2p_node.client import connect
from p2p_node.config import NodeConfig
from p2p_node.datadir import DataDir
from p2p_node.errors import UserError
from p2p_node.network.port import NetworkError, PeerKey
from p2p_node.network.reachability import Found
from p2p_node.networkkey import load as load_network_key
from protocols.rulings import Ruling

__all__ = ["dialled_back"]

SEED_BYTES = 32


async def dialled_back(config: NodeConfig, place: DataDir) -> list[Found]:
    """What peers find when they dial this machine; see `conclude`."""
    found: list[Found] = []
    try:
        if place.is_in_use():
            found = await trio.to_thread.run_sync(_through_the_node, place)
        elif config.bootstrap and config.listen:
            found = await _by_ourselves(config)
    except* (UserError, NetworkError) as group:
        found = [_unknown(_first(group))]
    if found:
        return found
    reason = "the node listens nowhere" if not config.listen else "no node runs here, and no peer is named"
    remedy = "be reached through relays" if not config.listen else "start the node, or give --bootstrap"
    return [Found("?", "unknown", reason, remedy)]


def _unknown(error: BaseException) -> Found:
    return Found("?", "unknown", str(error), "see to that, and ask again")


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _through_the_node(place: DataDir) -> list[Found]:
    with connect(place.path) as client:
        rows = client.reachability()
    return [Found(**row) for row in rows] or [
        Found("?", "unknown", "the node listens nowhere", "be reached through relays")
    ]


async def _by_ourselves(config: NodeConfig) -> list[Found]:
    # Imported late: libp2p takes over a second.
    from p2p_node.network.libp2p import open_network

    key = load_network_key(config.network_key_path) if config.network_key_path is not None else None
    async with open_network(
        seed=secrets.token_bytes(SEED_BYTES),
        listen=list(config.listen),
        topics=[],
        rule=lambda topic, data, forwarder: Ruling.IGNORE,
        network_name=config.network,
        bootstrap=[],
        address_book=_NoAddresses(),
        mdns=False,
        jitter=random.Random(),  # noqa: S311 - spreads dials
        clock=lambda: time.monotonic_ns() // 1_000_000,
        access=config.access,
        network_key=key,
    ) as network:
        failures: list[NetworkError] = []
        reached: list[PeerKey] = []
        for address in config.bootstrap:
            try:
                reached.append(await network.dial(address))
            except NetworkError as error:
                failures.append(error)
        if failures and not reached:
            return [_unknown(failures[0])]
        return await network.reachability()


class _NoAddresses:
    """Remembers nothing: this peer is gone in a moment."""

    def load(self) -> list[str]:
        return []

    def remember(self, address: str) -> None:
        pass

    def forget(self, address: str) -> None:
        pass
