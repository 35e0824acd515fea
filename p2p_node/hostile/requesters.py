"""Clients that don't pay, or pay in a way that harms whom they pay."""

from __future__ import annotations

from msgspec.structs import replace

from p2p_node.hostile.twisted import TwistedCore
from protocols.effects import Effect, Send
from protocols.messages import Voucher

__all__ = ["FreeRider", "OverIssuedVouchers"]


class FreeRider(TwistedCore):
    """Takes results and sends nobody a voucher."""

    def _twist(self, effect: Effect, now_ms: int) -> list[Effect]:
        return [] if isinstance(effect, Send) and isinstance(effect.message.body, Voucher) else [effect]


class OverIssuedVouchers(TwistedCore):
    """Sends vouchers over ten times what is owed."""

    def _twist(self, effect: Effect, now_ms: int) -> list[Effect]:
        if not (isinstance(effect, Send) and isinstance(effect.message.body, Voucher)):
            return [effect]
        voucher = effect.message.body
        more = self.sign(replace(voucher, settled_micros=10 * voucher.settled_micros + 1))
        return [Send(effect.peer, more, effect.until_ms)]
