"""A consistency model's ``config.json``; without torch.

The network itself is a program beside it, in ``program.bin``: a noisy map, how noisy it is, and a condition
go in, the map without noise comes out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads.errors import ModelRefused
from workloads.modelconfig import CONFIG_FILE, integer_field, read_fields

__all__ = [
    "MODEL_TYPE",
    "PROGRAM_FILE",
    "SIDE",
    "SMALL_FILES",
    "ConsistencyConfig",
    "load_config",
    "parse_config",
]

MODEL_TYPE = "consistency-program"
PROGRAM_FILE = "program.bin"
SMALL_FILES = (CONFIG_FILE, PROGRAM_FILE)
SIDE = 128
"""Of a map, in points."""
_SIGMA_MILLI_MAX = 1_000_000


@dataclass(frozen=True, slots=True)
class ConsistencyConfig:
    """What a model says of itself.

    Args:
        sigma_max_milli: noise that a first step starts from, in thousandths.
        conditions: how many conditions there are; they are numbered from 1.
        height_max_mm: of the highest point that a map can show.
        height_scale_mm: heights are the hyperbolic sine of the map's values, times this.
    """

    sigma_max_milli: int
    conditions: int
    height_max_mm: int
    height_scale_mm: int


def load_config(model_dir: Path) -> ConsistencyConfig:
    """Read a model directory's ``config.json``.

    Raises:
        ModelRefused: it can't be read, or as `parse_config`.
    """
    return parse_config(read_fields(model_dir))


def parse_config(fields: dict[str, Any]) -> ConsistencyConfig:
    """Check a configuration.

    Raises:
        ModelRefused: it is another kind of model's, or a field breaks a rule.
    """
    if fields.get("model_type") != MODEL_TYPE:
        raise ModelRefused(f"{CONFIG_FILE}: model_type={fields.get('model_type')!r} must be {MODEL_TYPE!r}")
    integer_field(fields, "side", SIDE, SIDE)
    return ConsistencyConfig(
        integer_field(fields, "sigma_max_milli", 1, _SIGMA_MILLI_MAX),
        integer_field(fields, "conditions", 1, 10_000),
        integer_field(fields, "height_max_mm", 1, 10_000_000),
        integer_field(fields, "height_scale_mm", 1, 10_000_000),
    )
