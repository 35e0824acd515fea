"""A scope for the last words of a task that has been cancelled."""

from __future__ import annotations

import trio

__all__ = ["last_words"]


def last_words(seconds: float) -> trio.CancelScope:
    """A scope that outer cancellation can't enter, and that ends after ``seconds`` all the same."""
    scope = trio.move_on_after(seconds)
    scope.shield = True
    return scope
