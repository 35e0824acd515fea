"""How fast each peer was seen to deliver, and what a promise counts until then.

An advert or a bid is a claim, and claiming costs nothing. So a promise counts down to the best pace that
anybody has shown us for the same work, and no further; a peer that has delivered counts with its own.
"""

from __future__ import annotations

from collections import OrderedDict

from protocols.limits import PACES_MAX

__all__ = ["Paces", "Work"]

Work = tuple[str, bytes, str]
"""Workload, model and profile."""


class Paces:
    """Delivered microseconds per output unit, by peer and work; bounded."""

    def __init__(self) -> None:
        self._paces: OrderedDict[tuple[bytes, Work], int] = OrderedDict()

    def observe(self, peer: bytes, work: Work, *, units: int, delivered_ms: int) -> None:
        """``peer`` delivered ``units``, verified, in ``delivered_ms``."""
        pace = 1_000 * delivered_ms // max(1, units)
        key = (peer, work)
        before = self._paces.get(key, pace)
        self._paces[key] = (3 * before + pace) // 4
        self._paces.move_to_end(key)
        while len(self._paces) > PACES_MAX:
            self._paces.popitem(last=False)

    def observed(self, work: Work) -> list[int]:
        """Every peer's pace at this work, in microseconds per output unit."""
        return [pace for (_, known), pace in self._paces.items() if known == work]

    def believable_ms(self, peer: bytes, work: Work, *, units: int, promised_ms: int) -> int:
        """The time to reckon with where ``peer`` promises ``promised_ms`` for ``units``."""
        own = self._paces.get((peer, work))
        if own is None:
            own = min((pace for (_, known), pace in self._paces.items() if known == work), default=0)
        return max(promised_ms, own * units // 1_000)
