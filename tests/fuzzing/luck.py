"""Chance that a fuzzer steers: a generator whose every draw is read from its bytes."""

from __future__ import annotations

import random

__all__ = ["SteeredLuck"]


class SteeredLuck(random.Random):
    """`random.Random` whose bits come from ``data``; then the rest is quiet, so plays end.

    What was written for a seeded generator becomes a target of coverage-guided fuzzing: a byte changed is a
    choice changed, and the others stay.
    """

    def __new__(cls, data: bytes) -> SteeredLuck:
        return super().__new__(cls, 0)

    def __init__(self, data: bytes) -> None:
        super().__init__(0)
        self._data = data
        self._at = 0

    @property
    def is_spent(self) -> bool:
        """Whether all of ``data`` was read."""
        return self._at >= len(self._data)

    def getrandbits(self, k: int, /) -> int:
        size = (k + 7) // 8
        taken = self._data[self._at : self._at + size]
        self._at += size
        return int.from_bytes(taken, "little") & ((1 << k) - 1)

    def random(self) -> float:
        """Near 1 in the end: callers ask whether it is below the chance that something goes wrong."""
        return 1 - 2**-16 if self.is_spent else self.getrandbits(16) / 65_536
