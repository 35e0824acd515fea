"""Timers under a wall clock that is set back, that jumps ahead, and that is left alone."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from p2p_node.timers import LOOK_S, Timers


class Wall:
    """A clock that somebody may set."""

    def __init__(self) -> None:
        self.set_by_ms = 0

    def __call__(self) -> int:
        return 1_700_000_000_000 + int(trio.current_time() * 1_000) + self.set_by_ms


async def fired(timers: Timers, until_s: float) -> list[tuple[int, str]]:
    """Which timers fire until then, and after how many seconds."""
    began, story = trio.current_time(), []
    while trio.current_time() < began + until_s:
        while (key := timers.pop_due()) is not None:
            story.append((round(trio.current_time() - began), key[0]))
        await trio.sleep(min(timers.wait_s(), began + until_s - trio.current_time()) + 0.001)
    return story


@pytest.mark.parametrize(
    ("set_by_ms", "story"),
    [
        (0, [(5, "early"), (100, "late")]),
        # The time that was left passes all the same.
        (-3_600_000, [(5, "early"), (100, "late")]),
        # As after a sleep of the machine.
        (3_600_000, [(0, "early"), (0, "late")]),
    ],
)
async def test_timers_outlive_a_clock_that_is_set(
    set_by_ms: int, story: list[tuple[int, str]], autojump_clock: trio.testing.MockClock
) -> None:
    wall = Wall()
    timers = Timers(wall)
    assert timers.set(("late",), wall() + 100_000)
    assert timers.set(("early",), wall() + 5_000)
    assert timers.wait_s() <= LOOK_S
    wall.set_by_ms = set_by_ms
    assert await fired(timers, 200) == story


async def test_a_timer_that_is_set_again_fires_once(autojump_clock: trio.testing.MockClock) -> None:
    wall = Wall()
    timers = Timers(wall)
    timers.set(("a",), wall() + 1_000)
    timers.set(("a",), wall() + 7_000)
    assert await fired(timers, 30) == [(7, "a")]
