"""What exact training costs: one optimiser step against native torch, and a checked run against running it.

    python -m benchmarks.training [--quick]

The native step is torch's autograd and its AdamW in float32 on the same model, one thread. Times are CPU
seconds, the best of some rounds in which both take turns, so that a busy machine spoils the ratio less than
it spoils the numbers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.table import machine_line, print_table
from workloads.llama.config import LlamaConfig
from workloads.llama.model import NativeDecoder
from workloads.program import JOB, Builder, Program, ValueSpec, run, value_digest
from workloads.program.prepared import Prepared
from workloads.training.input import CHUNK_UNITS, LlamaShape, TrainingInput, encode_input
from workloads.training.llama import llama_loss, llama_shapes
from workloads.training.step import Moments, Optimiser, training_step
from workloads.training.workload import TrainingRun

VOCABULARY = 256


def cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def config_of(hidden: int, layers: int, positions: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 16 * 16,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        head_dim=64,
        max_position_embeddings=positions,
        rms_norm_eps=1e-5,
        rope_theta=10_000.0,
        tie_word_embeddings=False,
    )


class NativeStep:
    """Forward, backward and AdamW by torch."""

    def __init__(self, config: LlamaConfig, parameters: dict[str, torch.Tensor], text: torch.Tensor) -> None:
        self._parameters = {name: value.clone().requires_grad_() for name, value in parameters.items()}
        self._optimiser = torch.optim.AdamW(self._parameters.values(), lr=1e-3, weight_decay=0.0)
        self._config = config
        self._text = text

    def __call__(self) -> float:
        decoder = NativeDecoder(self._config, self._parameters)
        logits = decoder.logits(decoder.forward(self._text[:, :-1]))
        loss = F.cross_entropy(logits.flatten(0, 1), self._text[:, 1:].flatten())
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        return loss.item()


class ExactStep:
    """The same step as a program, in exact arithmetic."""

    def __init__(
        self, config: LlamaConfig, parameters: dict[str, torch.Tensor], text: torch.Tensor, profile: str
    ) -> None:
        builder = Builder()
        state = {}
        self._values: list[torch.Tensor] = []
        for name, shape in llama_shapes(config).items():
            spec = ValueSpec("float32", shape)
            state[name] = Moments(*(builder.input(f"{kind} {name}", spec, JOB) for kind in Moments._fields))
            self._values += [parameters[name], torch.zeros(shape), torch.zeros(shape)]
        batch, count = text[:, 1:].shape
        tokens = builder.input("tokens", ValueSpec("int64", (batch, count)), JOB)
        targets = builder.input("targets", ValueSpec("int64", (batch * count,)), JOB)
        self._values += [text[:, :-1].contiguous(), text[:, 1:].flatten()]
        step = training_step(
            builder,
            state,
            lambda builder, held: llama_loss(builder, config, held, tokens, targets, precision=profile),
            Optimiser(learning_rate=1e-3),
            1,
        )
        after = [value for moments in step.state.values() for value in moments]
        builder.apply("digest", step.loss, *after, header=b"")
        self.program: Program = builder.build()
        self._wanted = [step.loss, *after]
        # What a run needs of a step is the state; the digest of it is taken once in a chunk.
        self._prepared = Prepared(self.program, self._wanted)

    def __call__(self) -> float:
        return self._prepared.run(self._values)[0].item()

    def interpreted(self) -> None:
        for _ in run(self.program, self._values):
            pass

    def traced(self) -> None:
        for value in self._values:
            value_digest(value)
        for output in run(self.program, self._values):
            value_digest(output)


def steps_table(rounds: int, hidden: int, layers: int, batch: int, positions: int) -> None:
    config = config_of(hidden, layers, positions)
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(0, VOCABULARY, (batch, positions + 1), generator=generator)
    parameters = {
        name: torch.randn(shape, generator=generator) * 0.02 if len(shape) > 1 else torch.ones(shape)
        for name, shape in llama_shapes(config).items()
    }
    native = NativeStep(config, parameters, text)
    exact = {profile: ExactStep(config, parameters, text, profile) for profile in ("exact14", "exact21")}
    work: dict[str, Callable[[], object]] = {"native float32": native, **exact}
    # Disputed chunks only.
    work["exact21, step by step"] = exact["exact21"].interpreted
    work["exact21, and all digests"] = exact["exact21"].traced
    best = dict.fromkeys(work, float("inf"))
    for _ in range(rounds):
        for name, each in work.items():
            best[name] = min(best[name], cpu_seconds(each))
    base = best["native float32"]
    count = sum(value.numel() for value in parameters.values())
    print_table(
        f"one step: hidden {hidden}, {layers} layers, batch {batch} x {positions}, {count:,} parameters, "
        f"{len(exact['exact21'].program.steps)} operators",
        ["", "CPU time", "to native"],
        [[name, f"{seconds * 1e3:.0f} ms", f"{seconds / base:.2f}x"] for name, seconds in best.items()],
    )


def check_table(rounds: int) -> None:
    """Segments of a job, and what checking some of them costs."""
    job = TrainingInput(
        classifier=None,
        llama=LlamaShape(
            vocabulary=64,
            hidden=16,
            inner=32,
            layers=1,
            heads=2,
            key_value_heads=1,
            head_width=8,
            positions=32,
        ),
        segments=6,
        segment_steps=4,
        batch=8,
        learning_rate_micro=10_000,
        beta1_micro=900_000,
        beta2_micro=950_000,
        weight_decay_micro=0,
        seed=1,
        data=bytes(i * i % 64 for i in range(4_096)),
    )
    data = encode_input(job)
    best: dict[str, float] = {}

    def note(name: str, seconds: float) -> None:
        best[name] = min(best.get(name, float("inf")), seconds)

    for _ in range(rounds):
        units: list[int] = []
        executor = TrainingRun("exact21")

        def generate(executor: TrainingRun = executor, units: list[int] = units) -> None:
            executor.generate(data, (), lambda _, new: units.extend(new), lambda *_: None, lambda: False)

        note("run", cpu_seconds(generate))
        for count in (1, 2, 6):
            chunks = [segment * job.segment_chunks for segment in range(count)]
            verifier = TrainingRun("exact21")
            note(
                f"check {count} of {job.segments} segments",
                cpu_seconds(lambda v=verifier, u=units, c=chunks: v.recompute(data, u, c)),  # type: ignore[misc]
            )
    print_table(
        f"training.run: {job.segments} segments of {job.segment_steps} steps, {job.shape.parameters:,} "
        f"parameters, {job.segment_chunks} chunks of {CHUNK_UNITS} words each",
        ["", "CPU time", "to the run"],
        [[name, f"{seconds * 1e3:.0f} ms", f"{seconds / best['run']:.3f}"] for name, seconds in best.items()],
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two rounds")
    arguments = parser.parse_args()
    print(machine_line(), flush=True)
    torch.set_num_threads(1)
    rounds = 2 if arguments.quick else 5
    steps_table(rounds, hidden=256, layers=4, batch=8, positions=128)
    check_table(rounds)


if __name__ == "__main__":
    main()
