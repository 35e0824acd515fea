"""Links of a world begin and end at both ends."""

from __future__ import annotations

from p2p_node.sim.scenario import sim_capability
from p2p_node.sim.world import World
from protocols.effects import Greet, HangUp


def test_who_hangs_up_ends_the_link_for_both() -> None:
    world = World(seed=1, capabilities=[sim_capability()] * 3, neighbours=2)
    world.run(until_ms=1_000)
    one, other = world.peers[:2]
    assert other.core.key in one.core.connected
    world._perform(one, [HangUp(other.core.key)])
    world.run(until_ms=1_200)
    assert other.core.key not in one.core.connected
    assert one.core.key not in other.core.connected
    assert world.links == [{2}, {2}, {0, 1}]
    world._perform(one, [HangUp(other.core.key), Greet(other.core.key)])
    world.run(until_ms=1_400)
    assert other.core.key in one.core.connected
    assert one.core.key in other.core.connected
