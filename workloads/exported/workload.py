"""Running ``program.run``: a client's program on its batches, the words of the outputs out.

A chunk is a slice of all batches' outputs; its digest covers in full the outputs of the batches that it
touches. The cheap check runs those batches again, so it costs a chunk's share of the job and at most two
batches more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from protocols.effects import Case
from protocols.units import units_digest
from protocols.values import value_digest as digest_of
from workloads.blobs import NO_BLOBS, Blobs
from workloads.chunkwise import Chunk
from workloads.errors import InputRefused, ModelRefused, NumericsRefused
from workloads.exported.budget import budget_of
from workloads.exported.content import (
    identity_of,
    open_context,
    parameters_of,
    unpack,
    write_context,
)
from workloads.exported.hostile import program_of_cheat
from workloads.exported.input import CHUNK_UNITS, Kept, Port, RunInput, decode_input
from workloads.exported.kind import NAME, PROGRAM, TOLERANCE, model_digest
from workloads.fingerprint import float_miss_ppb, steps_apart, unit_row
from workloads.profiled import Profiled
from workloads.program.builder import Builder, Value
from workloads.program.exported import Template, check_template, with_profile
from workloads.program.native import NativeRun, check_continuous, inner_value
from workloads.program.prepared import Prepared
from workloads.program.program import (
    DTYPES,
    JOB,
    PARAMETER,
    Program,
    encode_program,
    value_digest,
)
from workloads.program.referee import Rebuilt
from workloads.program.shaken import Shaken
from workloads.workload import EXACT_PROFILES, chunk_range

__all__ = ["ProgramRun", "rebuild"]

_PROGRAMS_KEPT = 2


class _Result(NamedTuple):
    """What came of a batch: words, the digests of the outputs in full, an inner value if one is wanted."""

    words: list[int]
    digests: bytes
    inner: Tensor | None


@dataclass(slots=True)
class _Job:
    """A job with its program, read and in the profile.

    Args:
        given: the input.
        template: the client's program, in the profile.
        prepared: what this peer runs of it.
        results: of the batches run so far.
    """

    given: RunInput
    template: Template
    prepared: Prepared | NativeRun
    results: dict[int, _Result] = field(default_factory=dict)


class ProgramRun(Profiled[_Job]):
    """Clients' programs in one profile.

    Args:
        profile: of the kind's.
        variant: how to cheat while generating, or None.
        expected_digest: the digest that a job names, if any.
        blobs: where programs lie that are too large for an input.

    Raises:
        InputRefused: the profile or the variant is unknown.
        ModelRefused: the job names another way to run programs.
    """

    def __init__(
        self,
        profile: str,
        variant: str | None = None,
        *,
        expected_digest: bytes | None = None,
        blobs: Blobs = NO_BLOBS,
    ) -> None:
        super().__init__(PROGRAM, model_digest(), profile, variant, expected_digest=expected_digest)
        self._blobs = blobs
        self._templates: OrderedDict[bytes, Template] = OrderedDict()
        self._known: tuple[tuple[RunInput, str | None], _Job] | None = None

    def decode(self, input: bytes) -> _Job:
        """See `Chunkwise`; the program is read, and held against the limits, before anything is run."""
        return self._job(input, None)

    def units_total(self, job: _Job) -> int:
        """See `Chunkwise`."""
        return job.given.units_total

    def derive(self, job: _Job, before: Sequence[int], chunk: int) -> Chunk:
        """See `Chunkwise`; a chunk needs no other chunk."""
        given = job.given
        place = chunk_range(chunk, given.units_total, CHUNK_UNITS)
        batches = _batches_of(given, place)
        for batch in batches:
            if batch not in job.results:
                job.results[batch] = _run(job, batch, self._blobs)
        results = [job.results[batch] for batch in batches]
        words = [word for result in results for word in result.words]
        start = place.start - batches.start * given.batch_words
        kept = [result.inner.flatten() for result in results if result.inner is not None]
        states = (unit_row(torch.cat(kept)),) if kept else ()
        units = words[start : start + len(place)]
        return Chunk(units, b"".join(result.digests for result in results), states)

    def miss_ppb(self, job: _Job, claimed: Sequence[int], own: Chunk) -> int:
        """See `Profiled`: the outputs are compared."""
        return float_miss_ppb(claimed, np.array(own.units, dtype="<u4").view("<f4"))

    def check(self, job: _Job, units: Sequence[int], number: int, claimed: list[int]) -> bytes:
        """See `Chunkwise`.

        Raises:
            InputRefused: it would judge a native run of a program that amplifies roundings.
        """
        if self._numerics.is_reference:
            self._check_stable(job, number)
        return super().check(job, units, number, claimed)

    def _check_stable(self, job: _Job, number: int) -> None:
        """A client may have made a program that honest machines differ in, to have them convicted."""
        shaken = replace(
            job, prepared=Shaken(job.prepared.program, self._wanted(job.prepared.program)), results={}
        )
        one, other = self.derive(job, (), number), self.derive(shaken, (), number)
        apart = steps_apart(self.digest(number, one), self.digest(number, other))
        missed = self.miss_ppb(job, other.units, one)
        if apart > TOLERANCE.convict_steps // 2 or missed > TOLERANCE.convict_margin_ppb // 2:
            raise InputRefused(
                f"chunk {number} changes by {apart} steps, and its outputs by {missed} ppb, when its values "
                "are rounded otherwise: nobody can be judged by it"
            )

    def _wanted(self, program: Program) -> tuple[int, ...]:
        outputs = program.steps[-1].inputs
        return (*outputs, inner_value(program)) if self._numerics.has_inner_states else outputs

    def produce(self, job: _Job, before: Sequence[int], chunk: int) -> Chunk:
        """See `Chunkwise`; cheaters run another operator in place of one."""
        return self.derive(job if self._variant is None else self._cheated(job), before, chunk)

    def chunk_program(self, input: bytes, units: Sequence[int], chunk: int) -> tuple[Program, list[Tensor]]:
        """See `workloads.program.disputes.Disputable`."""
        job = self.decode(input)
        program = _chunk_program(job.template.program, job.given, self.profile, units, chunk)
        batches = _batches_of(job.given, chunk_range(chunk, job.given.units_total, CHUNK_UNITS))
        values = [
            job.template.parameters[item.name]
            for item in job.template.program.inputs
            if item.source == PARAMETER
        ]
        values += [tensor for batch in batches for tensor in _batch_values(job.given, batch, self._blobs)]
        return program, values

    def ran_program(self, input: bytes, units: Sequence[int], chunk: int) -> Program | None:
        """See `workloads.program.disputes.Cheating`."""
        if self._variant is None:
            return None
        job = self.decode(input)
        ran = program_of_cheat(self._variant, job.template.program)
        return _chunk_program(ran, job.given, self.profile, units, chunk)

    def context(self, input: bytes) -> bytes:
        """See `workloads.program.disputes.Disputable`."""
        return write_context(self._template(decode_input(input)))

    def _cheated(self, job: _Job) -> _Job:
        return self._job(job.given, self._variant)

    def _job(self, input: bytes | RunInput, variant: str | None) -> _Job:
        given = decode_input(input) if isinstance(input, bytes) else input
        key = (given, variant)
        if self._known is None or self._known[0] != key:
            template = self._template(given)
            precision = self._numerics.precision
            program = with_profile(template.program, "exact21" if precision is None else precision.name)
            if self._numerics.has_fingerprints:
                check_continuous(program)
            ran = program if variant is None else program_of_cheat(variant, program)
            prepared = (NativeRun if precision is None else Prepared)(ran, self._wanted(ran))
            self._known = key, _Job(given, replace(template, program=program), prepared)
        return self._known[1]

    def _template(self, given: RunInput) -> Template:
        """The client's program as it was packed."""
        template = self._templates.get(given.identity)
        if template is None:
            template = unpack(given.content if given.blob is None else self._blobs.read(given.blob))
            found = identity_of(encode_program(template.program), parameters_of(template))
            if found != given.identity:
                raise InputRefused(f"program {found.hex()} must be {given.identity.hex()}")
            check_template(template.program)
            budget_of(template.program)
            while len(self._templates) >= _PROGRAMS_KEPT:
                self._templates.popitem(last=False)
            self._templates[given.identity] = template
        _check_ports(template.program, given)
        return template


def rebuild(case: Case) -> Rebuilt:
    """The program of a case's chunk and the digests of its inputs, from the program's identity.

    Raises:
        WorkloadRefused: the context isn't the program's, or the job has no such program.
    """
    if case.profile not in EXACT_PROFILES:
        raise InputRefused(f"profile {case.profile!r} must be one of {EXACT_PROFILES}")
    if case.model != model_digest():
        raise ModelRefused(f"model {case.model.hex()} must be {model_digest().hex()}")
    given = decode_input(case.input)
    template, parameters = open_context(case.context, given.identity)
    _check_ports(template, given)
    program = _chunk_program(
        with_profile(template, case.profile), given, case.profile, case.units, case.chunk
    )
    batches = _batches_of(given, chunk_range(case.chunk, given.units_total, CHUNK_UNITS))
    digests = []
    for item in template.inputs:
        if item.source == PARAMETER:
            found = parameters.get(item.name)
            if found is None or (found.dtype, found.shape) != (item.spec.dtype, item.spec.shape):
                raise ModelRefused(f"the program must have {item.name!r} as {item.spec}")
            digests.append(found.value)
    digests += [digest for batch in batches for digest in _batch_digests(given, batch)]
    return Rebuilt(program, tuple(digests))


def _check_ports(program: Program, given: RunInput) -> None:
    """See that the input told the truth about what goes in and comes out."""
    specs = check_template(program)
    inputs = [(item.spec.dtype, item.spec.shape) for item in program.inputs if item.source == JOB]
    outputs = [(specs[number].dtype, specs[number].shape) for number in program.steps[-1].inputs]
    for what, ports, truth in (("inputs", given.inputs, inputs), ("outputs", given.outputs, outputs)):
        if [(port.dtype, port.shape) for port in ports] != truth:
            raise InputRefused(f"program has {what} {truth}, the job says {_described(ports)}")


def _described(ports: Sequence[Port]) -> list[tuple[str, tuple[int, ...]]]:
    return [(port.dtype, port.shape) for port in ports]


def _batches_of(given: RunInput, place: range) -> range:
    """Batches that some of the output's words are of."""
    return range(place.start // given.batch_words, -(-place.stop // given.batch_words))


def _batch_values(given: RunInput, batch: int, blobs: Blobs) -> list[Tensor]:
    return [
        _tensor(port, _read(port, given.value(number, batch), blobs))
        for number, port in enumerate(given.inputs)
    ]


def _batch_digests(given: RunInput, batch: int) -> list[bytes]:
    found = ((port, given.value(number, batch)) for number, port in enumerate(given.inputs))
    return [
        data.digests[0] if isinstance(data, Kept) else digest_of(port.dtype, port.shape, data)
        for port, data in found
    ]


def _read(port: Port, data: bytes | Kept, blobs: Blobs) -> bytes:
    """A batch's values.

    Raises:
        InputRefused: the blob holds others than the job says.
    """
    if not isinstance(data, Kept):
        return data
    read = blobs.read_range(data.blob, data.start, data.start + port.size_bytes)
    found = digest_of(port.dtype, port.shape, read)
    if found != data.digests[0]:
        raise InputRefused(
            f"{port.name!r} has value {found.hex()} at byte {data.start} of its blob, "
            f"must be {data.digests[0].hex()}"
        )
    return read


def _tensor(port: Port, data: bytes) -> Tensor:
    if not data:
        return torch.empty(port.shape, dtype=DTYPES[port.dtype])
    return torch.frombuffer(bytearray(data), dtype=DTYPES[port.dtype]).reshape(port.shape)


def _run(job: _Job, batch: int, blobs: Blobs) -> _Result:
    given = iter(_batch_values(job.given, batch, blobs))
    values = [
        job.template.parameters[item.name] if item.source == PARAMETER else next(given)
        for item in job.template.program.inputs
    ]
    found = job.prepared.run(values)
    outputs = len(job.template.program.steps[-1].inputs)
    results, inner = found[:outputs], found[outputs:]
    flat = torch.cat([result.double().float().reshape(-1) for result in results])
    if not torch.isfinite(flat).all():
        raise NumericsRefused(f"an output of batch {batch} is beyond float32")
    words: list[int] = flat.view(torch.int32).numpy().view(np.uint32).tolist()
    return _Result(words, b"".join(map(value_digest, results)), inner[0] if inner else None)


def _chunk_program(
    template: Program, given: RunInput, profile: str, units: Sequence[int], chunk: int
) -> Program:
    """The template once for each batch that the chunk touches, and the digest of the chunk's words."""
    total = given.units_total
    place = chunk_range(chunk, total, CHUNK_UNITS)
    if not place.stop <= len(units) <= total:
        raise InputRefused(f"output of {len(units)} units must have {place.stop} to {total}")
    builder = Builder()
    parameters = {
        number: builder.input(item.name, item.spec, PARAMETER)
        for number, item in enumerate(template.inputs)
        if item.source == PARAMETER
    }
    batches = _batches_of(given, place)
    inputs = [
        parameters
        | {
            number: builder.input(f"{item.name} {batch}", item.spec, JOB)
            for number, item in enumerate(template.inputs)
            if item.source == JOB
        }
        for batch in batches
    ]
    outputs = [value for known in inputs for value in _append(builder, template, known)]
    start = place.start - batches.start * given.batch_words
    words = _words(builder, outputs, range(start, start + len(place)))
    digest = builder.apply(
        "chunk_digest", words, *outputs, workload=NAME, model=model_digest(), profile=profile, number=chunk
    )
    builder.apply("claim", digest, words, claimed=units_digest(units[place.start : place.stop]))
    return builder.build()


def _append(builder: Builder, template: Program, known: Mapping[int, Value]) -> list[Value]:
    """Write a template's steps but its end; returns its outputs."""
    values = dict(known)
    for number, step in enumerate(template.steps[:-1], start=len(template.inputs)):
        values[number] = builder.append(replace(step, inputs=tuple(values[value] for value in step.inputs)))
    return [values[number] for number in template.steps[-1].inputs]


def _words(builder: Builder, outputs: Sequence[Value], place: range) -> Value:
    flat = []
    for value in outputs:
        row = builder.apply("reshape", value, shape=(builder.specs[value].elements,))
        if builder.specs[row].dtype != "float64":
            row = builder.apply("cast", row, dtype="float64")
        flat.append(builder.apply("cast", row, dtype="float32"))
    whole = builder.apply("concat", *flat, dim=0)
    return builder.apply("slice", whole, dim=0, start=place.start, stop=place.stop, stride=1)
