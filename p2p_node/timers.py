"""When a node's timers are due, on a wall clock that somebody may set.

A timer names a moment of the wall clock, since that is what peers agree on. Should the clock be set back, it
fires when the time that was left has passed all the same; should it jump ahead, or the machine have slept, it
fires at once.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any

import trio

__all__ = ["Timers"]

Key = tuple[Any, ...]

LOOK_S = 10.0
"""How often the wall clock is looked at: no timer learns by itself that it jumped."""


class Timers:
    """Timers by key; setting one again moves it."""

    def __init__(self, clock: Callable[[], int]) -> None:
        """No timers.

        Args:
            clock: milliseconds since the epoch.
        """
        self._clock = clock
        self._set: dict[Key, int] = {}
        self._numbers = itertools.count()
        # The same timers twice: by the wall clock, and by the time that passes whatever it shows.
        self._by_wall: list[tuple[int, int, Key]] = []
        self._by_time: list[tuple[float, int, Key]] = []

    def set(self, key: Key, at_ms: int) -> bool:
        """Set a timer; True if none is due before it."""
        number = self._set[key] = next(self._numbers)
        due = trio.current_time() + (at_ms - self._clock()) / 1_000
        is_first = not self._by_time or due < self._by_time[0][0]
        heapq.heappush(self._by_wall, (at_ms, number, key))
        heapq.heappush(self._by_time, (due, number, key))
        return is_first

    def pop_due(self) -> Key | None:
        """Take one timer that is due; None if there is none."""
        return self._pop(self._by_wall, self._clock()) or self._pop(self._by_time, trio.current_time())

    def _pop(self, heap: list[Any], now: float) -> Key | None:
        while heap and (heap[0][0] <= now or self._is_gone(heap[0])):
            _, number, key = heapq.heappop(heap)
            if self._set.get(key) == number:
                del self._set[key]
                return key  # type: ignore[no-any-return]
        return None

    def _is_gone(self, entry: tuple[float, int, Key]) -> bool:
        return self._set.get(entry[2]) != entry[1]

    def wait_s(self) -> float:
        """How long to wait before looking again."""
        if not self._by_time:
            return LOOK_S
        return min(LOOK_S, max(0.0, self._by_time[0][0] - trio.current_time()))
