"""Training runs: what is learnt, the same bits anywhere, and what every check catches."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from protocols.codec import encode
from protocols.effects import Case
from protocols.events import Finding
from protocols.units import FALSE_UNITS
from workloads.errors import InputRefused
from workloads.exact.kernels import kernels, use_kernels
from workloads.exact.kernels.training import training_kernels
from workloads.program import decode_program, encode_program, execute, infer, run, trace, value_digest
from workloads.program.disputes import judge_case, open_chunk, trace_chunk
from workloads.program.prepared import Prepared
from workloads.training.input import (
    CHUNK_UNITS,
    ClassifierShape,
    LlamaShape,
    TrainingInput,
    decode_input,
    encode_input,
)
from workloads.training.kind import NAME, TRAINING, model_digest
from workloads.training.run import material_of, segment_inputs, write_segment
from workloads.training.workload import TrainingRun, rebuild

TEXT = (Path(__file__).parent / "genesis.txt").read_bytes().lower()
ALPHABET = sorted(set(TEXT))
TOKENS = bytes(ALPHABET.index(byte) for byte in TEXT)


def llama_job(**changes: object) -> TrainingInput:
    job = TrainingInput(
        classifier=None,
        llama=LlamaShape(len(ALPHABET), 16, 24, 1, 2, 1, 8, 16),
        segments=5,
        segment_steps=4,
        batch=8,
        learning_rate_micro=20_000,
        beta1_micro=900_000,
        beta2_micro=950_000,
        weight_decay_micro=10_000,
        seed=7,
        data=TOKENS,
    )
    return msgspec.structs.replace(job, **changes)


def classifier_job(**changes: object) -> TrainingInput:
    # Does the second of four letters come before "m"?
    middle = ALPHABET.index(ord("m"))
    records = b"".join(
        bytes(value * 8 for value in TOKENS[i : i + 4]) + bytes([TOKENS[i + 1] < middle])
        for i in range(0, 1_000, 3)
    )
    return llama_job(classifier=ClassifierShape((4, 24, 2)), llama=None, data=records, **changes)


def whole_run(job: TrainingInput, variant: str | None = None) -> tuple[list[int], dict[int, bytes]]:
    units: list[int] = []
    digests: dict[int, bytes] = {}
    outcome = TrainingRun("exact21", variant).generate(
        encode_input(job), (), lambda _, new: units.extend(new), digests.__setitem__, lambda: False
    )
    assert outcome.units_total == len(units) == job.units_total
    return units, digests


@pytest.fixture(scope="module")
def trained() -> tuple[TrainingInput, list[int], dict[int, bytes]]:
    job = llama_job()
    return job, *whole_run(job)


def losses(job: TrainingInput, units: list[int]) -> list[float]:
    found: list[float] = []
    for segment in range(job.segments):
        written = write_segment(material_of(job), segment, "exact21")
        prepared = Prepared(written.builder.build(), [written.losses])
        found += prepared.run(segment_inputs(material_of(job), units, segment))[0].tolist()
    return found


def test_a_decoder_learns_from_text(trained: tuple[TrainingInput, list[int], dict[int, bytes]]) -> None:
    job, units, _ = trained
    curve = losses(job, units)
    assert len(curve) == 20
    # From about ln(26), guessing, to clearly less.
    assert curve[0] > 3.2 > 2.9 > np.mean(curve[-4:])


def test_a_classifier_learns() -> None:
    job = classifier_job(segments=6, batch=32)
    units, _ = whole_run(job)
    curve = losses(job, units)
    assert np.mean(curve[-4:]) < 0.7 * np.mean(curve[:2])


def test_twenty_steps_are_pinned(trained: tuple[TrainingInput, list[int], dict[int, bytes]]) -> None:
    # The same on every machine: a change here is a change of the numbers or of the format.
    assert (
        trained[2][max(trained[2])].hex()
        == "a3a51bf92a704f927932a162bada97ec918d99de12cecab831641776b81b2572"
    )


@pytest.mark.parametrize(
    "environment",
    [
        # Threads that wait by spinning starve each other on a busy machine.
        {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"},
        {
            "ATEN_CPU_CAPABILITY": "default",
            "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
            "ONEDNN_MAX_CPU_ISA": "SSE41",
        },
    ],
    ids=["threads", "instructions"],
)
def test_other_configurations_give_the_same_bits(
    trained: tuple[TrainingInput, list[int], dict[int, bytes]], environment: dict[str, str]
) -> None:
    job, _, digests = trained
    program = (
        "import sys; from workloads.training.workload import TrainingRun\n"
        "TrainingRun('exact21').generate(sys.stdin.buffer.read(), (), lambda *_: None,"
        " lambda n, d: print(n, d.hex()), lambda: False)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=encode_input(job),
        env={**os.environ, **environment},
        capture_output=True,
        check=True,
    )
    expected = [f"{number} {digest.hex()}" for number, digest in digests.items()]
    assert done.stdout.decode().split("\n")[:-1] == expected


def test_any_segment_is_checked_alone(trained: tuple[TrainingInput, list[int], dict[int, bytes]]) -> None:
    job, units, digests = trained
    chunk = 2 * job.segment_chunks + 1
    run_ = TrainingRun("exact21")
    seen = units[: (chunk + 1) * CHUNK_UNITS]
    assert run_.recompute(encode_input(job), seen, [chunk]) == {chunk: digests[chunk]}


def test_a_run_goes_on_after_a_prefix(trained: tuple[TrainingInput, list[int], dict[int, bytes]]) -> None:
    job, units, digests = trained
    # In the middle of a segment's state.
    prefix = units[: (3 * job.segment_chunks + 1) * CHUNK_UNITS]
    more: list[int] = []
    later: dict[int, bytes] = {}
    TrainingRun("exact21").generate(
        encode_input(job), prefix, lambda _, new: more.extend(new), later.__setitem__, lambda: False
    )
    assert prefix + more == units
    assert later == {number: digests[number] for number in later}


@pytest.mark.parametrize("variant", TRAINING.variants)
def test_cheats_are_caught_in_every_segment(variant: str) -> None:
    job = llama_job(segments=2)
    units, digests = whole_run(job, variant)
    honest = TrainingRun("exact21").recompute(encode_input(job), units, digests)
    assert all(honest[number] == FALSE_UNITS for number in digests)


@pytest.mark.parametrize("place", ["state", "padding"])
def test_a_single_false_word_is_found(
    trained: tuple[TrainingInput, list[int], dict[int, bytes]], place: str
) -> None:
    job, units, digests = trained
    last = job.segment_chunks - 1
    changed = list(units)
    changed[0 if place == "state" else job.segment_chunks * CHUNK_UNITS - 1] ^= 1
    found = TrainingRun("exact21").recompute(encode_input(job), changed, range(job.segment_chunks))
    wrong = 0 if place == "state" else last
    assert found == {
        number: FALSE_UNITS if number == wrong else digests[number] for number in range(job.segment_chunks)
    }


def test_a_state_that_is_no_number_is_false_not_an_error(
    trained: tuple[TrainingInput, list[int], dict[int, bytes]],
) -> None:
    job, units, _ = trained
    broken = list(units)
    broken[5] = 0x7FC00000
    chunk = job.segment_chunks
    assert TrainingRun("exact21").recompute(encode_input(job), broken, [chunk]) == {chunk: FALSE_UNITS}


def test_digests_need_the_work(trained: tuple[TrainingInput, list[int], dict[int, bytes]]) -> None:
    # With the words alone, but not the losses and gradients behind them, nobody derives the digest.
    from workloads.chunkwise import Chunk

    _, units, digests = trained
    guess = TrainingRun("exact21").digest(0, Chunk(units[:CHUNK_UNITS], b""))
    assert guess != digests[0]


@pytest.mark.parametrize("job", [llama_job(segments=2), classifier_job(segments=2)], ids=["llama", "mlp"])
def test_a_chunk_is_a_program_that_ends_in_its_digest(job: TrainingInput) -> None:
    units, digests = whole_run(job)
    executor = TrainingRun("exact21")
    chunk = 2 * job.segment_chunks - 1
    program, values = executor.chunk_program(encode_input(job), units, chunk)
    assert decode_program(encode_program(program)) == program
    specs = infer(program)
    assert len(specs) == program.value_count
    outputs = [*values, *run(program, values)]
    assert bytes(outputs[-1].tolist()) == digests[chunk]
    # A verifier that finds units false says so, and its trace must end in what it says.
    false = [*units[:-1], units[-1] ^ 1]
    step = executor.chunk_program(encode_input(job), false, chunk)[0].steps[-1]
    assert bytes(execute(step, [outputs[value] for value in step.inputs]).tolist()) == FALSE_UNITS
    # Any operator alone: forward, backward and optimiser.
    for number in range(len(values), len(outputs), 7):
        step = program.steps[number - len(values)]
        assert torch.equal(execute(step, [outputs[value] for value in step.inputs]), outputs[number])


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "plain"])
@pytest.mark.parametrize("profile", ["exact14", "exact21"])
@pytest.mark.parametrize("job", [llama_job(segments=1), classifier_job(segments=1)], ids=["llama", "mlp"])
def test_the_fast_way_gives_the_bits_of_the_slow_one(
    job: TrainingInput, profile: str, compiled: bool
) -> None:
    job = msgspec.structs.replace(job, segment_steps=2)
    program, values = TrainingRun(profile).chunk_program(encode_input(job), [0] * CHUNK_UNITS, 0)
    steps = range(len(values), program.value_count)
    expected = trace(program, values)
    with use_kernels(kernels() if compiled else None):
        # Every value; and as a run does, only what the end depends on.
        assert [value_digest(value) for value in Prepared(program, steps).run(values)] == expected[
            len(values) :
        ]
        assert value_digest(Prepared(program, [steps[-1]]).run(values)[0]) == expected[-1]


def test_compiled_code_is_used_where_there_is_some() -> None:
    if kernels() is None:
        pytest.skip("no compiler")
    assert training_kernels() is not None


def test_a_judge_derives_the_program_and_its_inputs_from_the_contract() -> None:
    job = classifier_job(segments=2)
    units, _ = whole_run(job)
    chunk = job.segment_chunks
    program, values = TrainingRun("exact14").chunk_program(encode_input(job), units, chunk)
    case = Case(
        workload=NAME,
        model=model_digest(),
        profile="exact14",
        input=encode_input(job),
        units=tuple(units[: (chunk + 1) * CHUNK_UNITS]),
        chunk=chunk,
        program=program.digest,
        values_total=program.value_count,
        index=0,
        claimed=bytes(32),
        values=(),
        context=b"",
    )
    rebuilt = rebuild(case)
    assert rebuilt.program == program
    assert list(rebuilt.inputs) == trace(program, values)[: len(values)]


@pytest.mark.parametrize(
    "op", ["linear", "relu", "cross_entropy_backward", "matmul", "adamw", "chunk_digest"]
)
def test_a_referee_judges_forward_backward_and_optimiser_without_a_run(op: str) -> None:
    job = classifier_job(segments=1, segment_steps=1)
    executor, data = TrainingRun("exact21"), encode_input(job)
    units, _ = whole_run(job)
    program, digests = trace_chunk(executor, data, units, 0)
    steps = executor.chunk_program(data, units, 0)[0].steps
    inputs = len(digests) - len(steps)
    index = inputs + max(number for number, step in enumerate(steps) if step.op == op)
    opened, context = open_chunk(executor, data, units, 0, index)
    case = Case(
        workload=NAME,
        model=model_digest(),
        profile="exact21",
        input=data,
        units=tuple(units[:CHUNK_UNITS]),
        chunk=0,
        program=program,
        values_total=len(digests),
        index=index,
        claimed=digests[index],
        values=opened,
        context=context,
    )
    assert judge_case(case)[0] is Finding.ACQUITTED
    assert judge_case(replace(case, claimed=bytes(32)))[0] is Finding.GUILTY
    # The initial state and the data of a step follow from the contract alone.
    for number in (0, inputs - 1):
        given = replace(case, index=number, values=())
        assert judge_case(replace(given, claimed=digests[number]))[0] is Finding.ACQUITTED
        assert judge_case(replace(given, claimed=bytes(32)))[0] is Finding.GUILTY


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"llama": None}, "exactly one"),
        ({"classifier": ClassifierShape((2, 2))}, "exactly one"),
        ({"segments": 0}, "segments=0"),
        ({"segments": 20}, "at most 65536 words"),
        ({"segment_steps": 65}, "segment_steps=65"),
        ({"batch": 0}, "batch=0"),
        ({"beta1_micro": 1_000_000}, "beta1_micro=1000000"),
        ({"seed": -1}, "seed=-1"),
        ({"data": b""}, "either with the input or as a blob"),
        ({"data": TOKENS + b"\xff"}, "token 255"),
        ({"llama": LlamaShape(26, 16, 24, 1, 2, 1, 7, 16)}, "head_width=7 must be even"),
        ({"llama": LlamaShape(26, 16, 24, 1, 3, 2, 8, 16)}, "must be a multiple"),
        ({"llama": LlamaShape(70_000, 16, 24, 1, 2, 1, 8, 16)}, "vocabulary=70000"),
        ({"llama": LlamaShape(26, 8, 8, 1, 2, 1, 8, 1024), "batch": 256}, "multiply-adds"),
        ({"classifier": ClassifierShape((4,)), "llama": None}, "widths of 1"),
        ({"classifier": ClassifierShape((4, 2)), "llama": None, "data": b"1234"}, "hold no example"),
        ({"classifier": ClassifierShape((4, 2)), "llama": None, "data": bytes(9)}, "whole examples of 5"),
        ({"classifier": ClassifierShape((1, 2)), "llama": None, "data": b"\0\7"}, "class 7"),
    ],
)
def test_inputs_are_refused_with_rule_and_value(changes: dict[str, object], rule: str) -> None:
    with pytest.raises(InputRefused, match=rule):
        encode_input(llama_job(**changes))
    with pytest.raises(InputRefused):
        decode_input(encode(llama_job(**changes)))


def test_malformed_inputs_profiles_and_variants_are_refused() -> None:
    with pytest.raises(InputRefused):
        decode_input(b"\xc1")
    with pytest.raises(InputRefused, match="native"):
        TrainingRun("native")
    with pytest.raises(InputRefused, match="sloth"):
        TrainingRun("exact21", "sloth")
    job = encode_input(llama_job())
    with pytest.raises(InputRefused, match="chunk 1 does not exist"):
        TrainingRun("exact21").chunk_program(job, [0] * CHUNK_UNITS, 1)
    with pytest.raises(InputRefused, match="whole chunks"):
        TrainingRun("exact21").generate(job, [0], lambda *_: None, lambda *_: None, lambda: False)
