"""A map of heights as people look at it: lit from the north-west, coloured by height. Without torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workloads.consistency.config import ConsistencyConfig

__all__ = ["heights", "relief"]

_SLOPE = 0.7
_STOPS = np.array([0.0, 0.25, 0.5, 0.8, 1.0])
_COLOURS = np.array([[70, 110, 90], [120, 150, 90], [190, 170, 120], [150, 120, 100], [245, 245, 245]])


def heights(config: ConsistencyConfig, values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Metres of a map's values, of which -1 is the lowest and 1 the highest."""
    scale = config.height_scale_mm / 1_000
    # Written so that NaN, which an unchecked map may hold, is the lowest.
    share = np.where(values > -1, np.minimum((values.astype(np.float64) + 1) / 2, 1.0), 0.0)
    metres: NDArray[np.float64] = scale * np.sinh(share * np.arcsinh(config.height_max_mm / 1_000 / scale))
    return metres


def relief(metres: NDArray[np.float64]) -> bytes:
    """Colours of a map, 3 bytes a point, row by row."""
    down, right = np.gradient(metres)
    light = (1 + (right + down) * _SLOPE) / np.sqrt(1 + right**2 + down**2) / 1.6
    span = float(np.ptp(metres)) or 1.0
    share = (metres - metres.min()) / span
    colours = np.stack([np.interp(share, _STOPS, _COLOURS[:, channel]) for channel in range(3)], axis=-1)
    shaded: NDArray[np.uint8] = np.clip(colours * (0.35 + light[..., None]), 0, 255).astype(np.uint8)
    return shaded.tobytes()
