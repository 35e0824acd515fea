"""How many inbound connections there may be: in the middle of their handshake, and from one address range.

Keys are free and addresses are not quite: whoever owns one has the rest of its range too. So a range, a /24
of IPv4 or a /48 of IPv6, has bounds of its own: connections that are open, how fast it may open them, and how
many of its peers may be refused for their faults before it is refused itself for a while. This machine's own
address is in no range: whoever is here needs no network to do harm.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import trio

from protocols.limits import (
    CONNECTIONS_PER_RANGE_MAX,
    GRAYLIST_MS,
    HALF_OPEN_MAX,
    HALF_OPEN_PER_ADDRESS_MAX,
    RANGE_CONNECTIONS_BURST,
    RANGE_CONNECTIONS_PER_SECOND,
    RANGE_FAULTS_MAX,
    RANGES_MAX,
)

__all__ = ["Admission", "range_of"]

OWN_HOSTS = ("127.0.0.1", "::1")
_IPV4_BITS = 24
_IPV6_BITS = 48


def range_of(host: str) -> str | None:
    """The range of an address; None for this machine's own, and for what is no address."""
    if host in OWN_HOSTS:
        return None
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    bits = _IPV4_BITS if address.version == 4 else _IPV6_BITS
    return str(ipaddress.ip_network((address, bits), strict=False))


@dataclass(slots=True)
class _Range:
    """What one range has used up, on the clock of `Admission`."""

    tokens: float
    as_of_s: float
    open: int = 0
    faults: float = 0.0
    refused_until_s: float = 0.0


class Admission:
    """Counts inbound connections: each enters, leaves once it is upgraded, and ends once it is closed."""

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        """Nobody is here.

        Args:
            clock: seconds.
        """
        self._clock = clock
        self._host_of: dict[int, str] = {}
        self._per_host: Counter[str] = Counter()
        self._range_of: dict[int, str] = {}
        self._ranges: OrderedDict[str, _Range] = OrderedDict()

    @property
    def half_open(self) -> int:
        """Handshakes under way."""
        return len(self._host_of)

    def enter(self, connection: object, host: str) -> bool:
        """Take a place for ``connection`` from ``host``; False if there is none."""
        if len(self._host_of) >= HALF_OPEN_MAX or self._per_host[host] >= HALF_OPEN_PER_ADDRESS_MAX:
            return False
        name = range_of(host)
        if name is not None and not self._enter_range(connection, name):
            return False
        self._host_of[id(connection)] = host
        self._per_host[host] += 1
        return True

    def leave(self, connection: object) -> None:
        """Its handshake is over: give that place back. Does nothing the second time."""
        host = self._host_of.pop(id(connection), None)
        if host is None:
            return
        self._per_host[host] -= 1
        if not self._per_host[host]:
            del self._per_host[host]

    def end(self, connection: object) -> None:
        """It is closed. Does nothing the second time."""
        self.leave(connection)
        name = self._range_of.pop(id(connection), None)
        if name is not None:
            self._ranges[name].open -= 1

    def fault(self, host: str) -> None:
        """A peer at ``host`` is refused for its faults from now on; so is its range, if there were many."""
        name = range_of(host)
        if name is None:
            return
        entry, now_s = self._of(name), self._clock()
        entry.faults += 1
        if entry.faults >= RANGE_FAULTS_MAX:
            entry.faults = 0.0
            entry.refused_until_s = now_s + GRAYLIST_MS / 1_000

    def _enter_range(self, connection: object, name: str) -> bool:
        entry = self._of(name)
        if entry.open >= CONNECTIONS_PER_RANGE_MAX or self._clock() < entry.refused_until_s:
            return False
        if entry.tokens < 1:
            return False
        entry.tokens -= 1
        entry.open += 1
        self._range_of[id(connection)] = name
        return True

    def _of(self, name: str) -> _Range:
        now_s = self._clock()
        entry = self._ranges.get(name)
        if entry is None:
            self._make_room(now_s)
            entry = self._ranges[name] = _Range(RANGE_CONNECTIONS_BURST, now_s)
        elapsed_s = max(0.0, now_s - entry.as_of_s)
        entry.tokens = min(RANGE_CONNECTIONS_BURST, entry.tokens + elapsed_s * RANGE_CONNECTIONS_PER_SECOND)
        entry.faults *= 0.5 ** (elapsed_s * 1_000 / GRAYLIST_MS)
        entry.as_of_s = now_s
        self._ranges.move_to_end(name)
        return entry

    def _make_room(self, now_s: float) -> None:
        if len(self._ranges) < RANGES_MAX:
            return
        # The least recently heard of that has nothing open and isn't refused has most likely refilled.
        idle = (n for n, entry in self._ranges.items() if not entry.open and entry.refused_until_s <= now_s)
        name = next(idle, None)
        if name is not None:
            del self._ranges[name]
