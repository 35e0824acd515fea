"""What gossip gets of the loop while it is slow, and who of those that bring it."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from libp2p.pubsub.pb import rpc_pb2

from p2p_node.network.libp2p.mends import RoomyRpcQueue
from p2p_node.network.turns import PER_SECOND_MAX, SLOW_S, Turns

NEIGHBOURS = 12
PER_SECOND_MIN = 16.0


async def slow_loop(clock: trio.testing.MockClock) -> None:
    """Each round takes a little too long."""
    while True:
        clock.jump(2 * SLOW_S)
        await trio.lowlevel.checkpoint()


async def asked_again_and_again(turns: Turns, count: list[int], who: int) -> None:
    while True:
        await turns.next()
        count[who] += 1


async def test_a_quick_loop_lets_everything_pass(autojump_clock: trio.testing.MockClock) -> None:
    turns = Turns(PER_SECOND_MIN)
    for _ in range(100):
        await turns.next()
    assert turns.per_second == PER_SECOND_MAX
    assert trio.current_time() < 1


async def test_in_a_slow_loop_turns_are_rare_and_everybody_has_as_many(
    mock_clock: trio.testing.MockClock,
) -> None:
    turns, count = Turns(PER_SECOND_MIN), [0] * NEIGHBOURS
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow_loop, mock_clock)
        for who in range(NEIGHBOURS):
            nursery.start_soon(asked_again_and_again, turns, count, who)
        while trio.current_time() < 30:
            await trio.lowlevel.checkpoint()
        assert turns.per_second < 1.1 * PER_SECOND_MIN
        before, began = list(count), trio.current_time()
        while trio.current_time() < began + 60:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    gained = [after - earlier for after, earlier in zip(count, before, strict=True)]
    assert sum(gained) == pytest.approx(60 * PER_SECOND_MIN, rel=0.1)
    assert max(gained) - min(gained) <= 2


async def test_who_has_no_patience_leaves_the_turn_to_others(autojump_clock: trio.testing.MockClock) -> None:
    turns = Turns(PER_SECOND_MIN)
    turns.per_second = PER_SECOND_MIN
    passed = [await turns.next(0) for _ in range(100)]
    # A loop that is quick gives more and more turns; none of them is waited for.
    assert passed[0] and not passed[-1]
    assert trio.current_time() == autojump_clock.current_time() < 0.01
    assert await turns.next()


async def test_a_loop_that_is_quick_again_hears_more_again(mock_clock: trio.testing.MockClock) -> None:
    turns = Turns(PER_SECOND_MIN)
    turns.per_second = PER_SECOND_MIN
    for _ in range(300):
        mock_clock.jump(1)
        await turns.next()
    assert turns.per_second == PER_SECOND_MAX


async def test_what_we_say_ourselves_passes_a_full_queue_of_what_we_pass_on() -> None:
    queue = RoomyRpcQueue()
    foreign, ours = rpc_pb2.RPC(), rpc_pb2.RPC(publish=[rpc_pb2.Message(data=b"ours")])
    while queue.push(foreign):
        pass
    assert queue.push(ours, priority=True)
    assert not queue.push(foreign)
    assert await queue.pop() == ours


async def test_what_we_say_ourselves_is_not_held_back(autojump_clock: trio.testing.MockClock) -> None:
    queue = RoomyRpcQueue()
    await queue.gather(trio.current_time() + 1)
    assert trio.current_time() >= 1
    queue.push(rpc_pb2.RPC(), priority=True)
    await queue.gather(trio.current_time() + 100)
    assert trio.current_time() < 2
