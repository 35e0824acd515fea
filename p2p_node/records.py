"""What a node keeps in its store beside the core's own records: peers' addresses and what it has earned."""

from __future__ import annotations

from collections.abc import Callable

from p2p_node.core.node import NodeCore
from p2p_node.store import Store
from protocols.effects import Persist
from protocols.envelope import open_envelope
from protocols.errors import PeerFault
from protocols.messages import Voucher

__all__ = ["AddressRecords", "earnings"]

ADDRESSES_MAX = 512


def earnings(store: Store, core: NodeCore) -> dict[bytes, int]:
    """Micro-units settled to this node, by award; the newest voucher of each lane counts."""
    earned: dict[bytes, int] = {}
    for raw in store.load("vouchers").values():
        try:
            message = open_envelope(raw, network=core.network, crypto=core.crypto, expect=Voucher)
        except PeerFault:
            continue  # Of another network that used this directory before.
        if message.body.payee == core.key:
            earned[message.body.lane] = message.body.settled_micros
    return earned


class AddressRecords:
    """The persistent address book, bounded, newest first."""

    def __init__(self, store: Store, clock: Callable[[], int]) -> None:
        self._store = store
        self._clock = clock
        self._known = dict.fromkeys(
            key.decode() for key, _ in sorted(store.load("addresses").items(), key=lambda row: row[1])
        )

    def load(self) -> list[str]:
        """See `p2p_node.network.port.AddressBook`."""
        return list(reversed(self._known))

    def remember(self, address: str) -> None:
        """See `p2p_node.network.port.AddressBook`."""
        self._known.pop(address, None)
        self._known[address] = None
        stamp = self._clock().to_bytes(8, "big")
        changes = [Persist("addresses", address.encode(), stamp)]
        while len(self._known) > ADDRESSES_MAX:
            oldest = next(iter(self._known))
            del self._known[oldest]
            changes.append(Persist("addresses", oldest.encode(), None))
        self._store.apply(changes)

    def forget(self, address: str) -> None:
        """See `p2p_node.network.port.AddressBook`."""
        if self._known.pop(address, "absent") != "absent":
            self._store.apply([Persist("addresses", address.encode(), None)])
