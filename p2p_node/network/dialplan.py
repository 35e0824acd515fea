"""Whom to dial next. Pure: the caller brings the time, the randomness and the sockets.

Every address we ever heard of is a candidate. One that fails waits twice as long each time, with jitter, so
that a network that comes back isn't met by everybody at once; one that keeps failing is dropped, unless the
operator named it.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass

from p2p_node.network.port import PeerKey
from protocols.identity import peer_key
from protocols.limits import ADDRESS_BYTES_MAX, ADDRESSES_KNOWN_MAX

__all__ = ["CIRCUIT", "BadAddress", "DialPlan", "peer_of"]

CIRCUIT = "p2p-circuit"
"""Between a relay's address and the peer that it leads to."""

BACKOFF_FIRST_MS = 500
BACKOFF_MAX_MS = 5 * 60_000
BACKOFF_LASTING_MAX_MS = 3_000
"""The operator's own peers are few, and he restarts them while he watches."""

FAILURES_MAX = 8


class BadAddress(ValueError):
    """Text that isn't an address we can dial."""


def peer_of(address: str) -> PeerKey:
    """The peer that a multiaddr ends in.

    Raises:
        BadAddress: it isn't ``/ip4|ip6|dns.../tcp/<port>/p2p/<peer id>``, or that of a relay and
            ``/p2p-circuit/p2p/<peer id>``.
    """
    relay_address, is_circuit, rest = address.partition(f"/{CIRCUIT}/p2p/")
    if is_circuit:
        relay = _direct_peer_of(relay_address)
        peer = _peer_named(rest, address)
        if peer == relay:
            raise BadAddress(f"address {address!r} leads through the peer to itself")
        return peer
    return _direct_peer_of(address)


def _peer_named(text: str, address: str) -> PeerKey:
    try:
        return peer_key(text)
    except ValueError as error:
        raise BadAddress(f"address {address!r}: {error}") from error


def _direct_peer_of(address: str) -> PeerKey:
    parts = address.split("/")
    if len(address.encode()) > ADDRESS_BYTES_MAX:
        raise BadAddress(f"address of {len(address.encode())} bytes exceeds {ADDRESS_BYTES_MAX}")
    if len(parts) != 7 or parts[0] or parts[1] not in ("ip4", "ip6", "dns", "dns4", "dns6"):
        raise BadAddress(f"address {address!r} must be /ip4/<host>/tcp/<port>/p2p/<peer id>")
    if parts[3] != "tcp" or not (
        parts[4].isascii() and parts[4].isdigit() and 0 < int(parts[4][:6]) < 65_536
    ):
        raise BadAddress(f"address {address!r} must name a TCP port of 1 to 65535")
    if parts[5] != "p2p":
        raise BadAddress(f"address {address!r} must end in /p2p/<peer id>")
    return _peer_named(parts[6], address)


@dataclass(slots=True)
class _Candidate:
    peer: PeerKey
    due_ms: int
    failures: int = 0
    lasting: bool = False
    proven: bool = False


class DialPlan:
    """The candidates, bounded, with their back-off."""

    def __init__(self, local_key: PeerKey, jitter: random.Random) -> None:
        self._local_key = local_key
        self._jitter = jitter
        self._candidates: dict[str, _Candidate] = {}

    def __len__(self) -> int:
        return len(self._candidates)

    def add(self, address: str, *, lasting: bool = False) -> None:
        """Take an address as candidate, due at once. A ``lasting`` one is never given up.

        Raises:
            BadAddress: it can't be dialled.
        """
        peer = peer_of(address)
        known = self._candidates.get(address)
        if known is not None:
            known.lasting = known.lasting or lasting
            return
        if peer == self._local_key:
            return
        if len(self._candidates) >= ADDRESSES_KNOWN_MAX and not self._drop_worst():
            return
        self._candidates[address] = _Candidate(peer, due_ms=0, lasting=lasting)

    def consider(self, address: str) -> bool:
        """Like `add`, for addresses from strangers: False if it can't be dialled."""
        try:
            self.add(address)
        except BadAddress:
            return False
        return True

    def next(self, count: int, connected: Collection[PeerKey], now_ms: int) -> list[str]:
        """Up to ``count`` due addresses of distinct unconnected peers, drawn at random."""
        due = [
            address
            for address, candidate in self._candidates.items()
            if candidate.due_ms <= now_ms and candidate.peer not in connected
        ]
        self._jitter.shuffle(due)
        chosen: dict[PeerKey, str] = {}
        for address in due:
            if len(chosen) >= count:
                break
            chosen.setdefault(self._candidates[address].peer, address)
        return list(chosen.values())

    def succeeded(self, address: str) -> None:
        """A dial worked: its back-off starts afresh."""
        candidate = self._candidates.get(address)
        if candidate is not None:
            candidate.failures, candidate.due_ms, candidate.proven = 0, 0, True

    def failed(self, address: str, now_ms: int) -> bool:
        """A dial failed. True if the address is now given up."""
        candidate = self._candidates.get(address)
        if candidate is None:
            return False
        candidate.failures += 1
        if candidate.failures >= FAILURES_MAX and not candidate.lasting:
            del self._candidates[address]
            return True
        longest_ms = BACKOFF_LASTING_MAX_MS if candidate.lasting else BACKOFF_MAX_MS
        wait_ms = min(longest_ms, BACKOFF_FIRST_MS << min(candidate.failures, 16))
        candidate.due_ms = now_ms + int(wait_ms * self._jitter.uniform(0.5, 1.5))
        return False

    def _badness(self, address: str) -> tuple[bool, int]:
        candidate = self._candidates[address]
        return not candidate.proven, candidate.failures

    def _drop_worst(self) -> bool:
        fleeting = [address for address, candidate in self._candidates.items() if not candidate.lasting]
        if not fleeting:
            return False
        # Hearsay goes before what once worked: strangers can name any number of addresses.
        del self._candidates[max(fleeting, key=self._badness)]
        return True
