"""Bounds of a program and of one operator: everything is refused before anything is allocated for it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "ATTRIBUTES_MAX",
    "ATTRIBUTE_BYTES_MAX",
    "ATTRIBUTE_INTEGERS_MAX",
    "DIMENSION_MAX",
    "INPUTS_MAX",
    "NAME_CHARACTERS_MAX",
    "PROGRAM_BYTES_MAX",
    "RANK_MAX",
    "STEPS_MAX",
    "STEP_INPUTS_MAX",
    "Limits",
]

PROGRAM_BYTES_MAX = 8 * 1024 * 1024
"""One encoded program. A training chunk of twenty steps of a four-layer model is under 1 MiB."""

INPUTS_MAX = 16_384
STEPS_MAX = 131_072
STEP_INPUTS_MAX = 4_096
"""Inputs of one step; only digests and concatenations have more than four."""

NAME_CHARACTERS_MAX = 256
RANK_MAX = 8
DIMENSION_MAX = 2**31
ATTRIBUTES_MAX = 16
ATTRIBUTE_BYTES_MAX = 4_096
ATTRIBUTE_INTEGERS_MAX = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """What one step may cost whoever runs it.

    Args:
        value_bytes_max: largest value, input or output, as float64.
        work_max: multiply-adds, or elements touched, of one operator.
    """

    value_bytes_max: int = 4 * 1024**3
    work_max: int = 2**42
