"""One simulated machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from p2p_node.core.node import NodeCore

__all__ = ["Peer"]


@dataclass(slots=True, eq=False)
class Peer:
    """One simulated machine: a core, its timers, its runs, its clock, and whether it cheats."""

    index: int
    core: NodeCore
    cheat: str = ""
    timers: dict[tuple[Any, ...], int] = field(default_factory=dict)
    runs: set[tuple[Any, ...]] = field(default_factory=set)
    store: dict[tuple[str, bytes], bytes] = field(default_factory=dict)
    penalties: list[tuple[bytes, int, str]] = field(default_factory=list)
    is_up: bool = True
    lives: int = 0
    """How often it was started."""
    slowness: int = 1
    """How many times as long as others its work takes."""
    stuck_until_ms: int = 0
    """Until then nothing that reaches it is dealt with: its process doesn't run."""
    skew_ms: int = 0
    drift_ppm: int = 0
    cut_short: list[bytes] = field(default_factory=list)
    """Jobs that its last restart ended."""
    offences: dict[bytes, int] = field(default_factory=dict)
    """Points of those that it isn't through with, by key; -1 for whom it doesn't hear any more."""
