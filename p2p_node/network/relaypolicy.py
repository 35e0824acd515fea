"""What a volunteer gives to peers that others can't reach. Settings, readable without libp2p."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

__all__ = ["RelayPolicy"]


class RelayPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds on relaying for others; what passes is enciphered between its two ends."""

    volunteer: bool = False
    """Whether to relay at all."""
    max_reservations: Annotated[int, Meta(ge=1, le=256)] = 16
    """Peers that may be reached through us at once."""
    max_circuits: Annotated[int, Meta(ge=1, le=1_024)] = 64
    """Connections that pass through us at once."""
    # Below this a sender would wait longer for credit than yamux lets it.
    bytes_per_s: Annotated[int, Meta(ge=512 * 1024, le=2**40)] = 4 * 1024**2
    """What passes on each of them, both ways together."""
    circuit_s: Annotated[int, Meta(ge=60, le=7 * 86_400)] = 3_600
    """How long one of them lasts; its ends then make another."""
