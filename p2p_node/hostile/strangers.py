"""Peers that need no contract to do harm: they boast, repeat, or send rubbish."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from p2p_node.core.node import Act, Capability, NodeCore
from p2p_node.core.outbox import Transmit, message_frame
from protocols.bidding import Ability
from protocols.effects import Publish, SetTimer
from protocols.envelope import Signed
from protocols.limits import GOSSIP_BYTES_MAX, INTEGER_MAX
from protocols.messages import Closed

__all__ = ["ForgedCapability", "MalformedBytes", "ReplayedMessage"]

BOAST = 1_000
NOISE_EVERY_MS = 100
HEARD_MAX = 512


class ForgedCapability(NodeCore):
    """Advertises a thousand times its speed, and bids with it."""

    def __init__(self, *, capability: Capability, **arguments: Any) -> None:
        abilities = tuple(_boasted(ability) for ability in capability.abilities)
        super().__init__(capability=replace(capability, abilities=abilities), **arguments)


def _boasted(ability: Ability) -> Ability:
    rate_milli = min(INTEGER_MAX, BOAST * ability.offering.rate_milli)
    return replace(ability, offering=msgspec.structs.replace(ability.offering, rate_milli=rate_milli))


class ReplayedMessage(NodeCore):
    """Says again whatever it heard, to everybody it knows."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._frames: list[bytes] = []
        self._gossiped: list[tuple[str, bytes]] = [("jobs", b"")]

    def start(self, now_ms: int) -> list[Act]:
        """As `NodeCore.start`, and a timer of its own."""
        return [*super().start(now_ms), SetTimer(("hostile",), now_ms + NOISE_EVERY_MS)]

    def frame_received(self, peer: bytes, frame: bytes, now_ms: int) -> list[Act]:
        """As `NodeCore.frame_received`; the frame is kept."""
        self._keep(self._frames, frame)
        return super().frame_received(peer, frame, now_ms)

    def gossip_received(self, topic: str, data: bytes, forwarder: bytes, now_ms: int) -> list[Act]:
        """As `NodeCore.gossip_received`; the message is kept."""
        self._keep(self._gossiped, (topic, data))
        return super().gossip_received(topic, data, forwarder, now_ms)

    def _keep(self, heard: list[Any], what: Any) -> None:
        if len(heard) < HEARD_MAX:
            heard.append(what)
        else:
            heard[self._jitter.randrange(HEARD_MAX)] = what

    def timer_fired(self, key: tuple[Any, ...], now_ms: int) -> list[Act]:
        """As `NodeCore.timer_fired`; its own timer sends what it has for everybody."""
        if key != ("hostile",):
            return super().timer_fired(key, now_ms)
        acts: list[Act] = [SetTimer(key, now_ms + NOISE_EVERY_MS)]
        peers = [advert.signer for advert in self.registry.current(now_ms) if advert.signer != self.key]
        acts += [Transmit(peer, self._frame()) for peer in peers]
        topic, data = self._gossip_message()
        if data:
            acts.append(Publish(topic, Signed(data, bytes(32), self.key, Closed(bytes(32), b""))))
        return acts

    def _frame(self) -> bytes:
        # Some said to it, and some that everybody heard, said to one.
        if self._frames and self._jitter.random() < 0.5:
            return self._jitter.choice(self._frames)
        return message_frame(self._jitter.choice(self._gossiped)[1])

    def _gossip_message(self) -> tuple[str, bytes]:
        return self._jitter.choice(self._gossiped)


class MalformedBytes(ReplayedMessage):
    """Sends noise, and what it heard with bits flipped, cut and spliced."""

    def _frame(self) -> bytes:
        return self._spoiled(super()._frame())

    def _gossip_message(self) -> tuple[str, bytes]:
        topic, data = super()._gossip_message()
        return topic, self._spoiled(data)[: GOSSIP_BYTES_MAX - 1]

    def _spoiled(self, data: bytes) -> bytes:
        spoiled = bytearray(data or b"\0")
        match self._jitter.randrange(4):
            case 0:
                for _ in range(self._jitter.randint(1, 8)):
                    spoiled[self._jitter.randrange(len(spoiled))] ^= 1 << self._jitter.randrange(8)
            case 1:
                del spoiled[self._jitter.randrange(len(spoiled)) :]
            case 2:
                other = self._jitter.choice(self._gossiped)[1]
                spoiled[self._jitter.randrange(len(spoiled)) :] = other[len(other) // 2 :]
            case 3:
                return self._jitter.randbytes(self._jitter.randint(1, 400))
        return bytes(spoiled)
