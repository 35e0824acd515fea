"""What a dispute costs: tracing a chunk, the way down to one operator, and the referee who runs it again.

    python -m benchmarks.disputes [--quick]

Tracing runs the chunk's program operator by operator and hashes every value; executors and verifiers do it
only when they disagree, so it is held against the plain recomputation that every verifier does. What is
opened are the inputs of one operator; a referee derives the program from the contract, then runs that one
operator. Times are CPU seconds of one thread, the best of some rounds in which the ways take turns, so that
a busy machine spoils the ratios less than it spoils the numbers.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.table import machine_line, print_table
from protocols.blobs import blob_of
from protocols.effects import Case
from protocols.events import Finding
from verification.dispute_tree import level_sizes
from workloads.blobs import MemoryBlobs
from workloads.exported.input import encode_input
from workloads.exported.kind import NAME
from workloads.exported.source import load_program, run_input
from workloads.exported.workload import ProgramRun
from workloads.lm.input import LmInput
from workloads.lm.input import encode_input as encode_prompt
from workloads.lm.manifest import builtin_models
from workloads.lm.workload import LmWorkload
from workloads.program import execute, infer, run
from workloads.program.disputes import judge_case, open_chunk, trace_chunk
from workloads.program.referee import read_opened
from workloads.training.input import LlamaShape, TrainingInput
from workloads.training.input import encode_input as encode_training
from workloads.training.kind import NAME as TRAINING
from workloads.training.workload import TrainingRun

PROFILE = "exact14"
PROMPT_TOKENS = 448


@dataclass(frozen=True)
class Disputed:
    """One chunk of a job, and its workload."""

    title: str
    name: str
    workload: Any
    input: bytes
    units: list[int]
    chunk: int
    forget: Callable[[], object] = lambda: None
    """Has the workload recompute from nothing."""


class Block(nn.Module):
    """A transformer block of a size that a client might export."""

    def __init__(self, width: int = 192, heads: int = 6) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mixed(self.before(x)).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(*mixed.unbind(0), is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(x.shape))
        return x + self.down(F.gelu(self.up(self.after(x))))


def finished(workload: Any, input: bytes) -> list[int]:
    """All units of a job."""
    units: list[int] = []
    workload.generate(input, (), lambda _, new: units.extend(new), lambda *_: None, lambda: False)
    return units


def language_model() -> Disputed:
    workload = LmWorkload(builtin_models()["kjv-2m"], PROFILE)
    prompt = tuple((7 * place) % 1024 for place in range(PROMPT_TOKENS))
    input = encode_prompt(LmInput((prompt,), 64, 1, 800))
    units = finished(workload, input)
    forget = lambda: workload.recompute(encode_prompt(LmInput(((0,),), 1, 1, 0)), [0], [0])  # noqa: E731
    return Disputed("language model, 512 tokens", "lm.generate", workload, input, units, 1, forget)


def training_segment() -> Disputed:
    job = TrainingInput(
        classifier=None,
        llama=LlamaShape(
            vocabulary=64,
            hidden=32,
            inner=64,
            layers=2,
            heads=4,
            key_value_heads=2,
            head_width=8,
            positions=32,
        ),
        segments=1,
        segment_steps=4,
        batch=8,
        learning_rate_micro=10_000,
        beta1_micro=900_000,
        beta2_micro=950_000,
        weight_decay_micro=0,
        seed=1,
        data=bytes(i * i % 64 for i in range(4_096)),
    )
    input = encode_training(job)
    workload = TrainingRun(PROFILE)

    def forget() -> None:
        workload._known = None

    return Disputed("training, 4 steps", TRAINING, workload, input, finished(workload, input), 0, forget)


def exported_graph() -> Disputed:
    torch.manual_seed(0)
    x = torch.randn(1, 128, 192)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "block.pt2"
        torch.export.save(torch.export.export(Block().eval(), (x,)), path)
        job = run_input(load_program(path), {"x": x.tolist()}, "npz")
    # Too large to be carried in an input, as a client's own models often are.
    workload = ProgramRun(PROFILE, blobs=MemoryBlobs(job.content))
    input = encode_input(msgspec.structs.replace(job, content=b"", blob=blob_of(job.content)))

    def forget() -> None:
        workload._known = None

    return Disputed("exported block, 128 rows", NAME, workload, input, finished(workload, input), 0, forget)


def cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def tracing(disputed: Disputed, rounds: int) -> list[str]:
    """Recomputing, running and tracing a chunk."""
    workload, input, units, chunk = disputed.workload, disputed.input, disputed.units, disputed.chunk
    program, values = workload.chunk_program(input, units, chunk)
    best: dict[str, float] = defaultdict(lambda: float("inf"))
    for _ in range(rounds):
        disputed.forget()
        for way, work in (
            ("recompute", lambda: workload.recompute(input, units, [chunk])),
            ("run", lambda: sum(1 for _ in run(program, values))),
            ("trace", lambda: trace_chunk(workload, input, units, chunk)),
        ):
            best[way] = min(best[way], cpu_seconds(work))
    return [
        disputed.title,
        f"{program.value_count}",
        f"{len(level_sizes(program.value_count)) - 1}",
        f"{best['recompute'] * 1e3:.1f}",
        f"{best['run'] / best['recompute']:.2f}x",
        f"{best['trace'] / best['recompute']:.2f}x",
        f"{(best['trace'] / best['run'] - 1) * 100:.0f}%",
    ]


def refereeing(disputed: Disputed, every: int) -> list[str]:
    """What one operator opens, and judging it."""
    workload, input, units, chunk = disputed.workload, disputed.input, disputed.units, disputed.chunk
    program, _ = workload.chunk_program(input, units, chunk)
    specs, first = infer(program), len(program.inputs)
    opened = [sum(specs[value].size_bytes for value in set(step.inputs)) for step in program.steps]
    digest, traced = trace_chunk(workload, input, units, chunk)
    case = Case(
        disputed.name,
        workload.model,
        PROFILE,
        input,
        tuple(units),
        chunk,
        digest,
        len(traced),
        0,
        b"",
        (),
        b"",
    )
    times, operators = [], []
    for index in range(first, len(traced), every):
        values, context = open_chunk(workload, input, units, chunk, index)
        claim = replace(case, index=index, claimed=traced[index], values=values, context=context)
        started = time.process_time()
        finding, detail = judge_case(claim)
        times.append(time.process_time() - started)
        taken = {value.index: read_opened(value) for value in values}
        step = program.steps[index - first]
        inputs = [taken[value] for value in step.inputs]
        operators.append(cpu_seconds(lambda step=step, inputs=inputs: execute(step, inputs)))  # type: ignore[misc]
        if finding is not Finding.ACQUITTED:
            raise AssertionError(f"{disputed.title}: value {index} ({detail}) is {finding}")
    rounds = len(level_sizes(len(traced))) - 1
    return [
        disputed.title,
        f"{2 * rounds * 64:,}",
        f"{statistics.median(opened) / 1e3:,.0f}",
        f"{max(opened) / 1e3:,.0f}",
        f"{len(workload.context(input)) / 1e3:.1f}",
        f"{statistics.median(times) * 1e3:.1f}",
        f"{statistics.median(operators) * 1e3:.1f}",
        f"{max(operators) * 1e3:.1f}",
    ]


def report(disputed: Sequence[Disputed], *, rounds: int, every: int) -> None:
    print_table(
        f"tracing a chunk, {PROFILE}",
        ["workload", "values", "rounds", "recompute ms", "run", "trace", "hashing"],
        [tracing(one, rounds) for one in disputed],
    )
    print_table(
        "the dispute: digests shown on the way down, then one operator opened and run again",
        ["workload", "digest B", "opened kB", "at most", "context kB", "referee ms", "operator", "at most"],
        [refereeing(one, every) for one in disputed],
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds, a few operators of each program")
    arguments = parser.parse_args()
    print(machine_line(), flush=True)
    torch.set_num_threads(1)
    report(
        [language_model(), training_segment(), exported_graph()],
        rounds=1 if arguments.quick else 5,
        every=150 if arguments.quick else 29,
    )


if __name__ == "__main__":
    main()
