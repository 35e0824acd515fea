"""A WAV file as the model hears it, and where to cut it: the client's side, without torch."""

from __future__ import annotations

import io
import wave

import numpy as np
from numpy.typing import NDArray

from workloads.errors import InputRefused
from workloads.speech.input import SAMPLE_RATE_HZ, WINDOW_SAMPLES_MAX

__all__ = ["cut", "read_wav"]

_CHANNELS_MAX = 32
_RATE_MIN_HZ, _RATE_MAX_HZ = 4_000, 384_000
_TAPS = 32
"""Zero crossings of the filter on each side."""
_BLOCK_SAMPLES = 1 << 14
_SEARCH_SAMPLES = 6 * SAMPLE_RATE_HZ
"""A cut is made where it is quietest within so much before a window is full."""
_QUIET_SAMPLES = SAMPLE_RATE_HZ // 5


def read_wav(data: bytes) -> NDArray[np.int16]:
    """The sound of a WAV file, mixed to one channel and brought to 16 kHz.

    Args:
        data: the file: PCM of 8, 16, 24 or 32 bits.

    Returns:
        (count,) int16.

    Raises:
        InputRefused: it isn't such a file, or holds no sound.
    """
    try:
        with wave.open(io.BytesIO(data)) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            frames = file.readframes(file.getnframes())
    except (wave.Error, EOFError, RuntimeError, OverflowError) as error:
        raise InputRefused(f"not a WAV file with PCM: {error or 'it ends too early'}") from error
    if not 1 <= channels <= _CHANNELS_MAX or not 1 <= width <= 4:
        raise InputRefused(
            f"WAV of {channels} channels of {width} bytes must have 1 to {_CHANNELS_MAX} of 1 to 4"
        )
    if not _RATE_MIN_HZ <= rate <= _RATE_MAX_HZ:
        raise InputRefused(f"WAV of {rate} Hz must have {_RATE_MIN_HZ} to {_RATE_MAX_HZ}")
    whole = len(frames) // (channels * width)
    if not whole:
        raise InputRefused("WAV holds no samples")
    sound = _floats(frames[: whole * channels * width], width).reshape(whole, channels).mean(axis=1)
    heard = sound if rate == SAMPLE_RATE_HZ else _resampled(sound, rate)
    rounded: NDArray[np.int16] = np.clip(np.rint(heard * 32_768.0), -32_768, 32_767).astype(np.int16)
    return rounded


def cut(sound: NDArray[np.int16]) -> tuple[int, ...]:
    """Where to end each window: at most 30 s long, cut where it is quiet rather than through a word.

    Args:
        sound: (count,) at 16 kHz.
    """
    ends: list[int] = []
    start = 0
    while len(sound) - start > WINDOW_SAMPLES_MAX:
        first = start + WINDOW_SAMPLES_MAX - _SEARCH_SAMPLES
        part = sound[first : start + WINDOW_SAMPLES_MAX].astype(np.float64)
        energy = np.convolve(part * part, np.ones(_QUIET_SAMPLES), mode="valid")
        start = first + int(energy.argmin()) + _QUIET_SAMPLES // 2
        ends.append(start)
    return (*ends, len(sound))


def _floats(frames: bytes, width: int) -> NDArray[np.float64]:
    if width == 1:
        # The only width without a sign.
        return (np.frombuffer(frames, np.uint8).astype(np.float64) - 128.0) / 128.0
    if width == 3:
        padded = np.zeros((len(frames) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(frames, np.uint8).reshape(-1, 3)
        return padded.reshape(-1).view("<i4").astype(np.float64) / 2.0**31
    return np.frombuffer(frames, f"<i{width}").astype(np.float64) / 2.0 ** (8 * width - 1)


def _resampled(sound: NDArray[np.float64], rate_hz: int) -> NDArray[np.float64]:
    """By a windowed sinc that passes what both rates can carry."""
    count = max(1, len(sound) * SAMPLE_RATE_HZ // rate_hz)
    step = rate_hz / SAMPLE_RATE_HZ
    stretch = max(1.0, step)
    reach = int(np.ceil(_TAPS * stretch))
    padded = np.pad(sound, (reach, reach + 1))
    taps = np.arange(-reach, reach + 2)
    result = np.empty(count)
    for first in range(0, count, _BLOCK_SAMPLES):
        places = np.arange(first, min(count, first + _BLOCK_SAMPLES)) * step
        whole = np.floor(places).astype(np.int64)
        distance = (taps[None, :] - (places - whole)[:, None]) / stretch
        kernel = np.sinc(distance) * np.cos(np.clip(distance / _TAPS, -1, 1) * (np.pi / 2)) ** 2
        kernel /= kernel.sum(axis=1, keepdims=True)
        near = np.minimum(whole[:, None] + reach + taps[None, :], len(padded) - 1)
        result[first : first + len(places)] = np.einsum("ij,ij->i", padded[near], kernel)
    return result
