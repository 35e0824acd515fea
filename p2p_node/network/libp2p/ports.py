"""Checks an operator's listen addresses before libp2p sees them.

Upstream listens with SO_REUSEPORT: a second peer on a busy port starts without a word, and the kernel deals
connections out to both.
"""

from __future__ import annotations

import socket

from p2p_node.network.port import ListenFailed

__all__ = ["check_listen_addresses"]


def check_listen_addresses(listen: list[str]) -> None:
    """Bind each address for a moment, alone.

    Raises:
        ListenFailed: not ``/ip4/<host>/tcp/<port>`` or ip6; the port is taken; the host isn't ours.
    """
    for address in listen:
        parts = address.split("/")
        if len(parts) != 5 or parts[0] or parts[1] not in ("ip4", "ip6") or parts[3] != "tcp":
            raise ListenFailed(f"listen address {address!r} must be /ip4/<host>/tcp/<port>")
        if not (parts[4].isascii() and parts[4].isdigit() and int(parts[4][:6]) < 65_536):
            raise ListenFailed(f"listen address {address!r} must name a TCP port of 0 to 65535")
        family = socket.AF_INET if parts[1] == "ip4" else socket.AF_INET6
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # Without it, connections of an earlier run that linger in TIME_WAIT would count as busy.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((parts[2], int(parts[4])))
            except OSError as error:
                raise ListenFailed(f"can't listen on {address}: {error.strerror or error}") from error
