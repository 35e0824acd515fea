"""The spectrogram that Whisper hears, the same bits everywhere unless it is native.

Windows of 25 ms, one every 10 ms; their spectra come from one exact product with sines and cosines, and the
filter bank is the model's own. Source: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak
Supervision", section 2.2.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from workloads import exact
from workloads.speech.input import WINDOW_SAMPLES_MAX

__all__ = ["FRAMES", "SPECTRUM", "log_mel"]

_WIDTH = 400
_HOP = 160
SPECTRUM = _WIDTH // 2 + 1
"""Frequencies of a frame's spectrum."""
FRAMES = WINDOW_SAMPLES_MAX // _HOP
"""Of a window."""
_POWER_MIN = 1e-10
_RANGE = 8.0
_PER_DECADE = 1.0 / math.log(10.0)


def log_mel(samples: Tensor, filters: Tensor, *, is_native: bool = False) -> Tensor:
    """The spectrogram of one window, padded with silence to 30 s.

    Args:
        samples: (count,) int16, 30 s of 16 kHz at most.
        filters: (bins, `SPECTRUM`), the model's.
        is_native: in torch's own float64 kernels; its bits may differ from machine to machine.

    Returns:
        (bins, `FRAMES`) float64: decades, shifted and scaled as the model expects.

    Raises:
        NumericsRefused: the filters hold NaN or Inf.
    """
    sound = torch.zeros(WINDOW_SAMPLES_MAX, dtype=torch.float64)
    sound[: len(samples)] = samples.to(torch.float64) / 32_768.0
    mirrored = pad(sound.view(1, 1, -1), (_WIDTH // 2, _WIDTH // 2), mode="reflect").view(-1)
    frames = mirrored.unfold(0, _WIDTH, _HOP)[:FRAMES]
    waves = frames @ _waves() if is_native else exact.matmul(frames, _waves())
    real, imaginary = waves[:, :SPECTRUM], waves[:, SPECTRUM:]
    # Two roundings, so no fused operator: squares, then a sum.
    squares = imaginary * imaginary
    squares += real * real
    power = filters @ squares.T if is_native else _filtered(filters, squares)
    power.clamp_(min=_POWER_MIN)
    decades = (power.log() if is_native else exact.log(power)) * _PER_DECADE
    decades = torch.maximum(decades, decades.amax() - _RANGE)
    decades += 4.0
    decades *= 0.25
    return decades


def _filtered(filters: Tensor, squares: Tensor) -> Tensor:
    # One rounding would drown what is 60 dB below a frame's loudest; two of them reach further than is heard.
    loud = exact.quantise_along(squares)
    power = exact.matmul(filters, loud.T)
    power += exact.matmul(filters, (squares - loud).T)
    return power


@lru_cache(maxsize=1)
def _waves() -> Tensor:
    """(`_WIDTH`, 2 x `SPECTRUM`): Hann's window times cosines, then times sines."""
    places, frequencies = torch.arange(_WIDTH), torch.arange(SPECTRUM)
    # Whole turns are taken off as integers.
    turns = (places[:, None] * frequencies % _WIDTH).to(torch.float64)
    angles = turns * (2.0 * math.pi / _WIDTH)
    window = 0.5 - 0.5 * exact.cos(places.to(torch.float64) * (2.0 * math.pi / _WIDTH))
    return torch.cat([exact.cos(angles), exact.sin(angles)], dim=1) * window[:, None]
