"""What "every interface" means on this machine."""

from __future__ import annotations

import socket

import psutil

__all__ = ["reachable_addresses"]

_EVERYWHERE = {"/ip4/0.0.0.0/": socket.AF_INET, "/ip6/::/": socket.AF_INET6}


def reachable_addresses(addresses: list[str]) -> list[str]:
    """The multiaddrs with each 0.0.0.0 or :: replaced by this machine's own, loopback last."""
    expanded: list[str] = []
    for address in addresses:
        for prefix, family in _EVERYWHERE.items():
            if address.startswith(prefix):
                kind = prefix.split("/")[1]
                expanded += [f"/{kind}/{host}/{address.removeprefix(prefix)}" for host in _hosts(family)]
                break
        else:
            expanded.append(address)
    return list(dict.fromkeys(expanded))


def _hosts(family: socket.AddressFamily) -> list[str]:
    hosts = {
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        # Link-local IPv6 needs a zone that means nothing elsewhere.
        if entry.family == family and "%" not in entry.address
    }
    return sorted(hosts, key=lambda host: (host in ("127.0.0.1", "::1"), host))
