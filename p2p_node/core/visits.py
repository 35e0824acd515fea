"""Links that were dialled for a question of the directory, and end when they serve nothing else."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from protocols.effects import HangUp

__all__ = ["LINKS_KEPT", "VISIT_MS", "Visits"]

VISIT_MS = 20_000
"""How long a link that was dialled for a question is kept for the next one."""

LINKS_KEPT = 8
"""With fewer links than this none is let go."""


class Visits:
    """Of one peer."""

    def __init__(self, connected: AbstractSet[bytes]) -> None:
        """None yet, of a peer with these links; kept by the caller."""
        self._connected = connected
        self._used_ms: dict[bytes, int] = {}

    def __contains__(self, peer: bytes) -> bool:
        return peer in self._used_ms

    def sent(self, peer: bytes, now_ms: int) -> None:
        """Something of the directory goes to a peer, which is dialled for it if it must be."""
        if peer not in self._connected or peer in self._used_ms:
            self._used_ms[peer] = now_ms

    def used(self, peer: bytes) -> None:
        """The link serves something else, too: it isn't ours to end."""
        self._used_ms.pop(peer, None)

    def let_go(self, now_ms: int) -> list[HangUp]:
        """End the links of visits that are over."""
        over = [peer for peer, used_ms in self._used_ms.items() if used_ms + VISIT_MS <= now_ms]
        acts: list[HangUp] = []
        for peer in over:
            del self._used_ms[peer]
            if peer in self._connected and len(self._connected) - len(acts) > LINKS_KEPT:
                acts.append(HangUp(peer))
        return acts
