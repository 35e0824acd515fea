"""From a window's tokens to what was said when; without torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

from workloads.speech.config import WhisperConfig
from workloads.speech.input import PADDING, SAMPLE_RATE_HZ, WINDOW_TOKENS, TranscribeInput

__all__ = ["Spoken", "as_json", "as_subtitles", "spoken"]

_STEP_MS = 20


class Spoken(NamedTuple):
    """Something said, and when, in milliseconds from the start of the recording."""

    start_ms: int
    end_ms: int
    text: str


def spoken(
    job: TranscribeInput, units: Sequence[int], config: WhisperConfig, decode: Callable[[Sequence[int]], str]
) -> list[Spoken]:
    """What is said in the windows that are there.

    Args:
        job: what was asked for.
        units: the output, whole windows of it.
        config: the model's.
        decode: its tokenizer's.
    """
    found: list[Spoken] = []
    times = config.first_time_token_id
    for number in range(len(units) // WINDOW_TOKENS):
        window = job.window(number)
        origin_ms = window.start * 1_000 // SAMPLE_RATE_HZ
        last_ms = window.stop * 1_000 // SAMPLE_RATE_HZ
        start_ms, words = origin_ms, list[int]()
        chunk = units[number * WINDOW_TOKENS : (number + 1) * WINDOW_TOKENS]
        for token in (*chunk, PADDING):
            if token < times:
                words.append(token)
                continue
            at_ms = last_ms if token == PADDING else min(last_ms, origin_ms + (token - times) * _STEP_MS)
            if words:
                text = decode(words).strip()
                found.append(Spoken(start_ms, max(start_ms, at_ms), text))
                words = []
            if token == PADDING:
                break
            start_ms = at_ms
    return found


def as_json(said: Sequence[Spoken]) -> str:
    """One object: the whole text, and its parts with their times."""
    parts = [{"start_ms": part.start_ms, "end_ms": part.end_ms, "text": part.text} for part in said]
    text = " ".join(part.text for part in said)
    return json.dumps({"text": text, "parts": parts}, ensure_ascii=False, indent=2) + "\n"


def as_subtitles(said: Sequence[Spoken]) -> str:
    """SubRip, as players read it."""
    blocks = (
        f"{number}\n{_clock(part.start_ms)} --> {_clock(part.end_ms)}\n{part.text}\n"
        for number, part in enumerate(said, start=1)
    )
    return "\n".join(blocks)


def _clock(at_ms: int) -> str:
    seconds, ms = divmod(at_ms, 1_000)
    return f"{seconds // 3_600:02}:{seconds // 60 % 60:02}:{seconds % 60:02},{ms:03}"
