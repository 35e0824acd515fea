"""What a client should know of a program before paying for it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from protocols.limits import INPUT_BYTES_MAX, OPERATOR_BYTES_MAX, UNITS_MAX
from workloads import exact
from workloads.errors import InputRefused, WorkloadRefused
from workloads.exported.budget import budget_of
from workloads.exported.content import identity_of, pack, parameters_of
from workloads.exported.input import BATCHES_MAX, CHUNK_UNITS, Port
from workloads.exported.source import ports_of
from workloads.program.exported import Template, with_profile
from workloads.program.interpreter import infer
from workloads.program.prepared import Prepared
from workloads.program.program import DTYPES, PARAMETER, ValueSpec, encode_program
from workloads.workload import EXACT_PROFILES

__all__ = ["described"]

_CONTRACTIONS = frozenset(("linear", "matmul", "conv", "conv_transpose", "attention"))
_SIDE = 192
_ELEMENTS = 1 << 16
_FUNCTION_PASSES = 32
_ROUNDS = 3
_RUN_S_MAX = 5.0


def described(template: Template) -> dict[str, Any]:
    """A program in integers and text.

    Raises:
        InputRefused: its outputs can't be a job's.
        ProgramRefused: it costs more than a job may.
    """
    program = template.program
    budget = budget_of(program)
    inputs, outputs = ports_of(template)
    words = sum(port.elements for port in outputs)
    if not 1 <= words <= UNITS_MAX:
        raise InputRefused(f"outputs of {words} numbers must be 1 to {UNITS_MAX}")
    specs = infer(program)
    opened = [sum(specs[value].size_bytes for value in set(step.inputs)) for step in program.steps]
    packed = len(pack(template))
    return {
        "identity": identity_of(encode_program(program), parameters_of(template)).hex(),
        "profiles": list(EXACT_PROFILES),
        "inputs": [_port(port) for port in inputs],
        "outputs": [_port(port) for port in outputs],
        "operators": len(program.steps) - 1,
        "parameters": sum(item.spec.elements for item in program.inputs if item.source == "parameter"),
        "bytes": packed,
        "travels": "in the job" if packed < INPUT_BYTES_MAX // 2 else "as a blob",
        "batch": {
            "multiply_adds": budget.work,
            "memory_bytes": budget.held_bytes,
            **_time(template, budget.by_operator),
            "words": words,
            "dearest": dict(budget.by_operator.most_common(3)),
        },
        "job": {
            "batches_at_most": min(BATCHES_MAX, UNITS_MAX // words),
            "batches_in_a_chunk": max(1, CHUNK_UNITS // words),
            "chunks_of_a_batch": -(-words // CHUNK_UNITS),
        },
        "operators_too_large_to_dispute": sum(size > OPERATOR_BYTES_MAX for size in opened),
    }


def _port(port: Port) -> str:
    return f"{port.name}: {port.dtype} {list(port.shape)}"


def _time(template: Template, work: Counter[str]) -> dict[str, Any]:
    """How long a batch takes one core of this machine: run once if it is short, else estimated."""
    estimates = {name: _estimated_s(work, name) for name in EXACT_PROFILES}
    first = EXACT_PROFILES[0]
    measured = _measured_s(template, first) if estimates[first] <= _RUN_S_MAX else None
    scale = 1.0 if measured is None else measured / estimates[first]
    return {
        "milliseconds_here": {name: max(1, round(1_000 * scale * s)) for name, s in estimates.items()},
        "time_is": "estimated" if measured is None else f"measured in {first}",
    }


def _measured_s(template: Template, profile: str) -> float | None:
    """One run on made-up values; None if they are none for this graph."""
    program = with_profile(template.program, profile)
    generator = torch.Generator().manual_seed(0)
    values = [
        template.parameters[item.name] if item.source == PARAMETER else _made_up(item.spec, generator)
        for item in program.inputs
    ]
    prepared = Prepared(program, program.steps[-1].inputs)
    started = time.process_time()
    try:
        prepared.run(values)
    except WorkloadRefused:
        return None
    return time.process_time() - started


def _made_up(spec: ValueSpec, generator: torch.Generator) -> Tensor:
    if spec.dtype in {"int64", "uint8"}:
        return torch.zeros(spec.shape, dtype=DTYPES[spec.dtype])
    return (0.25 + 0.75 * torch.rand(spec.shape, generator=generator)).to(DTYPES[spec.dtype])


def _estimated_s(work: Counter[str], profile: str) -> float:
    """By what two small runs take: too little for graphs that mostly move numbers about."""
    precision = {"exact14": exact.EXACT14, "exact21": exact.EXACT21}[profile]
    matrix, row = torch.randn(_SIDE, _SIDE), torch.randn(_ELEMENTS)
    product_s = _seconds(lambda: exact.matmul(matrix, matrix, precision=precision)) / _SIDE**3
    function_s = _seconds(lambda: exact.sigmoid(row)) / (_FUNCTION_PASSES * _ELEMENTS)
    products = sum(count for op, count in work.items() if op in _CONTRACTIONS)
    return products * product_s + (work.total() - products) * function_s


def _seconds(run: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(_ROUNDS):
        started = time.process_time()
        run()
        best = min(best, time.process_time() - started)
    return best
