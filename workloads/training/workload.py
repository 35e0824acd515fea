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

from protocols.blobs import blob_of
from protocols.codec import encode
from protocols.digest import tagged
from protocols.effects import Case
from protocols.units import units_digest
from workloads.blobs import NO_BLOBS, Blobs, blob_words
from workloads.chunkwise import Chunk, Chunkwise
from workloads.errors import InputRefused, ModelRefused
from workloads.program import Program, value_digest
from workloads.program.prepared import Prepared
from workloads.program.referee import Rebuilt
from workloads.training.hostile import program_of_cheat
from workloads.training.input import CHUNK_UNITS, TrainingInput, decode_input
from workloads.training.kind import NAME, TRAINING, model_digest
from workloads.training.outer import Merged
from workloads.training.run import Material, first_state, material_of, segment_inputs, write_segment
from workloads.training.states import write_state
from workloads.workload import EXACT_PROFILES, chunk_range

__all__ = ["TrainingRun", "rebuild"]


class _Trained(NamedTuple):
    """A segment's results: its output, what else its chunks' digests cover, and the blobs that it names."""

    units: list[int]
    inner: bytes
    blobs: tuple[bytes, ...]


class TrainingRun(Chunkwise[TrainingInput]):
    """Training in one exact profile.

    Args:
        profile: ``exact14`` or ``exact21``.
        variant: how to cheat while generating, or None.
        expected_digest: the digest that a job names, if any.
        blobs: where data, a base and states are, and states are left.

    Raises:
        InputRefused: the profile or the variant is unknown.
        ModelRefused: the job names another model.
    """

    def __init__(
        self,
        profile: str,
        variant: str | None = None,
        *,
        expected_digest: bytes | None = None,
        blobs: Blobs = NO_BLOBS,
    ) -> None:
        super().__init__(NAME, model_digest(), profile, CHUNK_UNITS)
        if expected_digest not in (None, self.model):
            raise ModelRefused(f"model digest {self.model.hex()} must be {expected_digest!r}")
        if profile not in EXACT_PROFILES:
            raise InputRefused(f"profile {profile!r} must be one of {EXACT_PROFILES}")
        if variant not in (None, *TRAINING.variants):
            raise InputRefused(f"variant {variant!r} must be one of {TRAINING.variants}")
        self._variant = variant
        self._blobs = blobs
        self._material: Material | None = None
        self._first: Merged | None = None
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

    def chunk_program(self, input: bytes, units: Sequence[int], chunk: int) -> tuple[Program, list[Tensor]]:
        """See `workloads.program.disputes.Disputable`."""
        return _chunk_program(self._material_of(decode_input(input)), self.profile, units, chunk)

    def ran_program(self, input: bytes, units: Sequence[int], chunk: int) -> Program | None:
        """See `workloads.program.disputes.Cheating`."""
        if self._variant is None:
            return None
        return program_of_cheat(self._variant, self.chunk_program(input, units, chunk)[0])

    def context(self, input: bytes) -> bytes:
        """See `workloads.program.disputes.Disputable`: there is no model to know."""
        return b""

    def produce(self, job: TrainingInput, before: Sequence[int], chunk: int) -> Chunk:
        """See `Chunkwise`; cheaters leave out steps or take longer ones."""
        produced = self._chunk(job, before, chunk, self._variant)
        if job.is_large and self._known is not None:
            for blob in self._known[1].blobs:
                self._blobs.write(blob)
        return produced

    def _chunk(self, job: TrainingInput, before: Sequence[int], chunk: int, variant: str | None) -> Chunk:
        segment, part = divmod(chunk, job.segment_chunks)
        trained = self._segment(job, before, segment, variant)
        return Chunk(trained.units[part * CHUNK_UNITS : (part + 1) * CHUNK_UNITS], trained.inner)

    def _segment(
        self, job: TrainingInput, before: Sequence[int], segment: int, variant: str | None
    ) -> _Trained:
        material = self._material_of(job)
        first = self._first_of(material) if segment == 0 and job.turn is not None else None
        start = b"" if first is None else first.state
        inputs = [] if job.is_ending else segment_inputs(material, before, segment, start)
        key = tagged(
            "p2p-node/training-segment/1",
            encode(job),
            str((segment, variant)).encode(),
            *map(value_digest, inputs),
        )
        if self._known is None or self._known[0] != key:
            self._known = key, self._train(material, segment, variant, inputs, first)
        return self._known[1]

    def _train(
        self,
        material: Material,
        segment: int,
        variant: str | None,
        inputs: Sequence[Tensor],
        first: Merged | None,
    ) -> _Trained:
        job = material.job
        if first is not None and job.is_ending:
            return _named(job, first.state, [], first)
        written = write_segment(material, segment, self.profile)
        wanted = (
            written.losses,
            written.gradients,
            *(written.state if written.words is None else [written.words]),
        )
        program = written.builder.build()
        if variant is not None:
            program = program_of_cheat(variant, program, written.losses)
        losses, gradients, *state = Prepared(program, wanted).run(inputs)
        inner = value_digest(losses) + value_digest(gradients)
        if not job.is_large:
            return _Trained(_words(state[0]), inner, ())
        file = write_state(state, material.shapes, job.steps_before + (segment + 1) * job.segment_steps)
        named = _named(job, file, _words(losses.to(torch.float32)), first)
        return named._replace(inner=inner + named.inner)

    def _material_of(self, job: TrainingInput) -> Material:
        if self._material is None or self._material.job != job:
            self._material, self._first = material_of(job, self._blobs), None
        return self._material

    def _first_of(self, material: Material) -> Merged:
        if self._first is None:
            self._first = first_state(material)
        return self._first


def rebuild(case: Case) -> Rebuilt:
    """The program of a case's chunk and the digests of its inputs, for `workloads.program.disputes`.

    Raises:
        WorkloadRefused: the job has no such program.
    """
    if case.profile not in EXACT_PROFILES:
        raise InputRefused(f"profile {case.profile!r} has no programs, must be one of {EXACT_PROFILES}")
    if case.model != model_digest():
        raise ModelRefused(f"model {case.model.hex()} must be {model_digest().hex()}")
    job = decode_input(case.input)
    if job.is_large:
        # A judge would need the state itself; whoever doubts such a chunk does it again.
        raise InputRefused("a run that keeps its states in blobs has no programs")
    program, values = _chunk_program(material_of(job), case.profile, case.units, case.chunk)
    return Rebuilt(program, tuple(map(value_digest, values)))


def _chunk_program(
    material: Material, profile: str, units: Sequence[int], chunk: int
) -> tuple[Program, list[Tensor]]:
    job = material.job
    place = chunk_range(chunk, min(len(units), job.units_total), CHUNK_UNITS)
    segment, part = divmod(chunk, job.segment_chunks)
    written = write_segment(material, segment, profile)
    if written.words is None:
        raise InputRefused("a run that keeps its states in blobs has no programs")
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
    return builder.build(), segment_inputs(material, units, segment)


def _named(job: TrainingInput, state: bytes, losses: list[int], first: Merged | None) -> _Trained:
    """The chunk of a segment whose state is a blob.

    Args:
        job: the run or the turn.
        state: after the segment.
        losses: before each step, as words; none where nothing was trained.
        first: what the turn started from, if this is its first segment.
    """
    units = [*blob_words(blob_of(state)), *losses, *[0] * (job.segment_steps - len(losses))]
    blobs = [state]
    if first is not None:
        started = [first.state, first.momentum] if first.momentum else [first.state]
        units += [word for blob in started for word in blob_words(blob_of(blob))]
        blobs += started
    units += [0] * (CHUNK_UNITS - len(units))
    return _Trained(units, b"" if first is None else first.inner, tuple(dict.fromkeys(blobs)))


def _words(values: Tensor) -> list[int]:
    """Float32 as 32-bit words."""
    words: list[int] = values.view(torch.int32).numpy().view(np.uint32).tolist()
    return words
