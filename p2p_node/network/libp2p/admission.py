"""How many inbound connections may be in the middle of their handshake, in all and per address."""

from __future__ import annotations

from collections import Counter

from protocols.limits import HALF_OPEN_MAX, HALF_OPEN_PER_ADDRESS_MAX

__all__ = ["Admission"]


class Admission:
    """Counts half-open inbound connections: each enters once, and leaves when it is upgraded or ends."""

    def __init__(self) -> None:
        self._host_of: dict[int, str] = {}
        self._per_host: Counter[str] = Counter()

    @property
    def half_open(self) -> int:
        """Handshakes under way."""
        return len(self._host_of)

    def enter(self, connection: object, host: str) -> bool:
        """Take a place for ``connection`` from ``host``; False if there is none."""
        if len(self._host_of) >= HALF_OPEN_MAX or self._per_host[host] >= HALF_OPEN_PER_ADDRESS_MAX:
            return False
        self._host_of[id(connection)] = host
        self._per_host[host] += 1
        return True

    def leave(self, connection: object) -> None:
        """Give the place back. Does nothing the second time."""
        host = self._host_of.pop(id(connection), None)
        if host is None:
            return
        self._per_host[host] -= 1
        if not self._per_host[host]:
            del self._per_host[host]
