"""Running exported programs as the workload ``program.run``: inputs in, the words of the outputs out.

A chunk is a slice of the outputs, as float32 one after the other; its digest covers the outputs in full too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from protocols.codec import Wire, decode, encode
from protocols.effects import Case
from protocols.errors import PeerFault
from protocols.limits import INPUT_BYTES_MAX, UNITS_MAX
from protocols.parameters import Manifest
from protocols.units import units_digest
from workloads.chunkwise import Chunk, Chunkwise
from workloads.errors import InputRefused, ModelRefused
from workloads.lm.manifest import load_manifest
from workloads.program.builder import Builder, Value
from workloads.program.context import open_context, write_context
from workloads.program.exported import PROGRAM_FILE, check_template, load_template, with_profile
from workloads.program.interpreter import run
from workloads.program.program import (
    DTYPES,
    JOB,
    PARAMETER,
    Program,
    ProgramInput,
    decode_program,
    value_bytes,
    value_digest,
)
from workloads.program.referee import Rebuilt
from workloads.workload import EXACT_PROFILES, chunk_range

__all__ = ["CHUNK_UNITS", "NAME", "ExportedRun", "encode_inputs", "load_program_manifest", "rebuild"]

NAME = "program.run"
CHUNK_UNITS = 4_096


class _Input(Wire, frozen=True):
    values: tuple[bytes, ...]


def encode_inputs(values: Sequence[Tensor]) -> bytes:
    """A job's input: the values of the graph's own inputs, in its order.

    Raises:
        InputRefused: they exceed the limit.
    """
    data = encode(_Input(tuple(value_bytes(value) for value in values)))
    if len(data) > INPUT_BYTES_MAX:
        raise InputRefused(f"input of {len(data)} bytes exceeds {INPUT_BYTES_MAX}")
    return data


def load_program_manifest(folder: Path) -> Manifest:
    """The manifest of a folder that `workloads.program.exported.save_template` wrote.

    Raises:
        ModelRefused: as `load_manifest`.
    """
    return load_manifest(folder, (PROGRAM_FILE,))


class ExportedRun(Chunkwise[list[Tensor]]):
    """One exported program in one exact profile.

    Args:
        model_dir: a folder that `workloads.program.exported.save_template` wrote.
        profile: ``exact14`` or ``exact21``.
        expected_digest: what its manifest must hash to, if any.

    Raises:
        ModelRefused: the folder holds no such program, or another one.
        ProgramRefused: the program breaks a rule.
        InputRefused: the profile isn't exact.
    """

    def __init__(self, model_dir: Path, profile: str, *, expected_digest: bytes | None = None) -> None:
        self._manifest = load_program_manifest(model_dir)
        super().__init__(NAME, self._manifest.digest, profile, CHUNK_UNITS)
        if expected_digest not in (None, self.model):
            raise ModelRefused(f"model digest {self.model.hex()} must be {expected_digest!r}")
        _check_profile(profile)
        self._model_dir = model_dir
        template = load_template(model_dir)
        self._program = with_profile(template.program, profile)
        self._parameters = template.parameters
        self._total = _words_total(self._program)
        self._known: tuple[list[Tensor], list[int], bytes] | None = None

    def decode(self, input: bytes) -> list[Tensor]:
        """See `Chunkwise`: a value for each input of the graph."""
        return _decode_inputs(self._program, input)

    def units_total(self, job: list[Tensor]) -> int:
        """See `Chunkwise`."""
        return self._total

    def derive(self, job: list[Tensor], before: Sequence[int], chunk: int) -> Chunk:
        """See `Chunkwise`; all chunks come from one run."""
        if self._known is None or not all(map(torch.equal, self._known[0], job)):
            self._known = (job, *self._run(job))
        _, words, inner = self._known
        place = chunk_range(chunk, len(words), CHUNK_UNITS)
        return Chunk(words[place.start : place.stop], inner)

    def chunk_program(self, input: bytes, units: Sequence[int], chunk: int) -> tuple[Program, list[Tensor]]:
        """See `workloads.program.disputes.Disputable`."""
        program = _chunk_program(
            self._program,
            total=self._total,
            model=self.model,
            profile=self.profile,
            units=units,
            chunk=chunk,
        )
        return program, self._values(self.decode(input))

    def context(self) -> bytes:
        """See `workloads.program.disputes.Disputable`."""
        return write_context(self._manifest, self._model_dir / PROGRAM_FILE)

    def _values(self, job: Sequence[Tensor]) -> list[Tensor]:
        given = iter(job)
        return [
            self._parameters[item.name] if item.source == PARAMETER else next(given)
            for item in self._program.inputs
        ]

    def _run(self, job: list[Tensor]) -> tuple[list[int], bytes]:
        values = self._values(job)
        outputs = self._program.steps[-1].inputs
        results = dict(enumerate(values))
        for number, value in enumerate(run(self._program, values), start=len(values)):
            if number in outputs:
                results[number] = value
        flat = [results[number].double().float().reshape(-1) for number in outputs]
        words = torch.cat(flat).view(torch.int32).numpy().view(np.uint32)
        return words.tolist(), b"".join(value_digest(results[number]) for number in outputs)


def rebuild(case: Case) -> Rebuilt:
    """The program of a case's chunk and the digests of its inputs, from the model's manifest.

    Raises:
        WorkloadRefused: the context isn't the model's, or the job has no such program.
    """
    _check_profile(case.profile)
    manifest, content = open_context(case.context, case.model, PROGRAM_FILE)
    template = decode_program(content)
    total = _words_total(template)
    program = _chunk_program(
        with_profile(template, case.profile),
        total=total,
        model=case.model,
        profile=case.profile,
        units=case.units,
        chunk=case.chunk,
    )
    parameters = {item.name: item for item in manifest.parameters}
    given = iter(_decode_inputs(template, case.input))
    digests = []
    for item in program.inputs:
        if item.source == JOB:
            digests.append(value_digest(next(given)))
            continue
        found = parameters.get(item.name)
        if found is None or (found.dtype, found.shape) != (item.spec.dtype, item.spec.shape):
            raise ModelRefused(f"the model must hold {item.name!r} as {item.spec}")
        digests.append(found.value)
    return Rebuilt(program, tuple(digests))


def _check_profile(profile: str) -> None:
    if profile not in EXACT_PROFILES:
        raise InputRefused(f"profile {profile!r} must be one of {EXACT_PROFILES}")


def _decode_inputs(program: Program, input: bytes) -> list[Tensor]:
    try:
        values = decode(input, _Input, bytes_max=INPUT_BYTES_MAX).values
    except PeerFault as error:
        raise InputRefused(str(error)) from error
    wanted = [item for item in program.inputs if item.source == JOB]
    if len(values) != len(wanted):
        raise InputRefused(f"input of {len(values)} values must have {len(wanted)}")
    return [_decode_value(item, data) for item, data in zip(wanted, values, strict=True)]


def _decode_value(item: ProgramInput, data: bytes) -> Tensor:
    if len(data) != item.spec.size_bytes:
        raise InputRefused(f"{item.name!r} of {len(data)} bytes must have {item.spec.size_bytes}")
    if not data:
        return torch.empty(item.spec.shape, dtype=DTYPES[item.spec.dtype])
    return torch.frombuffer(bytearray(data), dtype=DTYPES[item.spec.dtype]).reshape(item.spec.shape)


def _words_total(program: Program) -> int:
    """Numbers of all outputs together, once the program is checked."""
    specs = check_template(program)
    total = sum(specs[number].elements for number in program.steps[-1].inputs)
    if not 1 <= total <= UNITS_MAX:
        raise InputRefused(f"outputs of {total} numbers must be in [1, {UNITS_MAX}]")
    return total


def _chunk_program(
    template: Program, *, total: int, model: bytes, profile: str, units: Sequence[int], chunk: int
) -> Program:
    """The template, but ending in the digest of one chunk of its outputs' ``total`` words."""
    place = chunk_range(chunk, total, CHUNK_UNITS)
    if not place.stop <= len(units) <= total:
        raise InputRefused(f"output of {len(units)} units must have {place.stop} to {total}")
    builder = Builder()
    for item in template.inputs:
        builder.input(item.name, item.spec, item.source)
    for step in template.steps[:-1]:
        builder.append(step)
    outputs = template.steps[-1].inputs
    words = _words(builder, outputs, place)
    digest = builder.apply(
        "chunk_digest", words, *outputs, workload=NAME, model=model, profile=profile, number=chunk
    )
    builder.apply("claim", digest, words, claimed=units_digest(units[place.start : place.stop]))
    return builder.build()


def _words(builder: Builder, outputs: Sequence[Value], place: range) -> Value:
    flat = []
    for value in outputs:
        row = builder.apply("reshape", value, shape=(math.prod(builder.shape(value)),))
        if builder.specs[row].dtype != "float64":
            row = builder.apply("cast", row, dtype="float64")
        flat.append(builder.apply("cast", row, dtype="float32"))
    whole = builder.apply("concat", *flat, dim=0)
    return builder.apply("slice", whole, dim=0, start=place.start, stop=place.stop, stride=1)
