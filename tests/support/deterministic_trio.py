"""Makes trio run the same program in the same order every time.

MockClock alone doesn't: when tasks become ready at the same moment, trio shuffles them with its own unseeded
generator, and visits them in the order of a set. Hypothesis fixes both in the same way. Both names are
trio's internals; the canary test fails when they move.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio
import trio.testing
from trio._core import _run

__all__ = ["run_deterministically"]

T = TypeVar("T")


class _OwnChance:
    """One thread's seeded generator; other threads, where trio may be running too, keep theirs."""

    def __init__(self, seed: int, others: random.Random) -> None:
        self._seeded = random.Random(seed)
        self._others = others
        self._thread = threading.get_ident()

    def _ours(self) -> random.Random:
        return self._seeded if threading.get_ident() == self._thread else self._others

    def random(self) -> float:
        return self._ours().random()

    def shuffle(self, batch: list[Any]) -> None:
        self._ours().shuffle(batch)


def run_deterministically(
    main: Callable[[], Awaitable[T]], *, seed: int = 0, autojump_threshold: float = 0.0
) -> T:
    """`trio.run` under an autojumping MockClock, with the scheduler's order fixed by ``seed``."""
    before = _run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    _run._r = _OwnChance(seed, _run._r)  # type: ignore[assignment]
    try:
        return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=autojump_threshold))
    finally:
        _run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r = before  # type: ignore[misc]
