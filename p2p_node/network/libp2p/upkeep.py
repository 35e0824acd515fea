"""Keeps the peer connected: dials random candidates until enough of them answer."""

from __future__ import annotations

import random
from collections.abc import Callable

import structlog
import trio

from p2p_node.network.dialplan import DialPlan
from p2p_node.network.libp2p.network import Libp2pNetwork
from p2p_node.network.port import AddressBook, DialFailed

__all__ = ["keep_connected"]

log = structlog.get_logger(__name__)

DIALLED_PEERS_MIN = 4
"""Random peers that each peer dials: enough for one connected graph, and for a mesh of degree 4."""

ROUND_S = 0.5


async def keep_connected(
    network: Libp2pNetwork,
    plan: DialPlan,
    *,
    address_book: AddressBook,
    jitter: random.Random,
    clock: Callable[[], int],
) -> None:
    """Dial forever, a few at once, whoever the plan names."""

    async def attempt(address: str) -> None:
        try:
            await network.dial(address)
        except DialFailed as error:
            log.debug("dial failed", address=address, reason=str(error))
            if plan.failed(address, clock()):
                address_book.forget(address)

    while True:
        missing = DIALLED_PEERS_MIN - network.outbound_count
        if missing > 0:
            async with trio.open_nursery() as nursery:
                for address in plan.next(missing, network.connected, clock()):
                    nursery.start_soon(attempt, address)
        await trio.sleep(ROUND_S * jitter.uniform(0.5, 1.5))
