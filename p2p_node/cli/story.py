"""A job's events as a story: one line for each, and what they add up to.

Pure: it reads events as the API gives them and knows nothing of terminals. Text that peers chose
is made harmless here, since it goes to one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from p2p_node.cli.durations import duration_text
from p2p_node.cli.phases import Phase
from p2p_node.cli.story_parts import PART_EVENTS, Parts
from p2p_node.errors import ExitCode

__all__ = ["EXIT_CODES", "Line", "Story", "harmless", "plural", "short_peer"]

EXIT_CODES = {
    "verified": ExitCode.OK,
    "no_bids": ExitCode.NO_BIDS,
    "task_failed": ExitCode.TASK_FAILED,
    "verification_failed": ExitCode.VERIFICATION_FAILED,
    "timed_out": ExitCode.TIMED_OUT,
    "cancelled": ExitCode.TASK_FAILED,
}
"""Exit code of a command that waits for a job, by the job's final state."""

PEER_ID_SHOWN = 8


def short_peer(peer_id: str) -> str:
    """The end of a peer id: enough to tell peers apart."""
    return harmless(peer_id[-PEER_ID_SHOWN:])


def plural(unit: str) -> str:
    """Several of a unit: ``tokens``, ``entries``."""
    return f"{unit[:-1]}ies" if unit.endswith("y") else f"{unit}s"


def harmless(text: str) -> str:
    """``text`` without what could act on a terminal; line breaks stay."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def _with_peer(told: tuple[str, ...], peer: str) -> tuple[str, ...]:
    label, text, *tone = told
    return label, harmless(text.replace("{peer}", peer or "nobody")), *tone


@dataclass(frozen=True, slots=True)
class Line:
    """One line of progress."""

    after_ms: int
    """Since the job's first event."""
    label: str
    text: str
    tone: str = ""
    """``good``, ``bad`` or nothing."""

    def __str__(self) -> str:
        return f"{self.after_ms / 1_000:7.2f} s  {self.label:<11} {self.text}".rstrip()


@dataclass(slots=True)
class Story:
    """Feed it a job's events with `hear`."""

    text: str = ""
    """What has been streamed so far; verified only if the job ends so."""
    unit: str = "token"
    """What one unit of its output is called."""
    units: int = 0
    state: str = ""
    reason: str = ""
    executor: str = ""
    price_micros: int = 0
    asks_micros: dict[str, int] = field(default_factory=dict)
    """Price of each bid on the last offer, by peer."""
    awards: int = 0
    """Since the last offer."""
    verifiers: dict[str, str] = field(default_factory=dict)
    """Verdict of each drawn peer: ``agrees``, ``differs``, or ``drawn`` as long as it gave none."""
    paid_micros: dict[str, int] = field(default_factory=dict)
    """By (executor or verifier) peer."""
    milestones_ms: dict[str, int] = field(default_factory=dict)
    """When it was first awarded, gave its first output, was last committed, concluded, finished."""
    phase: Phase = field(default_factory=Phase)
    """What it is at while no output comes."""
    parts: Parts = field(default_factory=Parts)
    """Of a job that was split."""
    _first_ms: int | None = None
    _paid_in_lane: dict[str, int] = field(default_factory=dict)

    def hear(self, event: Mapping[str, Any]) -> Line | None:
        """Take an event; returns what to say about it, if anything."""
        at_ms = int(event.get("at_ms", 0))
        if self._first_ms is None:
            self._first_ms = at_ms
        after_ms = at_ms - self._first_ms
        name = str(event.get("event", ""))
        match name:
            case "awarded" | "output":
                self.milestones_ms.setdefault(name, after_ms)
            case "committed" | "concluded" | "finished":
                self.milestones_ms[name] = after_ms
        told = self._tell(name, event)
        return None if told is None else Line(after_ms, *told)

    def _tell(self, name: str, event: Mapping[str, Any]) -> tuple[str, ...] | None:
        peer = short_peer(str(event.get("peer", "")))
        match name:
            case "offered":
                self.asks_micros.clear()
                self.awards = 0
                where = "to whoever bids" if event.get("mode") == "auction" else "to the best posted price"
                return "offered", where
            case "bid":
                self.asks_micros[str(event.get("peer", ""))] = int(event.get("price_micros", 0))
                warm = "model loaded" if event.get("warm") else "model not loaded"
                eta = duration_text(int(event.get("eta_ms", 0)))
                device = harmless(str(event.get("device", "")))
                return (
                    "bid",
                    f"{peer} asks {event.get('price_micros')} per {self.unit}, ready in {eta} "
                    f"({device}, {warm})",
                )
            case "awarded":
                return self._tell_award(peer, event)
            case "accepted":
                return "accepted", f"{peer} computes on {harmless(str(event.get('device', '')))}"
            case "progress":
                phase, done, total = (event.get(key, 0) for key in ("phase", "done", "total"))
                is_new = self.phase.hear(
                    harmless(str(phase)), int(done), int(total), int(event.get("at_ms", 0))
                )
                return (self.phase.name, self.phase.opening(peer)) if is_new else None
            case "output":
                self.phase.end()
                self.text += str(event.get("text", ""))
                self.units = int(event.get("units_total", 0))
                remark = str(event.get("remark", ""))
                return ("output", harmless(remark)) if remark else None
            case "paid":
                self.phase.end()
                return self._tell_payment(str(event.get("peer", "")), event)
            case "finished":
                self.state, self.reason = str(event.get("state", "")), str(event.get("reason", ""))
                tone = "good" if self.state == "verified" else "bad"
                return "finished", f"{self.state}{f': {harmless(self.reason)}' if self.reason else ''}", tone
            case "no-bids-yet":
                return "no bids", f"in {event.get('offers')} rounds; offering again", "bad"
            case "attempt-failed":
                self.phase.end()
                detail = harmless(str(event.get("detail", "")))
                why = f"{event.get('outcome')}{f': {detail}' if detail else ''}"
                return "failed", f"{peer}: {why}", "bad"
            case "concluded":
                return None
        if name in PART_EVENTS:
            self.units = int(event.get("units", self.units))
            told = self.parts.tell(name, event, unit=plural(self.unit))
            return None if told is None else _with_peer(told, peer)
        return self._tell_verification(name, peer, event)

    def _tell_award(self, peer: str, event: Mapping[str, Any]) -> tuple[str, ...]:
        self.executor, self.price_micros = str(event.get("peer", "")), int(event.get("price_micros", 0))
        self.text = str(event.get("text", ""))
        self.units = int(event.get("resumes_at", 0))
        self.awards += 1
        self._paid_in_lane.clear()
        score, ask = int(event.get("score_micros", 0)), self.asks_micros.get(self.executor)
        if ask is None:
            why = "best posted price"
        else:
            rank = f"lowest of {len(self.asks_micros)} scores" if self.awards == 1 else "next lowest score"
            why = f"{rank}, {score} (asks {ask}; {score - ask} for its time and standing)"
        onward = f"; goes on from {self.unit} {self.units}" if self.units else ""
        return (
            "awarded",
            f"{peer} wins: {why}; is paid {self.price_micros} per {self.unit}; "
            f"{event.get('electorate')} peers may be drawn to verify{onward}",
            "good",
        )

    def _tell_payment(self, peer: str, event: Mapping[str, Any]) -> tuple[str, ...]:
        # Vouchers are cumulative within one contract.
        settled, before = int(event.get("settled_micros", 0)), self._paid_in_lane.get(peer, 0)
        self._paid_in_lane[peer] = settled
        self.paid_micros[peer] = self.paid_micros.get(peer, 0) + settled - before
        return "paid", f"{short_peer(peer)} has earned {self.paid_micros[peer]} micro-units"

    def _tell_verification(self, name: str, peer: str, event: Mapping[str, Any]) -> tuple[str, ...] | None:
        chunks = ", ".join(str(chunk) for chunk in event.get("chunks") or ()) if name != "committed" else ""
        match name:
            case "committed":
                final = ", the last" if event.get("final") else ""
                return (
                    "committed",
                    f"segment {event.get('segment')}{final}: {event.get('chunks')} chunks up to {self.unit} "
                    f"{event.get('units_total')}, root {str(event.get('root', ''))[:12]}",
                )
            case "verifier-drawn":
                self.verifiers.setdefault(str(event["peer"]), "drawn")
                return "drawn", f"{peer} recomputes chunks {chunks} of segment {event.get('segment')}"
            case "widened":
                return "widened", f"too few answered; drawing more (level {event.get('level')})"
            case "blind-verdict":
                return "sealed", f"{peer} has sealed its own result"
            case "verdict":
                agrees = bool(event.get("agrees"))
                self.verifiers[str(event["peer"])] = "agrees" if agrees else "differs"
                if agrees:
                    return "verdict", f"{peer} agrees", "good"
                return "verdict", f"{peer} differs at chunks {chunks}", "bad"
            case "disputed":
                return "disputed", f"chunks {chunks}: recomputing them here"
            case "dispute-opened":
                return "dispute", f"{peer} and the executor trace chunk {event.get('chunk')}"
            case "dispute-ended":
                loser = short_peer(str(event.get("loser", ""))) or "nobody"
                outcome = harmless(str(event.get("outcome", "")))
                return "dispute", f"{loser} loses after {event.get('rounds')} rounds: {outcome}"
            case "fraud-proved":
                return "proved", f"one operator convicts {peer}", "bad"
            case "segment-verdict":
                return self._tell_segment(event)
        return harmless(name), ""

    def _tell_segment(self, event: Mapping[str, Any]) -> tuple[str, ...]:
        verdict, executor = (
            harmless(str(event.get("verdict", ""))),
            short_peer(str(event.get("executor", ""))),
        )
        segment = f"segment {event.get('segment')}"
        if verdict == "verified":
            return "verified", segment, "good"
        chunk = event.get("chunk")
        at = f" at chunk {chunk}" if chunk is not None else ""
        return (
            "caught" if verdict == "fraud" else "unverified",
            f"{executor}: {verdict} in {segment}{at}",
            "bad",
        )
