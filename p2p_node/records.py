"""What a node has earned, read back from its journal."""

from __future__ import annotations

from p2p_node.core.node import NodeCore
from p2p_node.store import Store
from protocols.envelope import open_envelope
from protocols.errors import PeerFault
from protocols.messages import Voucher

__all__ = ["earnings"]


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
