"""What a job is at while no output comes: how far, how fast, and how long it will take.

Pure, like `p2p_node.cli.story`, which feeds it.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2p_node.cli.durations import duration_text

__all__ = ["Phase", "size_text"]

_BYTES_PHASES = {"fetching": "fetches", "collecting": "is asked for the output"}
_WORDS = {
    **_BYTES_PHASES,
    "loading": "loads the model",
    "running": "has begun",
}
_RATE_MS_MIN = 500


def size_text(size_bytes: float) -> str:
    """A number of bytes for people, e.g. ``12.5 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} GiB"


@dataclass(slots=True)
class Phase:
    """Feed it progress events with `hear`; `text` says where the job stands, empty if nothing is known."""

    name: str = ""
    done: int = 0
    total: int = 0
    _at_ms: int = 0
    _began_ms: int = 0
    _done_first: int = 0

    def hear(self, name: str, done: int, total: int, at_ms: int) -> bool:
        """Take an event; whether another phase has begun."""
        is_new = name != self.name or total != self.total
        if is_new:
            self._began_ms, self._done_first = at_ms, done
        self.name, self.done, self.total, self._at_ms = name, done, total, at_ms
        return is_new

    def end(self) -> None:
        """Output came, or the attempt is over."""
        self.name = ""

    def opening(self, peer: str) -> str:
        """What begins, e.g. ``B1xVQ3zr fetches 64.0 MiB``."""
        size = f" {size_text(self.total)}" if self.name in _BYTES_PHASES and self.total else ""
        return f"{peer} {_WORDS.get(self.name, self.name)}{size}"

    @property
    def text(self) -> str:
        """A bar and what it means, e.g. ``[#####-----] 32.0 MiB of 64.0 MiB, 8.0 MiB/s, 4.0 s left``."""
        if not self.name or not self.total:
            return self.name
        share = min(1.0, self.done / self.total)
        bar = "#" * round(20 * share)
        told = f"{self.name} [{bar:-<20}] {size_text(self.done)} of {size_text(self.total)}"
        took_ms, came = self._at_ms - self._began_ms, self.done - self._done_first
        if took_ms < _RATE_MS_MIN or came <= 0:
            return told
        left_ms = round((self.total - self.done) * took_ms / came)
        return f"{told}, {size_text(came * 1_000 / took_ms)}/s, {duration_text(left_ms)} left"
