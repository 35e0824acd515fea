"""With whom the operator wants to have to do: lists of peers and of address ranges.

A deny list wins over an allow list, and an empty allow list allows everybody. An address may change hands and
a key is free, so a deny list keeps out only who doesn't try hard; an allow list of peers keeps out everybody
else, since Noise proves who a peer is.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from p2p_node.network.port import PeerKey
from protocols.identity import peer_key

__all__ = ["EVERYBODY", "PeerAccess", "access_of"]

_Range: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class PeerAccess:
    """Who may be connected to us, whoever dials whom."""

    allowed_peers: frozenset[PeerKey] = frozenset()
    denied_peers: frozenset[PeerKey] = frozenset()
    allowed_ranges: tuple[_Range, ...] = field(default=())
    denied_ranges: tuple[_Range, ...] = field(default=())

    def refuses_peer(self, key: PeerKey) -> bool:
        """Whether this peer is kept out."""
        return key in self.denied_peers or bool(self.allowed_peers and key not in self.allowed_peers)

    def refuses_host(self, host: str) -> bool:
        """Whether this IP address is kept out; of a name nothing is known before it is resolved."""
        if not self.allowed_ranges and not self.denied_ranges:
            return False
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return False
        # A socket for both families shows IPv4 callers like this; they must not slip past an IPv4 range.
        mapped = getattr(address, "ipv4_mapped", None)
        if mapped is not None:
            address = mapped
        if any(address in denied for denied in self.denied_ranges):
            return True
        return bool(self.allowed_ranges) and not any(address in allowed for allowed in self.allowed_ranges)


EVERYBODY = PeerAccess()
"""No lists."""


def access_of(
    *,
    allow_peers: Iterable[str] = (),
    deny_peers: Iterable[str] = (),
    allow_addresses: Iterable[str] = (),
    deny_addresses: Iterable[str] = (),
) -> PeerAccess:
    """The lists as an operator writes them: peer ids, and addresses or ranges such as ``192.0.2.0/24``.

    Raises:
        ValueError: not a peer id, not an address, or a range with bits beyond its prefix.
    """
    return PeerAccess(
        frozenset(map(peer_key, allow_peers)),
        frozenset(map(peer_key, deny_peers)),
        tuple(map(ipaddress.ip_network, allow_addresses)),
        tuple(map(ipaddress.ip_network, deny_addresses)),
    )
