"""Finds peers on the local network as libp2p's mDNS specification says: TXT ``dnsaddr=`` under ``_p2p._udp``.

Multicast is missing in many containers and blocked on many networks. Then this says so once and gives up;
everything else works without it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

import structlog
import trio
from zeroconf import ServiceBrowser, ServiceInfo, ServiceListener, Zeroconf

from p2p_node.network.shielding import last_words
from protocols.limits import ADDRESSES_PER_PEER_MAX

__all__ = ["advertise_and_browse"]

log = structlog.get_logger(__name__)

SERVICE = "_p2p._udp.local."
RESOLVE_MS = 3_000
GOODBYE_S = 2.0
_PREFIX = b"dnsaddr="
_TEXT_BYTES_MAX = 255


def to_text(addresses: list[str]) -> bytes:
    """A TXT record of ``dnsaddr=`` strings; addresses too long for one are left out."""
    record = b""
    for address in addresses[:ADDRESSES_PER_PEER_MAX]:
        entry = _PREFIX + address.encode()
        if len(entry) <= _TEXT_BYTES_MAX:
            record += bytes((len(entry),)) + entry
    return record


def from_text(record: bytes) -> list[str]:
    """The addresses in a TXT record. Whatever isn't one is skipped: anybody can multicast anything."""
    addresses = []
    while record:
        size, entry, record = record[0], record[1 : 1 + record[0]], record[1 + record[0] :]
        if len(entry) == size and entry.startswith(_PREFIX) and entry.isascii():
            addresses.append(entry.removeprefix(_PREFIX).decode())
    return addresses[:ADDRESSES_PER_PEER_MAX]


class _Listener(ServiceListener):
    """Called in zeroconf's thread; hands addresses over to trio's."""

    def __init__(self, found: Callable[[str], None], token: trio.lowlevel.TrioToken) -> None:
        self._found, self._token = found, token

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        info = zc.get_service_info(type_, name, timeout=RESOLVE_MS)
        if info is None or info.text is None:
            return
        for address in from_text(info.text):
            try:
                self._token.run_sync_soon(self._found, address)
            except trio.RunFinishedError:
                return

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self.add_service(zc, type_, name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """Leaving isn't news: connections notice by themselves."""


async def advertise_and_browse(addresses: list[str], found: Callable[[str], None]) -> None:
    """Advertise our addresses and call ``found`` with others', until cancelled. Fails softly.

    Args:
        addresses: ours, each ending in ``/p2p/<peer id>``.
        found: called in trio's thread with each address heard, unchecked.
    """
    token = trio.lowlevel.current_trio_token()
    # The name is random, as the specification asks: it must not identify the peer.
    name = f"{secrets.token_hex(16)}.{SERVICE}"
    info = ServiceInfo(
        SERVICE,
        name,
        port=_port(addresses),
        properties=to_text(addresses),
        server=f"{name.split('.', 1)[0]}.local.",
        # Unused by peers, who read the text, but without one a service doesn't resolve.
        parsed_addresses=_hosts(addresses),
    )

    def begin() -> Zeroconf:
        zeroconf = Zeroconf()
        try:
            zeroconf.register_service(info)
            ServiceBrowser(zeroconf, SERVICE, listener=_Listener(found, token))
        except BaseException:
            zeroconf.close()
            raise
        return zeroconf

    try:
        zeroconf = await trio.to_thread.run_sync(begin)
    except Exception as error:
        log.warning("no peers by mDNS: multicast isn't available", reason=f"{type(error).__name__}: {error}")
        return
    log.info("looking for peers by mDNS")
    try:
        await trio.sleep_forever()
    finally:
        with last_words(GOODBYE_S):
            # The stubs that come with libp2p are of an older trio.
            await trio.to_thread.run_sync(zeroconf.close, abandon_on_cancel=True)  # type: ignore[call-arg]


def _hosts(addresses: list[str]) -> list[str]:
    parts = [address.split("/") for address in addresses]
    return list(dict.fromkeys(part[2] for part in parts if part[1] in ("ip4", "ip6")))


def _port(addresses: list[str]) -> int:
    parts = [address.split("/") for address in addresses]
    return next((int(part[4]) for part in parts if part[3] == "tcp"), 0)
