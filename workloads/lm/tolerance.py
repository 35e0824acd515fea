"""A model's calibrated bounds for native runs: ``tolerance.json`` beside its files. Readable without torch.

``p2p-node model calibrate`` measures and writes it. It is no part of the model's digest: the terms of a
contract state the bounds, and whoever has others refuses.
"""

from __future__ import annotations

import json
from pathlib import Path

from protocols.messages import EQUAL_BITS, Tolerance
from workloads.errors import ModelRefused

__all__ = ["TOLERANCE_FILE", "load_tolerance"]

TOLERANCE_FILE = "tolerance.json"
_BYTES_MAX = 64 * 1024
_BOUND_MAX = 2**31


def load_tolerance(model_dir: Path) -> Tolerance:
    """The bounds beside a model; all 0 if it was never calibrated, and then it has no native profile.

    Raises:
        ModelRefused: the file breaks a rule.
    """
    path = model_dir / TOLERANCE_FILE
    if not path.is_file():
        return EQUAL_BITS
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(_BYTES_MAX))
        bounds = {name: content["bounds"][name] for name in Tolerance.__struct_fields__}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelRefused(f"{TOLERANCE_FILE} can't be read: {type(error).__name__}: {error}") from error
    for name, value in bounds.items():
        if type(value) is not int or not 0 <= value <= _BOUND_MAX:
            raise ModelRefused(
                f"{TOLERANCE_FILE}: {name} must be an integer from 0 to {_BOUND_MAX}, got {value!r}"
            )
    return Tolerance(**bounds)
