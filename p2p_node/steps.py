"""How long each step of a start took, for the log and for whoever wants starts to be quicker."""

from __future__ import annotations

import os
import time

import psutil

__all__ = ["Steps"]


class Steps:
    """A stopwatch with names for its laps; the first lap begins with the process."""

    def __init__(self) -> None:
        self.ms: dict[str, int] = {}
        """Milliseconds that each step took, in order."""
        self._last_s = time.monotonic()
        # The process began before any of our code ran: its interpreter, and our imports.
        before_s = max(0.0, time.time() - psutil.Process(os.getpid()).create_time())
        self.ms["imports"] = round(1_000 * before_s)

    def end(self, name: str) -> None:
        """A step is over."""
        now_s = time.monotonic()
        self.ms[name] = round(1_000 * (now_s - self._last_s))
        self._last_s = now_s
