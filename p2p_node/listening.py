"""Where the node's own HTTP services may listen; checked before anything slow is started."""

from __future__ import annotations

import ipaddress

from p2p_node.errors import UserError

__all__ = ["UNIX", "host_and_port", "loopback_host_and_port"]

PORT_MAX = 65_535
UNIX = "unix"
"""In place of host:port: a Unix socket in the data directory."""


def host_and_port(address: str, *, flag: str) -> tuple[str, int]:
    """The parts of ``host:port``, or of ``[host]:port`` for IPv6.

    Raises:
        UserError: it has another form, or the port is too large.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdecimal()) or int(port) > PORT_MAX:
        raise UserError(f"{flag} {address!r} must be host:port with a port of at most {PORT_MAX}")
    return host, int(port)


def loopback_host_and_port(address: str, *, flag: str) -> tuple[str, int]:
    """The parts of an address that only this machine can reach.

    Raises:
        UserError: it has another form, or others could reach it.
    """
    host, port = host_and_port(address, flag=flag)
    if not _is_loopback(host):
        raise UserError(f"{flag} {address} must be a loopback address, such as 127.0.0.1:{port}")
    return host, port


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
