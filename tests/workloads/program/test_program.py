"""Programs as bytes and as values: canonical, bounded, refused with the rule where they break one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.codec import encode
from workloads.errors import NumericsRefused, ProgramRefused
from workloads.program import (
    DIGEST_SPEC,
    JOB,
    Builder,
    Limits,
    Program,
    ProgramInput,
    Step,
    ValueSpec,
    decode_program,
    encode_program,
    execute,
    infer,
    names,
    run,
    spec_of,
    trace,
    value_digest,
)

SPEC = ValueSpec("float32", (3, 4))


def small_program() -> Program:
    builder = Builder()
    x = builder.input("x", SPEC, JOB)
    squared = builder.apply("multiply", x, x)
    part = builder.apply("slice", squared, dim=1, start=0, stop=4, stride=2)
    builder.apply("digest", part, squared, header=b"chunk 0")
    return builder.build()


def values() -> list[torch.Tensor]:
    return [torch.arange(12, dtype=torch.float32).reshape(3, 4)]


def test_encoding_round_trips_and_pins_the_digest() -> None:
    program = small_program()
    assert decode_program(encode_program(program)) == program
    # Changes of the format break every recorded dispute: this digest changes only with a new tag.
    assert program.digest.hex() == "fb4cfab11ec7dd75da52807a1b32b5aaeff5c9757b6d14f2ec19a63ddb8650c7"


def test_run_yields_each_step_and_the_trace_covers_inputs_too() -> None:
    program = small_program()
    squared, part, digest = run(program, values())
    assert torch.equal(squared, values()[0].double() ** 2)
    assert torch.equal(part, squared[:, ::2])
    assert spec_of(digest) == DIGEST_SPEC
    expected = [value_digest(value) for value in (*values(), squared, part, digest)]
    assert trace(program, values()) == expected


def test_specs_are_inferred_without_values() -> None:
    assert [spec.shape for spec in infer(small_program())] == [(3, 4), (3, 4), (3, 2), (32,)]


def test_a_referee_runs_one_step_alone() -> None:
    program = small_program()
    outputs = [*values(), *run(program, values())]
    for number, step in enumerate(program.steps, start=1):
        alone = execute(step, [outputs[value] for value in step.inputs])
        assert value_digest(alone) == value_digest(outputs[number])


def test_value_digests_tell_dtype_shape_and_bits_apart() -> None:
    x = torch.zeros(4)
    variants = [x, x.double(), x.reshape(2, 2), x.bfloat16(), x.half(), -x, x.long(), x.to(torch.uint8)]
    assert len({value_digest(value) for value in variants}) == len(variants)
    turned = torch.arange(6.0).reshape(2, 3).t()
    assert value_digest(turned) == value_digest(turned.contiguous())


@pytest.mark.parametrize(
    ("build", "rule"),
    [
        (lambda: Step("multiply", (0, 0), (("b", 1), ("a", 1))), "sorted"),
        (lambda: Step("multiply", (0, 0), (("a", 1), ("a", 1))), "distinct"),
        (lambda: Step("multiply", tuple(range(5000))), "5000 inputs"),
        (lambda: Step("full", (), (("shape", tuple(range(65))),)), "65 integers"),
        (lambda: Step("full", (), (("shape", 2**63),)), "64-bit"),
        (lambda: Step("digest", (0,), (("header", b"x" * 5000),)), "5000 bytes"),
        (lambda: ValueSpec("complex64", (1,)), "complex64"),
        (lambda: ValueSpec("float32", (1,) * 9), "9 dimensions"),
        (lambda: ValueSpec("float32", (-1,)), "dimension -1"),
        (lambda: ProgramInput("x", SPEC, "elsewhere"), "elsewhere"),
        (lambda: ProgramInput("", SPEC, JOB), "0 characters"),
        (lambda: Program((ProgramInput("x", SPEC, JOB),), ()), "0 steps"),
        (lambda: Program((ProgramInput("x", SPEC, JOB),), (Step("negate", (1,)),)), "uses value 1"),
        (lambda: Program((), (Step("negate", (-1,)),)), "uses value -1"),
    ],
)
def test_structure_is_refused_with_rule_and_value(build, rule: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ProgramRefused, match=rule):
        build()


@pytest.mark.parametrize(
    ("step", "specs", "rule"),
    [
        (Step("no_such_op", (0,)), [SPEC], "no_such_op"),
        (Step("negate", (0, 0)), [SPEC, SPEC], "takes 1 to 1 inputs"),
        (Step("negate", (0,), (("x", 1),)), [SPEC], "takes attributes"),
        (Step("reshape", (0,), (("shape", (5, 5)),)), [SPEC], "12 elements"),
        (Step("reshape", (0,), (("shape", "5"),)), [SPEC], "integers"),
        (Step("scale", (0,), (("factor", "0.1"),)), [SPEC], "must be written"),
        (Step("scale", (0,), (("factor", "nan"),)), [SPEC], "must be in"),
        (Step("scale", (0,), (("factor", "zero"),)), [SPEC], "float.hex"),
        (Step("add", (0, 1)), [SPEC, ValueSpec("float32", (5,))], "broadcast"),
        (Step("permute", (0,), (("order", (0, 0)),)), [SPEC], "each dimension once"),
        (Step("slice", (0,), (("dim", 1), ("start", 3), ("stop", 9), ("stride", 1))), [SPEC], "at most 4"),
        (Step("embedding", (0, 1)), [SPEC, SPEC], "int64"),
        (Step("cast", (0,), (("dtype", "int64"),)), [SPEC], "can't be cast"),
        (
            Step("matmul", (0, 1), (("precision", "exact21"),)),
            [SPEC, SPEC],
            "inner sizes 4 and 3 must be equal",
        ),
        (Step("matmul", (0, 1), (("precision", "exact15"),)), [SPEC, SPEC], "exact15"),
    ],
)
def test_steps_are_refused_with_rule_and_value(step: Step, specs: list[ValueSpec], rule: str) -> None:
    from workloads.program import infer_step

    with pytest.raises(ProgramRefused, match=rule):
        infer_step(step, specs)


def test_cost_is_refused_before_anything_runs() -> None:
    huge = (("shape", (2**30, 2**30)),)
    with pytest.raises(ProgramRefused, match="bytes as float64"):
        execute(Step("expand", (0,), huge), [torch.ones(1)])
    wide = torch.ones(64, 64)
    step = Step("matmul", (0, 0), (("precision", "exact21"),))
    with pytest.raises(ProgramRefused, match="multiply-adds"):
        execute(step, [wide, wide], Limits(work_max=100_000))


def test_a_program_must_end_in_a_digest() -> None:
    program = Program((ProgramInput("x", SPEC, JOB),), (Step("negate", (0,)),))
    with pytest.raises(ProgramRefused, match="must end in"):
        infer(program)


def test_values_must_be_what_the_inputs_say() -> None:
    with pytest.raises(ProgramRefused, match="takes 1 values, got 0"):
        list(run(small_program(), []))
    with pytest.raises(ProgramRefused, match="input 'x'"):
        list(run(small_program(), [torch.ones(4, 3)]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2.0**501])
def test_numbers_out_of_range_are_refused_by_name(value: float) -> None:
    bad = torch.ones(2, dtype=torch.float64)
    bad[1] = value
    with pytest.raises(NumericsRefused, match="input 1 of add"):
        execute(Step("add", (0, 1)), [torch.ones(2), bad])
    large = torch.full((2,), 2.0**300, dtype=torch.float64)
    with pytest.raises(NumericsRefused, match="output of multiply"):
        execute(Step("multiply", (0, 0)), [large, large])


def test_a_malformed_index_is_refused_not_followed() -> None:
    with pytest.raises(ProgramRefused, match=r"ids in \[0, 9\]"):
        execute(Step("embedding", (0, 1)), [torch.ones(3, 2), torch.tensor([0, 9])])


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xc1",
        encode([]),
        encode([[], [], []]),
        encode([[["x", ["float32", [2]], "job"]], "steps"]),
        encode([[["x", ["float32", "2"], "job"]], [["negate", [0], []]]]),
        encode([[["x", ["float32", [2.0]], "job"]], [["negate", [0], []]]]),
        encode([[], [["full", [], [["shape", [[1]]]]]]]),
        encode([[], [["full", [], [["value", 0.5]]]]]),
        encode([[], [["full", [], [["value", True]]]]]),
        encode([[], [["full", [], {"value": 1}]]]),
        encode([[], [[b"full", [], []]]]),
    ],
)
def test_malformed_bytes_are_refused(value: bytes) -> None:
    with pytest.raises(ProgramRefused):
        decode_program(value)


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.booleans())
def test_mutated_bytes_give_a_program_or_a_refusal(position: int, byte: int, cut: bool) -> None:
    data = bytearray(encode_program(small_program()))
    position %= len(data)
    if cut:
        del data[position]
    else:
        data[position] = byte
    try:
        program = decode_program(bytes(data))
        infer(program)
    except ProgramRefused:
        return
    assert encode_program(program) == bytes(data)


def test_every_operator_states_what_it_takes() -> None:
    # A stranger can name any operator with nothing at all: each must say no, not fall over.
    for name in names():
        with pytest.raises(ProgramRefused):
            execute(Step(name, (), (("zzz", 1),)), [])
