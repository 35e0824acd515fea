"""A workload without arithmetic: outputs and digests are hashes, so that a world runs thousands of jobs.

It has the shape of the real one: units follow from the input, a chunk's digest follows from model,
profile, input and all units up to its end, and recomputing re-derives each unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from p2p_node.sim.program import derive_unit, final_digest
from protocols.effects import Execute, Recompute
from protocols.units import FALSE_UNITS

__all__ = ["SimTask", "chunk_digest", "derive_unit", "recompute"]


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
    return final_digest(
        model=task.model,
        profile=task.profile,
        input=task.input,
        units=units,
        chunk=chunk,
        chunk_units=chunk_units,
        variant=variant,
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
    trace_ms: int = 80
    judge_ms: int = 5
