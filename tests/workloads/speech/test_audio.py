from __future__ import annotations

import contextlib
import io
import json
import wave

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.workloads.speech.test_speech import CONFIG, TIMES
from workloads.errors import InputRefused
from workloads.speech.audio import cut, read_wav
from workloads.speech.input import PADDING, WINDOW_SAMPLES_MAX, WINDOW_TOKENS, TranscribeInput
from workloads.speech.transcript import Spoken, as_json, as_subtitles, spoken


def wav(samples: NDArray[np.float64], *, rate: int = 16_000, width: int = 2, channels: int = 1) -> bytes:
    scaled = np.clip(
        np.rint(samples * 2.0 ** (8 * width - 1)), -(2 ** (8 * width - 1)), 2 ** (8 * width - 1) - 1
    )
    whole = scaled.astype("<i8")
    if width == 1:
        whole = whole + 128
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(channels)
        written.setsampwidth(width)
        written.setframerate(rate)
        written.writeframes(whole.view(np.uint8).reshape(-1, 8)[:, :width].tobytes())
    return file.getvalue()


def tone(count: int, rate: int, hertz: float = 440.0) -> NDArray[np.float64]:
    return 0.5 * np.sin(np.arange(count) * (2 * np.pi * hertz / rate))


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_width_sounds_the_same(width: int) -> None:
    heard = read_wav(wav(tone(4_000, 16_000), width=width))
    assert np.abs(heard / 32_768 - tone(4_000, 16_000)).max() < 2.0 ** (1 - 8 * min(width, 2))


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_every_rate_sounds_the_same(rate: int) -> None:
    heard = read_wav(wav(tone(rate, rate), rate=rate))
    assert abs(len(heard) - 16_000) <= 1
    expected = tone(len(heard), 16_000)
    assert np.abs(heard / 32_768 - expected)[400:-400].max() < 2e-3


def test_what_16_khz_cant_carry_is_filtered_out() -> None:
    heard = read_wav(wav(tone(48_000, 48_000, hertz=11_000), rate=48_000))
    assert np.abs(heard[400:-400]).max() < 40


def test_channels_are_mixed() -> None:
    left, right = tone(2_000, 16_000), tone(2_000, 16_000, hertz=300)
    heard = read_wav(wav(np.stack([left, right], axis=1).reshape(-1), channels=2))
    assert np.abs(heard / 32_768 - (left + right) / 2).max() < 1e-4


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"", "not a WAV file"),
        (b"RIFF\x04\x00\x00\x00WAVE", "not a WAV file"),
        (b"ID3 an MP3", "not a WAV file"),
        (wav(np.zeros(0)), "holds no samples"),
        (wav(np.zeros(8), rate=1_000), "1000 Hz"),
    ],
)
def test_what_is_no_recording(data: bytes, rule: str) -> None:
    with pytest.raises(InputRefused, match=rule):
        read_wav(data)


@settings(max_examples=100)
@given(st.integers(0, 60), st.binary(max_size=4))
def test_junk_is_refused_or_read(place: int, junk: bytes) -> None:
    whole = wav(tone(40, 16_000))
    with contextlib.suppress(InputRefused):
        assert read_wav(whole[:place] + junk + whole[place + len(junk) :]).dtype == np.int16


def test_windows_end_where_it_is_quiet() -> None:
    sound = np.full(3 * WINDOW_SAMPLES_MAX - 5_000, 4_000, np.int16)
    sound[WINDOW_SAMPLES_MAX - 30_000 : WINDOW_SAMPLES_MAX - 20_000] = 0
    ends = cut(sound)
    assert WINDOW_SAMPLES_MAX - 30_000 < ends[0] < WINDOW_SAMPLES_MAX - 20_000
    TranscribeInput(sound.tobytes(), None, 0, ends).check()
    assert cut(sound[:9]) == (9,)


def test_what_was_said_when() -> None:
    job = TranscribeInput(bytes(2 * 64_000), None, 0, (32_000, 64_000))
    first = [TIMES, 1, 2, TIMES + 4, TIMES + 5, 3]
    second = [TIMES + 1, 4, TIMES + 9, TIMES + 9]
    units = [
        unit for tokens in (first, second) for unit in tokens + [PADDING] * (WINDOW_TOKENS - len(tokens))
    ]
    words = {1: " In", 2: " the", 3: " beginning", 4: " God"}
    said = spoken(job, units, CONFIG, lambda tokens: "".join(words[token] for token in tokens))
    assert said == [Spoken(0, 80, "In the"), Spoken(100, 2_000, "beginning"), Spoken(2_020, 2_180, "God")]
    assert json.loads(as_json(said))["text"] == "In the beginning God"
    assert as_subtitles(said).startswith("1\n00:00:00,000 --> 00:00:00,080\nIn the\n\n2\n")
