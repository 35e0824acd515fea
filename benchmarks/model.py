"""What exactness costs: native against exact14 and exact21 on the model that ships, one thread.

    python -m benchmarks.model

Decode runs the whole executor (sampling and chunk digests included), verify one recomputation of all its
chunks. Times are CPU seconds, the best of some rounds in which the profiles take turns, so that a busy
machine spoils the ratios less than it spoils the numbers.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable

import torch

from benchmarks.table import machine_line, print_table
from workloads.lm.generate import LmExecutor
from workloads.lm.input import LmInput
from workloads.lm.manifest import builtin_models
from workloads.lm.tokenizer import TextTokenizer

PROFILES = ("native", "exact14", "exact21")
PROMPT = "And the LORD spake unto Moses, saying,"


def cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(machine_line(), flush=True)
    torch.set_num_threads(1)
    folder = builtin_models()["kjv-2m"]
    job = LmInput((TextTokenizer(folder).encode(PROMPT),), arguments.tokens, 1, 800)
    executors = {profile: LmExecutor(folder, profile) for profile in PROFILES}
    chunks = range(-(-arguments.tokens // 32))
    best: dict[tuple[str, str], float] = defaultdict(lambda: float("inf"))

    for _ in range(arguments.rounds):
        for profile, executor in executors.items():
            units: list[int] = []

            def generate(executor: LmExecutor = executor, units: list[int] = units) -> None:
                executor.generate(job, (), lambda _, new: units.extend(new), lambda *_: None, lambda: False)

            def first(executor: LmExecutor = executor) -> None:
                executor.generate(
                    LmInput(job.prompts, 1, 1, 800), (), lambda *_: None, lambda *_: None, lambda: False
                )

            best[profile, "decode"] = min(best[profile, "decode"], cpu_seconds(generate))
            best[profile, "first"] = min(best[profile, "first"], cpu_seconds(first))
            verify = cpu_seconds(lambda e=executor, u=units: e.recompute(job, u, chunks))  # type: ignore[misc]
            best[profile, "verify"] = min(best[profile, "verify"], verify)

    rows = []
    for profile in PROFILES:
        decode, verify = best[profile, "decode"], best[profile, "verify"]
        rows.append(
            [
                profile,
                f"{arguments.tokens / decode:.0f} tok/s",
                f"{decode / best['native', 'decode']:.2f}x",
                f"{best[profile, 'first'] * 1e3:.1f} ms",
                f"{verify * 1e3:.1f} ms",
                f"{verify / best['native', 'verify']:.2f}x",
                f"{verify / decode:.3f}",
            ]
        )
    print_table(
        f"kjv-2m, {len(job.prompts[0])} prompt and {arguments.tokens} output tokens, one thread, CPU time",
        ["profile", "decode", "to native", "first token", "verify", "to native", "verify/decode"],
        rows,
    )


if __name__ == "__main__":
    main()
