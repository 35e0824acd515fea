"""A network that is equally bad everywhere: what small worlds are played with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from p2p_node.sim.world import Peer, World

__all__ = ["Conditions", "EvenCarrier"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """How bad the network is, where it is equally bad everywhere."""

    latency_ms: tuple[int, int] = (5, 80)
    loss: float = 0.0
    duplication: float = 0.0
    gossip_loss: float = 0.0
    partitions: tuple[tuple[int, int, int], ...] = ()
    """(from ms, to ms, group size): the first peers are cut off from the rest meanwhile."""


class EvenCarrier:
    """Carries by `Conditions`: each message has its own luck, whoever sends it."""

    def __init__(
        self, conditions: Conditions, *, neighbours: int, eclipsed: Mapping[int, frozenset[int]]
    ) -> None:
        self.conditions = conditions
        self.eclipsed = eclipsed
        self._neighbours = neighbours

    def transmit(self, world: World, sender: Peer, receiver: Peer, frame: bytes) -> None:
        """As `Carrier.transmit`."""
        if self.is_cut(world, sender, receiver):
            return
        for _ in range(self._copies(world, self.conditions.loss)):
            world.deliver_frame(self._latency_ms(world), receiver, sender, frame)

    def publish(self, world: World, sender: Peer, topic: str, data: bytes) -> None:
        """As `Carrier.publish`."""
        for receiver in world.peers:
            if receiver is sender or self.is_cut(world, sender, receiver):
                continue
            if self._is_eclipsed(sender, receiver) or not world.hears(receiver, topic):
                continue
            for _ in range(self._copies(world, self.conditions.gossip_loss)):
                # A flood takes a few hops.
                hops = 1 + int(world.luck.random() * 3)
                world.deliver_gossip(self._latency_ms(world) * hops, [receiver], sender, topic, data)

    def is_cut(self, world: World, sender: Peer, receiver: Peer) -> bool:
        """As `Carrier.is_cut`."""
        elapsed_ms = world.elapsed_ms
        for start_ms, end_ms, size in self.conditions.partitions:
            if start_ms <= elapsed_ms < end_ms and (sender.index < size) != (receiver.index < size):
                return True
        return False

    def neighbours(self, world: World, peer: Peer) -> list[Peer]:
        """As `Carrier.neighbours`."""
        others = [other for other in world.peers if other is not peer and not self._is_eclipsed(peer, other)]
        return world.luck.sample(others, min(self._neighbours, len(others)))

    def is_apart(self, one: Peer, other: Peer) -> bool:
        """As `Carrier.is_apart`."""
        return self._is_eclipsed(one, other)

    def _is_eclipsed(self, one: Peer, other: Peer) -> bool:
        """Whether nothing that is gossiped gets from one to the other, because one of them is surrounded."""
        return bool(self.eclipsed) and any(
            victim.index in self.eclipsed and friend.index not in self.eclipsed[victim.index]
            for victim, friend in ((one, other), (other, one))
        )

    def _copies(self, world: World, loss: float) -> int:
        if world.luck.random() < loss:
            return 0
        return 2 if world.luck.random() < self.conditions.duplication else 1

    def _latency_ms(self, world: World) -> int:
        low, high = self.conditions.latency_ms
        return low + int(world.luck.random() * (high - low + 1))
