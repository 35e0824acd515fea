"""A referee against every value of a small program, and against cases that don't fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from protocols.effects import PROGRAM_INDEX, Case
from protocols.events import Finding
from protocols.messages import OpenedValue
from tests.workloads.program.test_lm import SAMPLED, Generated, generated
from workloads.errors import ProgramRefused
from workloads.program import referee
from workloads.program.disputes import rebuild
from workloads.program.interpreter import execute, run, trace
from workloads.program.limits import Limits
from workloads.program.opening import open_inputs
from workloads.program.operators.llama import POSITIONS_MAX
from workloads.program.program import Program, Step, value_digest
from workloads.program.referee import judge, opened_value, read_opened

CHUNK = 1


class Traced:
    """A chunk of the small model, its program and all values of it."""

    def __init__(self, made: Generated) -> None:
        self.program: Program
        self.program, self.inputs = made.workload.chunk_program(made.input, made.units, CHUNK)
        self.values: list[Tensor] = [*self.inputs, *run(self.program, self.inputs)]
        self._case = made.case(CHUNK)

    def opened(self, index: int) -> tuple[OpenedValue, ...]:
        return tuple(
            opened_value(number, value)
            for number, value in open_inputs(self.program, self.inputs, index).items()
        )

    def case(self, index: int, **changes: Any) -> Case:
        """An honest peer's statement on one value."""
        fields = {"claimed": value_digest(self.values[index]), "values": self.opened(index), "index": index}
        return replace(self._case, **fields | changes)  # type: ignore[arg-type]

    def step(self, op: str) -> int:
        """The value that the last step of this operator makes."""
        steps = [number for number, step in enumerate(self.program.steps) if step.op == op]
        return len(self.program.inputs) + steps[-1]


@pytest.fixture(scope="module")
def traced(tiny_model: Path) -> Traced:
    return Traced(generated(tiny_model, "exact14", SAMPLED))


def finding(case: Case) -> Finding:
    return judge(case, rebuild)[0]


def test_every_true_value_is_acquitted_and_every_other_convicted(traced: Traced) -> None:
    for index in range(traced.program.value_count):
        case = traced.case(index)
        assert finding(case) is Finding.ACQUITTED
        assert finding(replace(case, claimed=bytes(32))) is Finding.GUILTY


def test_the_digests_are_those_of_the_trace(traced: Traced) -> None:
    assert trace(traced.program, traced.inputs) == [value_digest(value) for value in traced.values]


def test_opened_inputs_are_those_of_the_run(traced: Traced) -> None:
    for index in range(traced.program.value_count):
        for number, value in open_inputs(traced.program, traced.inputs, index).items():
            assert torch.equal(value, traced.values[number])
            assert torch.equal(read_opened(opened_value(number, value)), value)
    with pytest.raises(ValueError, match="index must be in"):
        open_inputs(traced.program, traced.inputs, traced.program.value_count)


def test_one_wrong_bit_is_found_at_its_operator(traced: Traced) -> None:
    index = traced.step("llama.swiglu")
    wrong = traced.values[index].clone()
    wrong.view(torch.int64)[3, 5] ^= 1
    verdict, detail = judge(traced.case(index, claimed=value_digest(wrong)), rebuild)
    assert verdict is Finding.GUILTY
    assert detail.endswith("llama.swiglu")


def test_the_program_itself_is_judged(traced: Traced) -> None:
    case = replace(traced.case(0), index=PROGRAM_INDEX, claimed=bytes(32))
    assert finding(case) is Finding.ACQUITTED
    for lie in ({"program": bytes(32)}, {"values_total": case.values_total + 1}):
        assert finding(replace(case, **lie)) is Finding.GUILTY  # type: ignore[arg-type]
        # Of another program's values nothing can be said.
        assert finding(replace(traced.case(3), **lie)) is Finding.INCONCLUSIVE  # type: ignore[arg-type]


def test_cases_that_do_not_fit_harm_nobody(traced: Traced) -> None:
    index = traced.step("llama.add_linear")
    case = traced.case(index, claimed=bytes(32))
    first, *rest = case.values
    for values in (
        (),
        tuple(rest),
        (first, first, *rest),
        (*rest, first),
        (msgspec.structs.replace(first, index=first.index + 1), *rest),
        (msgspec.structs.replace(first, data=first.data[:-1]), *rest),
        (msgspec.structs.replace(first, dtype="float128"), *rest),
        (msgspec.structs.replace(first, dtype="int64"), *rest),
        (msgspec.structs.replace(first, shape=(2**40,) * 8), *rest),
        (msgspec.structs.replace(first, shape=first.shape[::-1]), *rest),
    ):
        assert finding(replace(case, values=values)) is Finding.INCONCLUSIVE
    for changes in (
        {"index": case.values_total},
        {"index": -2},
        {"workload": "other"},
        {"context": b"\x92"},
        {"model": bytes(32)},
        {"profile": "native"},
        {"input": b"\xc0"},
        {"chunk": 9},
    ):
        assert finding(replace(case, **changes)) is Finding.INCONCLUSIVE  # type: ignore[arg-type]


def test_an_operator_that_refuses_its_inputs_convicts_nobody(traced: Traced) -> None:
    index = traced.step("llama.project")
    for number in (float("nan"), float("inf"), 2.0**501):
        opened = open_inputs(traced.program, traced.inputs, index)
        largest = max(opened)
        opened[largest] = torch.full_like(opened[largest], number)
        values = tuple(opened_value(i, value) for i, value in opened.items())
        verdict, detail = judge(traced.case(index, values=values), rebuild)
        assert verdict is Finding.INCONCLUSIVE
        assert "NaN, Inf or a magnitude above" in detail


def test_too_large_an_operator_is_not_run(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    case = traced.case(traced.step("llama.logits"))
    monkeypatch.setattr(referee, "REFEREE_LIMITS", Limits(work_max=100_000))
    assert "multiply-adds, more than 100000" in judge(case, rebuild)[1]
    monkeypatch.setattr(referee, "OPERATOR_BYTES_MAX", 1_000)
    assert "shown more than 1000 bytes" in judge(case, rebuild)[1]


@pytest.mark.parametrize(
    ("start", "width", "rule"),
    [
        (POSITIONS_MAX - 1, 1_024, "multiply-adds, more than"),
        (0, 1_026, "must be even"),
        (0, 3, "must be even"),
    ],
)
def test_far_positions_are_not_worked_out_for_strangers(start: int, width: int, rule: str) -> None:
    attributes = {"column": 0, "heads": 1, "start": start, "theta": (1e4).hex(), "width": width}
    step = Step("llama.queries", (0,), tuple(sorted(attributes.items())))
    with pytest.raises(ProgramRefused, match=rule):
        execute(step, [torch.zeros(1, width, dtype=torch.float64)], referee.REFEREE_LIMITS)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_damaged_cases_end_in_a_finding(traced: Traced, data: st.DataObject) -> None:
    case = traced.case(data.draw(st.integers(0, traced.program.value_count - 1)))
    name = data.draw(st.sampled_from(["context", "input", "opened"]))
    assume(name != "opened" or case.values)
    damaged = bytearray({"context": case.context, "input": case.input}.get(name) or case.values[0].data)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    if name == "opened":
        first = msgspec.structs.replace(case.values[0], data=bytes(damaged))
        case = replace(case, values=(first, *case.values[1:]))
    else:
        case = replace(case, **{name: bytes(damaged)})  # type: ignore[arg-type]
    assert finding(case) in Finding
