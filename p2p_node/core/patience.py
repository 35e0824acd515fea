"""How long an answer is worth waiting for before somebody else is asked, too."""

from __future__ import annotations

__all__ = ["Patience"]

FIRST_MS = 1_000
LEAST_MS = 250
MOST_MS = 2_000


class Patience:
    """Follows the answers that come; whoever takes longer than they do by far is slow.

    Source: V. Paxson et al., RFC 6298 (2011), section 2: the smoothed time and four times its variation.
    Every question has an id of its own, so late answers count, too, and it grows with a slow network.
    """

    def __init__(self) -> None:
        """Nobody has answered yet."""
        self._smoothed_ms = self._variation_ms = 0.0
        self.wait_ms = FIRST_MS

    def answered(self, after_ms: int) -> None:
        """An answer came after so long, dialling included."""
        if not self._smoothed_ms:
            self._smoothed_ms, self._variation_ms = float(after_ms), after_ms / 2
        else:
            self._variation_ms += (abs(after_ms - self._smoothed_ms) - self._variation_ms) / 4
            self._smoothed_ms += (after_ms - self._smoothed_ms) / 8
        self.wait_ms = min(MOST_MS, max(LEAST_MS, round(self._smoothed_ms + 4 * self._variation_ms)))
