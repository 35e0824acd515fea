"""Text generation: prompts decoded together, and checking against doing.

python -m benchmarks.generation [--quick]

One process, one thread; times are CPU seconds, the best of some rounds in which the rows take turns, so that
a busy machine spoils the ratios less than it spoils the numbers. The baseline of throughput is one prompt at
a time; checking is one call for the whole output, against producing it in the same batch and alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from benchmarks.table import machine_line, print_table
from workloads.lm import continued
from workloads.lm.generate import LmExecutor
from workloads.lm.input import LmInput
from workloads.lm.manifest import builtin_models
from workloads.lm.tokenizer import TextTokenizer

__all__ = ["Case", "main", "measure"]

PROMPT = "And the LORD spake unto Moses, saying,"
LONG_PROMPT = PROMPT * 24


@dataclass
class Case:
    """One row.

    Args:
        name: what is varied.
        prompts: how many.
        tokens: of each output.
        places: prompts decoded at once.
        prompt: each one's text.
        changes: further fields of the input.
    """

    name: str
    prompts: int
    tokens: int
    places: int
    prompt: str = PROMPT
    changes: dict[str, int] = field(default_factory=dict)
    decode_s: float = float("inf")
    check_s: float = float("inf")


def measure(case: Case, executor: LmExecutor, verifier: LmExecutor, tokenizer: TextTokenizer) -> None:
    """One round of a case: its best times so far are kept."""
    job = LmInput((tokenizer.encode(case.prompt),) * case.prompts, case.tokens, 1, 800, **case.changes)
    units: list[int] = []
    chunks: dict[int, bytes] = {}
    before = continued._SEQUENCES_MAX
    continued._SEQUENCES_MAX = case.places
    try:
        decode_s = _cpu_seconds(
            lambda: executor.generate(
                job, (), lambda _, new: units.extend(new), chunks.__setitem__, lambda: False
            )
        )
    finally:
        continued._SEQUENCES_MAX = before
    # A verifier that has seen nothing of the job yet.
    verifier.forget()
    check_s = _cpu_seconds(lambda: verifier.recompute(job, units, chunks))
    case.decode_s, case.check_s = min(case.decode_s, decode_s), min(case.check_s, check_s)


def _cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter samples")
    quick = parser.parse_args(argv).quick
    print(machine_line(), flush=True)
    torch.set_num_threads(1)
    folder = builtin_models()["kjv-2m"]
    tokenizer = TextTokenizer(folder)
    executor, verifier = (LmExecutor(folder, "exact14") for _ in range(2))
    prompts, tokens, rounds = (8, 32, 2) if quick else (32, 128, 4)
    cases = [Case(f"{places} at once", prompts, tokens, places) for places in (1, 4, 16)]
    cases += [
        Case("top-p 0.9, 16 at once", prompts, tokens, 16, changes={"top_p_milli": 900}),
        Case("top-k 40, 16 at once", prompts, tokens, 16, changes={"top_k": 40}),
        Case("penalty 1.2, 16 at once", prompts, tokens, 16, changes={"repetition_milli": 1_200}),
    ]
    single = [Case(f"{count} tokens", 1, count, 1) for count in ((32, 128) if quick else (32, 128, 512))]
    single.append(Case(f"{tokens} tokens after a long prompt", 1, tokens, 1, LONG_PROMPT))
    for _ in range(rounds):
        for case in (*cases, *single):
            measure(case, executor, verifier, tokenizer)
    alone = cases[0].decode_s
    print_table(
        f"kjv-2m, exact14: {prompts} prompts of {len(tokenizer.encode(PROMPT))} tokens, {tokens} more each",
        ["prompts", "tokens/s", "of one at a time", "check ms", "of decoding", "of one at a time"],
        [
            [
                case.name,
                f"{case.prompts * case.tokens / case.decode_s:,.0f}",
                f"{alone / case.decode_s:.2f}x",
                f"{1e3 * case.check_s:.1f}",
                f"{case.check_s / case.decode_s:.3f}",
                f"{case.check_s / alone:.3f}",
            ]
            for case in cases
        ],
    )
    print_table(
        "One prompt: checking against producing",
        ["output", "prompt", "decode ms", "check ms", "check / decode"],
        [
            [
                case.name,
                str(len(tokenizer.encode(case.prompt))),
                f"{1e3 * case.decode_s:.1f}",
                f"{1e3 * case.check_s:.1f}",
                f"{case.check_s / case.decode_s:.3f}",
            ]
            for case in single
        ],
    )


if __name__ == "__main__":
    main()
