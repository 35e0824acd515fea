"""Canary: trio's internals are still where `deterministic_trio` expects them."""

from __future__ import annotations

import trio

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
