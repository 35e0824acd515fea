"""Running ``training.run``: a segment is some optimiser steps, and its units are the state after them.

A chunk is a slice of that state. Its digest covers losses and gradients of the segment too, in float64, which
the state gives away only rounded and mixed. The cheap check takes the claimed state before a segment as it is
and replays that one segment; so segments can be checked in any order, and a run goes on after any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from protocols.codec import encode
from protocols.digest import tagged
from protocols.effects import Case
from protocols.units import units_digest
from workloads.chunkwise import Chunk, Chunkwise
from workloads.errors import InputRefused, ModelRefused
from workloads.program import Program, Value, value_digest
from workloads.program.prepared import Prepared
from workloads.program.referee import Rebuilt
from workloads.training.hostile import program_of_cheat
from workloads.training.input import CHUNK_UNITS, TrainingInput, decode_input
from workloads.training.kind import NAME, TRAINING, model_digest
from workloads.training.run import segment_inputs, write_segment
from workloads.workload import EXACT_PROFILES, chunk_range

__all__ = ["TrainingRun", "rebuild"]


class _Trained(NamedTuple):
    """A segment's results: the state after it, and what else its chunks' digests cover."""

    units: list[int]
    inner: bytes


class TrainingRun(Chunkwise[TrainingInput]):
    """Training in one exact profile.

    Args:
        profile: ``exact14`` or ``exact21``.
        variant: how to cheat while generating, or None.
        expected_digest: the digest that a job names, if any.

    Raises:
        InputRefused: the profile or the variant is unknown.
        ModelRefused: the job names another model.
    """

    def __init__(
        self, profile: str, variant: str | None = None, *, expected_digest: bytes | None = None
    ) -> None:
        super().__init__(NAME, model_digest(), profile, CHUNK_UNITS)
        if expected_digest not in (None, self.model):
            raise ModelRefused(f"model digest {self.model.hex()} must be {expected_digest!r}")
        if profile not in EXACT_PROFILES:
            raise InputRefused(f"profile {profile!r} must be one of {EXACT_PROFILES}")
        if variant not in (None, *TRAINING.variants):
            raise InputRefused(f"variant {variant!r} must be one of {TRAINING.variants}")
        self._variant = variant
        # All chunks of a segment come from one replay of it.
        self._known: tuple[bytes, _Trained] | None = None

    def decode(self, input: bytes) -> TrainingInput:
        """See `Chunkwise`."""
        return decode_input(input)

    def units_total(self, job: TrainingInput) -> int:
        """See `Chunkwise`."""
        return job.units_total

    def derive(self, job: TrainingInput, before: Sequence[int], chunk: int) -> Chunk:
        """See `Chunkwise`; of what came before, a chunk needs the state before its segment."""
        return self._chunk(job, before, chunk, None)

    def produce(self, job: TrainingInput, before: Sequence[int], chunk: int) -> Chunk:
        """See `Chunkwise`; cheaters leave out steps or take longer ones."""
        return self._chunk(job, before, chunk, self._variant)

    def chunk_program(self, input: bytes, units: Sequence[int], chunk: int) -> tuple[Program, list[Tensor]]:
        """See `workloads.program.disputes.Disputable`."""
        return _chunk_program(decode_input(input), self.profile, units, chunk)

    def ran_program(self, input: bytes, units: Sequence[int], chunk: int) -> Program | None:
        """See `workloads.program.disputes.Cheating`."""
        if self._variant is None:
            return None
        return program_of_cheat(self._variant, self.chunk_program(input, units, chunk)[0])

    def context(self, input: bytes) -> bytes:
        """See `workloads.program.disputes.Disputable`: there is no model to know."""
        return b""

    def _chunk(self, job: TrainingInput, before: Sequence[int], chunk: int, variant: str | None) -> Chunk:
        segment, part = divmod(chunk, job.segment_chunks)
        trained = self._segment(job, before, segment, variant)
        return Chunk(trained.units[part * CHUNK_UNITS : (part + 1) * CHUNK_UNITS], trained.inner)

    def _segment(
        self, job: TrainingInput, before: Sequence[int], segment: int, variant: str | None
    ) -> _Trained:
        inputs = segment_inputs(job, before, segment)
        key = tagged(
            "p2p-node/training-segment/1",
            encode(job),
            str((segment, variant)).encode(),
            *map(value_digest, inputs),
        )
        if self._known is None or self._known[0] != key:
            self._known = key, _train(*self._written(job, segment, variant), inputs)
        return self._known[1]

    def _written(
        self, job: TrainingInput, segment: int, variant: str | None
    ) -> tuple[Program, tuple[Value, ...]]:
        """What is run for a segment, and which of its values are wanted."""
        written = write_segment(job, segment, self.profile)
        wanted = (written.words, written.losses, written.gradients)
        if variant is None:
            return written.builder.build(), wanted
        program, _ = _chunk_program(job, self.profile, [0] * job.units_total, segment * job.segment_chunks)
        return program_of_cheat(variant, program), wanted


def rebuild(case: Case) -> Rebuilt:
    """The program of a case's chunk and the digests of its inputs, for `workloads.program.disputes`.

    Raises:
        WorkloadRefused: the job has no such program.
    """
    if case.profile not in EXACT_PROFILES:
        raise InputRefused(f"profile {case.profile!r} has no programs, must be one of {EXACT_PROFILES}")
    if case.model != model_digest():
        raise ModelRefused(f"model {case.model.hex()} must be {model_digest().hex()}")
    program, values = _chunk_program(decode_input(case.input), case.profile, case.units, case.chunk)
    return Rebuilt(program, tuple(map(value_digest, values)))


def _chunk_program(
    job: TrainingInput, profile: str, units: Sequence[int], chunk: int
) -> tuple[Program, list[Tensor]]:
    place = chunk_range(chunk, min(len(units), job.units_total), CHUNK_UNITS)
    segment, part = divmod(chunk, job.segment_chunks)
    written = write_segment(job, segment, profile)
    builder = written.builder
    start = part * CHUNK_UNITS
    words = builder.apply("slice", written.words, dim=0, start=start, stop=start + CHUNK_UNITS, stride=1)
    digest = builder.apply(
        "chunk_digest",
        words,
        written.losses,
        written.gradients,
        workload=NAME,
        model=model_digest(),
        profile=profile,
        number=chunk,
    )
    builder.apply("claim", digest, words, claimed=units_digest(units[place.start : place.stop]))
    return builder.build(), segment_inputs(job, units, segment)


def _train(program: Program, wanted: Sequence[Value], inputs: Sequence[Tensor]) -> _Trained:
    words, *behind = Prepared(program, wanted).run(inputs)
    units: list[int] = words.view(torch.int32).numpy().view(np.uint32).tolist()
    return _Trained(units, b"".join(map(value_digest, behind)))
