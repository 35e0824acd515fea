"""The three outcomes of judging a gossip message."""

from __future__ import annotations

import enum

from protocols.errors import Rejected

__all__ = ["Rejected", "Ruling"]


class Ruling(enum.Enum):
    """What to do with a gossip message. Only REJECT costs the peer who forwarded it."""

    ACCEPT = "accept"
    IGNORE = "ignore"
    REJECT = "reject"
