"""Opens a network over libp2p, and closes it whatever happens inside."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import structlog
import trio
from libp2p.tools.anyio_service import background_trio_service
from multiaddr.multiaddr import Multiaddr

from p2p_node.network.access import EVERYBODY, PeerAccess
from p2p_node.network.dialplan import BadAddress, DialPlan
from p2p_node.network.libp2p.host import build_host
from p2p_node.network.libp2p.keys import key_of
from p2p_node.network.libp2p.network import Libp2pNetwork
from p2p_node.network.libp2p.ports import check_listen_addresses
from p2p_node.network.libp2p.upkeep import keep_connected
from p2p_node.network.port import AddressBook, GossipRule, ListenFailed
from p2p_node.network.relaypolicy import RelayPolicy
from protocols.limits import NETWORK_NAME_BYTES_MAX

__all__ = ["open_network"]

log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_network(
    *,
    seed: bytes,
    listen: list[str],
    topics: list[str],
    rule: GossipRule,
    network_name: str,
    bootstrap: list[str],
    address_book: AddressBook,
    mdns: bool,
    jitter: random.Random,
    clock: Callable[[], int],
    access: PeerAccess = EVERYBODY,
    network_key: bytes | None = None,
    relay: RelayPolicy | None = None,
    is_unreachable: Callable[[], bool] = lambda: False,
) -> AsyncIterator[Libp2pNetwork]:
    """Run a network while the body runs.

    Args:
        seed: Ed25519 seed, 32 bytes; the peer's identity.
        listen: ``/ip4/<host>/tcp/<port>`` each; port 0 takes a free one; none for a peer that only dials.
        topics: gossip topics to join.
        rule: judges gossip; see `GossipRule`.
        network_name: peers of other networks are refused; 1 to 64 bytes without a slash.
        bootstrap: addresses ending in ``/p2p/<peer id>`` that are dialled for ever.
        address_book: addresses of earlier runs.
        mdns: also look for peers on the local network.
        jitter: spreads dials; never used for anything secret.
        clock: milliseconds, for back-off and standing.
        access: who may be connected to us, whoever dials.
        network_key: 32 bytes that all peers of a private network have; None for a public one.
        relay: what we give to peers that can't be reached; None is nothing.
        is_unreachable: whether we can't be reached ourselves, and want relays; asked again and again.

    Raises:
        ListenFailed: an address can't be listened on.
        ValueError: a bad network name, seed or bootstrap address.
    """
    if not network_name or "/" in network_name or len(network_name.encode()) > NETWORK_NAME_BYTES_MAX:
        raise ValueError(
            f"network_name={network_name!r} must be 1 to {NETWORK_NAME_BYTES_MAX} bytes without a slash"
        )
    check_listen_addresses(listen)
    host, swarm = build_host(seed, access=access, network_key=network_key)
    local_key = key_of(host.get_id())
    assert local_key is not None  # noqa: S101  build_host makes Ed25519 identities
    plan = DialPlan(local_key, jitter)
    for address in bootstrap:
        plan.add(address, lasting=True)
    for address in address_book.load():
        try:
            plan.add(address)
        except BadAddress as error:
            log.warning("address book entry is useless", reason=str(error))
            address_book.forget(address)
    async with trio.open_nursery() as nursery:
        network = Libp2pNetwork(
            host,
            swarm,
            nursery,
            network_name=network_name,
            topics=topics,
            rule=rule,
            address_book=address_book,
            plan=plan,
            clock=clock,
            access=access,
            relay=relay,
            is_unreachable=is_unreachable,
        )
        async with (
            host.run([Multiaddr(address) for address in listen]),
            background_trio_service(network.pubsub),
            background_trio_service(network.router),
        ):
            try:
                await network.pubsub.wait_until_ready()
                missing = [address for address in listen if address not in swarm.listeners]
                if missing:
                    raise ListenFailed(f"can't listen on {', '.join(missing)}")
                await network.pubsub.join()
                nursery.start_soon(
                    partial(
                        keep_connected, network, plan, address_book=address_book, jitter=jitter, clock=clock
                    )
                )
                nursery.start_soon(network.circuits.keep_reserved)
                if mdns:
                    # Imported only where it is wanted: zeroconf costs start-up time.
                    from p2p_node.network.libp2p.mdns import advertise_and_browse

                    nursery.start_soon(advertise_and_browse, network.addresses, plan.consider)
                yield network
            finally:
                await network.close()
        nursery.cancel_scope.cancel()
