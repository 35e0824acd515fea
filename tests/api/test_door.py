"""What strangers cost the API before they are sent away, and what passes to the server."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from p2p_node.api.door import (
    HEAD_BYTES_MAX,
    REFUSALS_BURST,
    REFUSALS_PER_SECOND,
    STRANGERS_MAX,
    Door,
    PacedListener,
)

SHOWN = b"POST /v1/jobs HTTP/1.1\r\nhost: x\r\nAuthorization:  Bearer secret \r\n\r\nand a body"


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


async def heard(door: Door, *said: bytes) -> tuple[bytes | None, bytes]:
    """What the door passes on, and what the caller is told."""
    here, there = trio.testing.memory_stream_pair()
    passed: list[bytes | None] = []
    async with trio.open_nursery() as nursery:

        async def look() -> None:
            stream: Any = there
            passed.append(await door.first_request(stream))
            await there.send_eof()

        nursery.start_soon(look)
        for part in said:
            await here.send_all(part)
            await trio.testing.wait_all_tasks_blocked()
        await here.send_eof()
        answer = b"".join([part async for part in here])
    return passed[0], answer


@pytest.mark.parametrize("cut", [1, 30, len(SHOWN) - 12, len(SHOWN)])
async def test_who_shows_the_token_is_passed_on_with_all_that_was_said(cut: int) -> None:
    passed, answer = await heard(Door("secret"), SHOWN[:cut], SHOWN[cut:])
    assert passed is not None
    assert SHOWN.startswith(passed)
    assert b"\r\n\r\n" in passed
    assert answer == b""


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        SHOWN.replace(b"secret", b"secre"),
        SHOWN.replace(b"secret", b"secrets"),
        SHOWN.replace(b"Bearer", b"Basic"),
        SHOWN.replace(b"\r\n\r\n", b"\r\nauthorization: Bearer secret\r\n\r\n"),
        b"GET / HTTP/1.1\r\n\r\nauthorization: Bearer secret\r\n\r\n",
        b"authorization: Bearer secret\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        bytes(2 * HEAD_BYTES_MAX),
        b"",
    ],
)
async def test_who_does_not_is_told_so_before_anything_is_parsed(said: bytes) -> None:
    passed, answer = await heard(Door("secret"), said)
    assert passed is None
    assert answer.startswith(b"HTTP/1.1 401 ")


async def test_after_many_refusals_the_next_caller_waits_a_little() -> None:
    clock = Clock()
    door = Door("secret", clock)
    for _ in range(REFUSALS_BURST):
        await heard(door, b"GET / HTTP/1.1\r\n\r\n")
    assert door.rest_s == 0
    await heard(door, b"GET / HTTP/1.1\r\n\r\n")
    assert door.rest_s == pytest.approx(1 / REFUSALS_PER_SECOND)
    assert (await heard(door, SHOWN))[0] is not None
    assert door.rest_s == pytest.approx(1 / REFUSALS_PER_SECOND), "the owner's own calls cost no rest"
    clock.now_s += 1 / REFUSALS_PER_SECOND
    assert door.rest_s == pytest.approx(0)


async def test_the_one_that_was_silent_longest_makes_room(autojump_clock: trio.testing.MockClock) -> None:
    door = Door("secret")
    ends: list[tuple[int, float]] = []

    async def wait(number: int) -> None:
        stream: Any = trio.testing.memory_stream_pair()[0]
        await door.first_request(stream)
        ends.append((number, trio.current_time()))

    async with trio.open_nursery() as nursery:
        for number in range(STRANGERS_MAX + 2):
            nursery.start_soon(wait, number)
            await trio.testing.wait_all_tasks_blocked()
        assert [number for number, _ in ends] == [0, 1]
    assert len(ends) == STRANGERS_MAX + 2, "nobody may be silent for ever"


async def test_while_the_door_rests_nobody_is_let_in(autojump_clock: trio.testing.MockClock) -> None:
    door = Door("secret")
    for _ in range(REFUSALS_BURST + REFUSALS_PER_SECOND):
        await heard(door, b"GET / HTTP/1.1\r\n\r\n")
    rest_s, began = door.rest_s, trio.current_time()
    asked: list[float] = []

    class Listener:
        async def accept(self) -> None:
            asked.append(trio.current_time() - began)

    listener: Any = Listener()
    await PacedListener(listener, door).accept()
    assert rest_s > 0
    assert asked == [pytest.approx(rest_s)]
