"""A workload without arithmetic: outputs and digests are hashes, so that a world runs thousands of jobs.

It has the shape of the real one: units follow from the input, a chunk's digest follows from model,
profile, input and all units up to its end, and recomputing re-derives each unit.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from protocols.digest import tagged
from protocols.effects import Execute, Recompute
from protocols.units import FALSE_UNITS

__all__ = ["SimTask", "chunk_digest", "derive_unit", "recompute"]


@lru_cache(maxsize=65_536)
def derive_unit(input: bytes, index: int) -> int:
    """The only right output unit at ``index``."""
    return int.from_bytes(tagged("p2p-node/sim-unit/1", input, index.to_bytes(4, "little"))[:2], "little")


def chunk_digest(
    task: Execute | Recompute, units: Sequence[int], chunk: int, *, chunk_units: int, variant: bytes = b""
) -> bytes:
    """The digest of one chunk, given all units up to its end.

    Args:
        task: names model, profile and input.
        units: output units, at least to the chunk's end.
        chunk: its number.
        chunk_units: units of a whole chunk.
        variant: what a dishonest executor computed instead.
    """
    first, end = chunk * chunk_units, min(len(units), (chunk + 1) * chunk_units)
    derived = [derive_unit(task.input, index) for index in range(first, end)]
    context = struct.pack(f"<{end}I", *units[:end])
    return tagged(
        "p2p-node/sim-chunk/1",
        task.model,
        task.profile.encode(),
        task.input,
        context,
        struct.pack(f"<{len(derived)}I", *derived),
        variant,
    )


def recompute(task: Recompute, *, chunk_units: int, variant: bytes = b"") -> tuple[tuple[int, bytes], ...]:
    """(chunk, digest) for every chunk of a recomputation; `FALSE_UNITS` where a claimed unit is false."""
    results = []
    for chunk in task.chunks:
        first = chunk * chunk_units
        claimed = task.units[first : first + chunk_units]
        if all(unit == derive_unit(task.input, first + offset) for offset, unit in enumerate(claimed)):
            digest = chunk_digest(task, task.units, chunk, chunk_units=chunk_units, variant=variant)
        else:
            digest = FALSE_UNITS
        results.append((chunk, digest))
    return tuple(results)


@dataclass(frozen=True, slots=True)
class SimTask:
    """How long simulated work takes, in milliseconds of network time."""

    unit_ms: int = 5
    recompute_ms: int = 40
