"""A job that has no output yet says what it is at, how fast, and for how long still."""

from __future__ import annotations

from typing import Any

from p2p_node.cli.phases import Phase, size_text
from p2p_node.cli.story import Story

MIB = 1024 * 1024


def progress(phase: str, done: int, total: int, at_ms: int) -> dict[str, Any]:
    return {
        "event": "progress",
        "peer": "x" * 8,
        "phase": phase,
        "done": done,
        "total": total,
        "at_ms": at_ms,
    }


def test_a_phase_is_announced_once() -> None:
    story = Story()
    first = story.hear(progress("fetching", 0, 64 * MIB, 0))
    assert first is not None
    assert (first.label, first.text) == ("fetching", "xxxxxxxx fetches 64.0 MiB")
    assert story.hear(progress("fetching", MIB, 64 * MIB, 100)) is None
    loading = story.hear(progress("loading", 0, 0, 200))
    assert loading is not None and loading.text == "xxxxxxxx loads the model"


def test_rate_and_time_left_come_of_what_was_seen() -> None:
    phase = Phase()
    phase.hear("fetching", 16 * MIB, 64 * MIB, 1_000)
    assert phase.text == "fetching [#####---------------] 16.0 MiB of 64.0 MiB"
    phase.hear("fetching", 32 * MIB, 64 * MIB, 3_000)
    assert phase.text == "fetching [##########----------] 32.0 MiB of 64.0 MiB, 8.0 MiB/s, 4.0 s left"


def test_output_ends_it() -> None:
    story = Story()
    story.hear(progress("running", 0, 0, 0))
    story.hear({"event": "output", "text": "and", "units_total": 1})
    assert story.phase.text == ""


def test_what_a_peer_says_acts_on_no_terminal() -> None:
    line = Story().hear(progress("\x1b[2J", 0, 0, 0))
    assert line is not None and "\x1b" not in str(line)


def test_sizes() -> None:
    assert [size_text(size) for size in (0, 1023, 1536, 5 * MIB, 3 * 1024 * MIB)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 MiB",
        "3.0 GiB",
    ]
