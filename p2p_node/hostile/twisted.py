"""A core whose effects can be twisted before they leave it: the base of most hostile peers."""

from __future__ import annotations

from p2p_node.core.node import Act, NodeCore
from protocols.effects import Effect

__all__ = ["TwistedCore"]


class TwistedCore(NodeCore):
    """An honest core, except for what `_twist` makes of each effect."""

    def _act(self, effects: list[Effect], now_ms: int) -> list[Act]:
        return super()._act([made for effect in effects for made in self._twist(effect, now_ms)], now_ms)

    def _twist(self, effect: Effect, now_ms: int) -> list[Effect]:
        """What is done in place of ``effect``."""
        return [effect]
