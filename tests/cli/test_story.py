"""What a job's events are told as."""

from __future__ import annotations

from typing import Any

import pytest

from p2p_node.cli.durations import DURATION, duration_text
from p2p_node.cli.story import EXIT_CODES, Story, harmless
from p2p_node.core.request import FINAL_STATES
from p2p_node.errors import ExitCode

EXECUTOR, SECOND, VERIFIER = "12D3KooWexecutor1", "12D3KooWexecutor2", "12D3KooWverifier1"


def told(story: Story, event: str, at_ms: int = 1_000, **details: Any) -> str:
    line = story.hear({"at_ms": at_ms, "event": event, **details})
    return "" if line is None else f"{line.label}: {line.text}"


def award(peer: str = EXECUTOR, **details: Any) -> dict[str, Any]:
    defaults = {"price_micros": 110, "score_micros": 120, "electorate": 3, "resumes_at": 0, "text": ""}
    return {"peer": peer, **defaults, **details}


def test_every_final_state_has_its_exit_code() -> None:
    assert set(EXIT_CODES) == {state.value for state in FINAL_STATES}


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("verified", 0),
        ("no_bids", 3),
        ("task_failed", 4),
        ("cancelled", 4),
        ("verification_failed", 5),
        ("timed_out", 6),
    ],
)
def test_exit_codes(state: str, code: int) -> None:
    assert EXIT_CODES[state] == ExitCode(code) == code


def test_who_won_and_why() -> None:
    story = Story()
    told(story, "offered", mode="auction")
    for peer, price in ((EXECUTOR, 100), (SECOND, 120)):
        bid = told(story, "bid", peer=peer, price_micros=price, eta_ms=2_500, device="cpu", warm=True)
        assert bid == f"bid: {peer[-8:]} asks {price} per token, ready in 2.5 s (cpu, model loaded)"
    assert told(story, "awarded", **award()) == (
        "awarded: xecutor1 wins: lowest of 2 scores, 120 (asks 100; 20 for its time and standing); "
        "is paid 110 per token; 3 peers may be drawn to verify"
    )
    told(story, "attempt-failed", peer=EXECUTOR, outcome="fraud", detail="")
    assert "next lowest score, 130 (asks 120; 10 for" in told(
        story, "awarded", **award(SECOND, score_micros=130)
    )
    assert story.executor == SECOND


def test_a_posted_job_has_no_bids() -> None:
    story = Story()
    told(story, "offered", mode="posted")
    assert "wins: best posted price" in told(story, "awarded", **award())


def test_text_starts_over_with_another_executor() -> None:
    story = Story()
    told(story, "awarded", **award())
    assert told(story, "output", text="In the ", units_total=2) == ""
    told(story, "output", text="beginning", units_total=3)
    assert (story.text, story.units) == ("In the beginning", 3)
    line = told(story, "awarded", **award(SECOND, resumes_at=2, text="In the "))
    assert line.endswith("goes on from token 2")
    assert (story.text, story.units) == ("In the ", 2)
    told(story, "output", text="end", units_total=3)
    assert story.text == "In the end"


def test_payments_add_up_over_contracts() -> None:
    story = Story()
    told(story, "awarded", **award())
    told(story, "paid", peer=VERIFIER, settled_micros=20)
    told(story, "paid", peer=VERIFIER, settled_micros=40)
    told(story, "awarded", **award(SECOND))
    # A new contract's vouchers begin at nothing, also where they reach a higher sum at once.
    assert (
        told(story, "paid", peer=VERIFIER, settled_micros=60) == "paid: erifier1 has earned 100 micro-units"
    )
    assert story.paid_micros == {VERIFIER: 100}


def test_verification() -> None:
    story = Story()
    assert told(story, "verifier-drawn", peer=VERIFIER, chunks=[0, 2], segment=1) == (
        "drawn: erifier1 recomputes chunks 0, 2 of segment 1"
    )
    assert story.verifiers == {VERIFIER: "drawn"}
    assert told(story, "verdict", peer=VERIFIER, agrees=False, chunks=[2]) == (
        "verdict: erifier1 differs at chunks 2"
    )
    assert story.verifiers == {VERIFIER: "differs"}
    assert told(story, "disputed", chunks=[2]).startswith("disputed: chunks 2")
    caught = told(story, "segment-verdict", segment=1, verdict="fraud", chunk=2, executor=EXECUTOR)
    assert caught == "caught: xecutor1: fraud in segment 1 at chunk 2"
    silent = told(
        story, "segment-verdict", segment=1, verdict="no verifier answered", chunk=None, executor=EXECUTOR
    )
    assert silent == "unverified: xecutor1: no verifier answered in segment 1"
    assert told(story, "segment-verdict", segment=1, verdict="verified", chunk=None, executor=EXECUTOR) == (
        "verified: segment 1"
    )


def test_an_event_from_a_newer_node_is_named() -> None:
    assert told(Story(), "teleported", peer=EXECUTOR, chunks=None) == "teleported: "


def test_lines_carry_the_time_since_the_first_event() -> None:
    story = Story()
    told(story, "offered", at_ms=5_000)
    line = story.hear({"at_ms": 6_250, "event": "finished", "state": "verified", "reason": ""})
    assert str(line) == "   1.25 s  finished    verified"
    assert story.milestones_ms == {"finished": 1_250}


def test_peers_words_cannot_act_on_a_terminal() -> None:
    story = Story()
    evil = "cpu\x1b[2J\x07\r"
    lines = [
        told(story, "bid", peer=EXECUTOR, price_micros=1, eta_ms=1, device=evil, warm=False),
        told(story, "accepted", peer=EXECUTOR, device=evil),
        told(story, "attempt-failed", peer=EXECUTOR, outcome="refused", detail=evil),
        told(story, "finished", state="task_failed", reason=evil),
        told(story, evil),
    ]
    for line in lines:
        assert line.isprintable()
        assert "cpu" in line
    assert harmless("a\nb\x1b[0m") == "a\nb\ufffd[0m"


@pytest.mark.parametrize(
    ("text", "duration_ms"), [("80ms", 80), ("30s", 30_000), ("5m", 300_000), ("1h", 3_600_000), ("0s", 0)]
)
def test_durations_are_read(text: str, duration_ms: int) -> None:
    assert DURATION.convert(text, None, None) == duration_ms


@pytest.mark.parametrize("text", ["", "30", "s", "-1s", "1.5s", "1 s", "1d", "٣s", "9" * 10 + "s"])
def test_other_durations_are_refused(text: str) -> None:
    import click

    with pytest.raises(click.BadParameter, match="must be a whole number and one of ms, s, m, h"):
        DURATION.convert(text, None, None)


@pytest.mark.parametrize(
    ("duration_ms", "text"),
    [
        (0, "0 ms"),
        (999, "999 ms"),
        (1_000, "1.0 s"),
        (99_999, "100.0 s"),
        (100_000, "1 min"),
        (7_200_000, "2 h"),
    ],
)
def test_durations_are_told(duration_ms: int, text: str) -> None:
    assert duration_text(duration_ms) == text
