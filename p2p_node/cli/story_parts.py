"""What the events of a job in parts say; see `p2p_node.cli.story`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from p2p_node.cli.durations import duration_text

__all__ = ["PART_EVENTS", "Parts"]

PART_EVENTS = frozenset(
    {
        "planned",
        "resumed",
        "part-offered",
        "part-accepted",
        "part-remark",
        "part-verified",
        "part-dropped",
        "part-ended",
        "parts-progress",
    }
)


@dataclass(slots=True)
class Parts:
    """Feed it the events of a whole with `tell`."""

    count: int = 0
    done: int = 0
    peers: dict[str, None] = field(default_factory=dict)
    """Whose parts were verified, in the order in which they first were."""
    progress: str = ""
    """How far it is and how fast, in a few words."""
    _began: tuple[int, int] | None = None

    def tell(self, name: str, event: Mapping[str, Any], *, unit: str) -> tuple[str, ...] | None:
        """What to say about an event, if anything: label, text and perhaps a tone.

        Peers are given whole, for the caller to shorten; ``unit`` is the plural of what is output.
        """
        part, peer = event.get("part"), str(event.get("peer", ""))
        match name:
            case "planned":
                self.count = int(event.get("parts", 0))
                return "planned", f"{event.get('items')} {event.get('item')} in {self.count} parts"
            case "resumed":
                self.count, self.done = int(event.get("parts", 0)), int(event.get("done", 0))
                # What was done before says nothing about the pace from here on.
                self._began = None
                return "resumed", f"{self.done} of {self.count} parts are done already"
            case "part-offered":
                again = ", because whoever has it is late" if event.get("late") else ""
                again = again or (", once more" if event.get("again") else "")
                return "offered", f"part {part}, {event.get('items')}{again}"
            case "part-accepted":
                return "accepted", f"part {part} by {{peer}}"
            case "part-remark":
                return "output", f"{event.get('items')}: {event.get('remark')}"
            case "part-verified":
                self.done, of = int(event.get("done", 0)), event.get("of")
                self.peers[peer] = None
                return "verified", f"part {part} by {{peer}}: {self.done} of {of} are done", "good"
            case "part-dropped":
                return "dropped", f"part {part}: {{peer}} isn't needed any more"
            case "part-ended":
                return "failed", f"part {part}: {event.get('reason') or event.get('state')}", "bad"
            case "parts-progress":
                self.progress = self._pace(event, unit)
        return None

    def _pace(self, event: Mapping[str, Any], unit: str) -> str:
        at_ms, units, of = (int(event.get(name, 0)) for name in ("at_ms", "units", "units_max"))
        text = f"{units} of {of} {unit}, {event.get('running')} parts in work"
        if self._began is None:
            self._began = at_ms, units
            return text
        began_ms, began = self._began
        if units > began and at_ms > began_ms:
            rate = 1_000 * (units - began) / (at_ms - began_ms)
            text += f"; {rate:,.0f} a second, {duration_text(round(1_000 * (of - units) / rate))} left"
        return text
