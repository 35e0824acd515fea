"""Canary: trio's internals are still where `deterministic_trio` expects them."""

from __future__ import annotations

import threading

import trio
import trio.lowlevel

from tests.support.deterministic_trio import run_deterministically


def order(seed: int) -> list[int]:
    woken: list[int] = []

    async def wait(number: int) -> None:
        await trio.sleep(1)
        woken.append(number)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(wait, number)

    run_deterministically(main, seed=seed)
    return woken


def test_one_seed_gives_one_order() -> None:
    assert len({tuple(order(3)) for _ in range(5)}) == 1


def test_another_seed_gives_another_order() -> None:
    assert order(3) != order(4)


def test_trio_in_another_thread_makes_no_difference() -> None:
    is_over = threading.Event()

    async def bustle() -> None:
        async def turn() -> None:
            while not is_over.is_set():
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(turn)

    alone = order(3)
    thread = threading.Thread(target=trio.run, args=(bustle,))
    thread.start()
    try:
        assert all(order(3) == alone for _ in range(20))
    finally:
        is_over.set()
        thread.join()
