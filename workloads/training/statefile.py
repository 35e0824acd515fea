"""States of a training run as safetensors files, without torch: parameters, then both moments, by name.

All of a file but its numbers follows from shapes and steps. So a state has one name, and states can be
averaged number by number: the parameters of all are one stretch at the same place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

__all__ = ["MOMENTUM", "SECTIONS", "parameters_file", "state_header"]

SECTIONS = ("", "mean.", "variance.")
"""What a name begins with, for a parameter and its moments."""

MOMENTUM = ("momentum.",)
"""The same for the momentum of the steps between rounds, a file of its own."""

_FLOAT32_BYTES = 4
_ALIGNMENT = 8


def state_header(
    shapes: Mapping[str, tuple[int, ...]], steps: int, sections: tuple[str, ...] = SECTIONS
) -> bytes:
    """What precedes the numbers.

    Args:
        shapes: of the parameters by name, sorted.
        steps: that led to the state.
        sections: what the file holds for each parameter.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt", "steps": str(steps)}}
    start = 0
    for section in sections:
        for name, shape in shapes.items():
            stop = start + _FLOAT32_BYTES * math.prod(shape)
            entries[section + name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, stop]}
            start = stop
    return _framed(entries)


def parameters_file(state: bytes) -> bytes:
    """The safetensors file of a state's parameters alone, as other tools take it.

    Raises:
        ValueError: it is no state.
    """
    size = int.from_bytes(state[:8], "little")
    entries = json.loads(state[8 : 8 + size])
    own = {name: entry for name, entry in entries.items() if not name.startswith(SECTIONS[1:])}
    stop = max(entry["data_offsets"][1] for name, entry in own.items() if name != "__metadata__")
    return _framed(own) + state[8 + size : 8 + size + stop]


def _framed(entries: Mapping[str, object]) -> bytes:
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
