"""The links that a peer made to be near the members of its rooms: which may end.

Rooms split and merge, members come and go, and each time a peer links itself to others; none of these links
would ever end, and both ends keep them up. So beyond a number the oldest that served nobody lately is ended,
those to peers of no room of ours first. What others linked to us, or was there before, isn't ours to end.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from p2p_node.core.discovery import PASSING
from protocols.effects import HangUp
from protocols.envelope import Signed
from protocols.messages import Headcount

__all__ = ["GREETED_MAX", "Company"]

GREETED_MAX = 16
"""Links that were made for company and are kept; fewer than `ROOM_LINKS` for each room are never too many."""

GREETED_IDLE_MS = 300_000
"""A link that served a job or a question since then goes on: a contract says little while it computes."""

GREETING_MS = 60_000
"""What hasn't come about by then won't."""


class Company:
    """Of one peer: whom it has greeted, longest unused first."""

    def __init__(self, connected: set[bytes]) -> None:
        """Nobody yet.

        Args:
            connected: peers that we have a link with; kept by the caller.
        """
        self._connected = connected
        self._used_ms: OrderedDict[bytes, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._used_ms)

    def greeted(self, peer: bytes, now_ms: int) -> None:
        """We dial a peer for its company."""
        self._used_ms.setdefault(peer, now_ms)

    def used(self, peer: bytes, message: Signed[Any], now_ms: int) -> None:
        """A message went over the link with a peer."""
        if peer in self._used_ms and not isinstance(message.body, (*PASSING, Headcount)):
            self._used_ms[peer] = now_ms
            self._used_ms.move_to_end(peer)

    def review(self, now_ms: int, *, keep: int, is_near: Callable[[bytes], bool]) -> list[HangUp]:
        """End the links that are too many.

        Args:
            now_ms: the time.
            keep: how many may stay.
            is_near: whether a peer is in one of our rooms.
        """
        for peer, used_ms in list(self._used_ms.items()):
            if peer not in self._connected and used_ms + GREETING_MS <= now_ms:
                del self._used_ms[peer]
        idle = [peer for peer, used_ms in self._used_ms.items() if used_ms + GREETED_IDLE_MS <= now_ms]
        spare = max(0, len(self._used_ms) - keep)
        over = sorted(idle, key=is_near)[:spare]
        for peer in over:
            del self._used_ms[peer]
        return [HangUp(peer) for peer in over]
