"""A workload whose chunks are derived one by one, each from the job's input and the units before it.

A class of this kind says how one chunk is derived; running the job, going on after a prefix, digests, and the
check by doing a chunk again all follow from that.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from protocols.digest import tagged
from protocols.units import FALSE_UNITS, chunk_count
from workloads.errors import InputRefused, NumericsRefused
from workloads.workload import Outcome, chunk_range

__all__ = ["Chunk", "Chunkwise", "chunk_digest"]

JobT = TypeVar("JobT")


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk of output.

    Args:
        units: 32-bit words.
        inner: values that went into them and can't be had from them.
        states: float tensors of such values, for profiles in native kernels: nobody must have them from the
            units, not even nearly.
    """

    units: list[int]
    inner: bytes
    states: tuple[Any, ...] = ()


class Chunkwise(ABC, Generic[JobT]):
    """See the module.

    Args:
        name: of the workload.
        model: the model's digest.
        profile: numerics profile.
        chunk_units: output units of a whole chunk.
    """

    def __init__(self, name: str, model: bytes, profile: str, chunk_units: int) -> None:
        self.name = name
        self.model = model
        self.profile = profile
        self.chunk_units = chunk_units

    @abstractmethod
    def decode(self, input: bytes) -> JobT:
        """The job that an input asks for.

        Raises:
            InputRefused: the input breaks a rule.
        """

    @abstractmethod
    def units_total(self, job: JobT) -> int:
        """Output units of a job."""

    @abstractmethod
    def derive(self, job: JobT, before: Sequence[int], chunk: int) -> Chunk:
        """A chunk, by doing its work.

        Args:
            job: what is asked for.
            before: the output units before the chunk, at least.
            chunk: its number.
        """

    def produce(self, job: JobT, before: Sequence[int], chunk: int) -> Chunk:
        """A chunk as this peer's executor makes it; hostile variants make it otherwise."""
        return self.derive(job, before, chunk)

    def generate(
        self,
        input: bytes,
        prefix: Sequence[int],
        on_units: Callable[[int, list[int]], None],
        on_chunk: Callable[[int, bytes], None],
        should_stop: Callable[[], bool],
    ) -> Outcome:
        """See `workloads.workload.Workload`."""
        job = self.decode(input)
        total = self.units_total(job)
        if len(prefix) > total or (len(prefix) % self.chunk_units and len(prefix) != total):
            raise InputRefused(
                f"prefix of {len(prefix)} units must be whole chunks of {self.chunk_units}, {total} at most"
            )
        units = list(prefix)
        for number in range(chunk_count(len(prefix), self.chunk_units), chunk_count(total, self.chunk_units)):
            if should_stop():
                return Outcome(len(units), "cancelled")
            chunk = self.produce(job, units, number)
            on_units(len(units), list(chunk.units))
            units += chunk.units
            on_chunk(number, self.digest(number, chunk))
        return Outcome(total, "length")

    def recompute(self, input: bytes, units: Sequence[int], chunks: Iterable[int]) -> dict[int, bytes]:
        """See `workloads.workload.Workload`: each chunk asked for is done again, and no other."""
        job = self.decode(input)
        ranges = {chunk: chunk_range(chunk, len(units), self.chunk_units) for chunk in sorted(set(chunks))}
        return {
            number: self.check(job, units, number, list(units[place.start : place.stop]))
            for number, place in ranges.items()
        }

    def check(self, job: JobT, units: Sequence[int], number: int, claimed: list[int]) -> bytes:
        """The digest that a chunk should have, or `FALSE_UNITS` if it should have other units."""
        try:
            chunk = self.derive(job, units, number)
        except NumericsRefused:
            # From these very units an honest executor would have been refused too, and committed to nothing.
            return FALSE_UNITS
        return self.digest(number, chunk) if chunk.units == claimed else FALSE_UNITS

    def digest(self, number: int, chunk: Chunk) -> bytes:
        """The digest of a chunk."""
        return chunk_digest(
            self.name,
            model=self.model,
            profile=self.profile,
            number=number,
            units=chunk.units,
            inner=chunk.inner,
        )


def chunk_digest(
    workload: str, *, model: bytes, profile: str, number: int, units: Sequence[int], inner: bytes
) -> bytes:
    """What stands for a chunk: who computed what, its units, and what lies behind them.

    Args:
        workload: its name.
        model: its digest.
        profile: numerics profile.
        number: of the chunk.
        units: 32-bit words.
        inner: as in `Chunk`.
    """
    return tagged(
        "p2p-node/chunk/1",
        workload.encode(),
        model,
        profile.encode(),
        struct.pack("<Q", number),
        struct.pack(f"<{len(units)}I", *units),
        inner,
    )
