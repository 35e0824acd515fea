"""What a node keeps in its store beside the core's own records: peers' addresses and what it has earned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from p2p_node.core.node import Act, NodeCore
from p2p_node.store import Store
from protocols.digest import DIGEST_BYTES
from protocols.effects import Persist
from protocols.envelope import open_envelope
from protocols.errors import PeerFault
from protocols.limits import RECEIPT_BYTES_MAX
from protocols.messages import ReceiptBody, Voucher

__all__ = ["AddressRecords", "Rows", "open_receipt", "recover", "tell_earnings"]

ADDRESSES_MAX = 512


class Rows(Protocol):
    """The part of `Store` from which a core recovers."""

    def load(self, table: str) -> dict[bytes, bytes]:
        """All of a table."""
        ...

    def keys(self, table: str) -> list[bytes]:
        """Its keys."""
        ...

    def get(self, table: str, key: bytes) -> bytes | None:
        """One row."""
        ...


class _Trusting:
    """Judges what we judged when we heard it: a hundred thousand signatures take half a minute."""

    def verify(self, key: bytes, message: bytes, signature: bytes) -> bool:
        """Yes."""
        return True

    def vrf_output(self, key: bytes, alpha: bytes, proof: bytes) -> bytes | None:
        """Nobody asks."""
        return None


async def tell_earnings(store: Store, core: NodeCore, earned: dict[bytes, int]) -> None:
    """Fill in the micro-units settled to this node, by award; the newest voucher of each lane counts.

    A little at a time, beside a node that works: a hundred thousand vouchers take seconds. What is earned
    meanwhile is newer, and stays.
    """
    crypto, after = _Trusting(), None
    while page := store.page("vouchers", after=after):
        for key, raw in page:
            if not key.endswith(core.key):
                continue  # It is one that we signed.
            try:
                message = open_envelope(raw, network=core.network, crypto=crypto, expect=Voucher)
            except PeerFault:
                continue  # Of another network that used this directory before.
            earned.setdefault(message.body.lane, message.body.settled_micros)
        after = page[-1][0]
        await trio.lowlevel.checkpoint()


def recover(store: Rows, core: NodeCore, now_ms: int) -> list[Act]:
    """Give a core what the store kept for it; perform what it answers."""
    contracts, lanes = store.load("contracts"), store.load("lanes")
    vouchers = {
        award_id: raw
        for award_id in {*lanes, *(key for key in contracts if len(key) == DIGEST_BYTES)}
        if (raw := store.get("vouchers", award_id + core.key)) is not None
    }
    return core.restore(
        registry=list(store.load("registry").values()),
        convictions=store.keys("convictions"),
        standings=store.load("standings"),
        outbox=store.load("outbox"),
        contracts=contracts,
        lanes=lanes,
        vouchers=vouchers,
        now_ms=now_ms,
    )


def open_receipt(core: NodeCore, raw: bytes | None) -> ReceiptBody | None:
    """A receipt of our own from the store; None if there is none, or it can't be read any more."""
    if raw is None:
        return None
    try:
        return open_envelope(
            raw, network=core.network, crypto=core.crypto, expect=ReceiptBody, bytes_max=RECEIPT_BYTES_MAX
        ).body
    except PeerFault:
        return None


class AddressRecords:
    """The persistent address book, bounded, newest first."""

    def __init__(self, store: Store, clock: Callable[[], int]) -> None:
        self._store = store
        self._clock = clock
        self._known = dict.fromkeys(
            key.decode(errors="replace")
            for key, _ in sorted(store.load("addresses").items(), key=lambda row: row[1])
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
