"""What checking costs beside doing, for every kind of work and each of its exact profiles, one thread.

    python -m benchmarks.workloads [--quick]

The executor does a whole job, chunk digests included; the verifier derives the digests of all of its chunks,
or of one, from the claimed output. Ratios are to the executor of the same profile in the same run. Below,
Freivalds' check of a whole product beside the product itself. Times are CPU seconds, the best of some rounds
in which the sides take turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.table import machine_line, print_table
from p2p_node.executor import builtin_places
from p2p_node.jobrequest import build_request
from p2p_node.jobspec import load_job_spec
from p2p_node.tasks import tokenizers_of
from workloads.exact import freivalds
from workloads.registry import KINDS, open_workload
from workloads.workload import EXACT_PROFILES, Workload

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
JOBS = ("verse", "digits", "render", "matmul", "train")
QUICK_JOBS = ("verse", "matmul")


def cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


@dataclass
class Side:
    """A job in one profile: what its executor gave, and the best time of each part."""

    workload: str
    model: Path
    profile: str
    job: bytes
    units: list[int] = field(default_factory=list)
    digests: dict[int, bytes] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)

    def take_turn(self) -> None:
        # Opened anew for each part: what one remembers would make the next cheaper.
        executor, one, every = (open_workload(self.workload, self.model, self.profile) for _ in range(3))
        self.units.clear()
        self._time("execute", lambda: self._generate(executor))
        middle = len(self.digests) // 2
        found: dict[int, bytes] = {}
        self._time("one", lambda: found.update(one.recompute(self.job, self.units, [middle])))
        self._time("all", lambda: found.update(every.recompute(self.job, self.units, self.digests)))
        if found != self.digests:
            raise SystemExit(f"{self.workload}: the verifier differs from the executor")

    def _generate(self, executor: Workload) -> None:
        executor.generate(
            self.job, (), lambda _, new: self.units.extend(new), self.digests.__setitem__, lambda: False
        )

    def _time(self, part: str, work: Callable[[], object]) -> None:
        self.best[part] = min(self.best.get(part, float("inf")), cpu_seconds(work))

    def row(self) -> list[str]:
        execute, one, every = (self.best[part] for part in ("execute", "one", "all"))
        return [
            self.workload,
            self.profile,
            str(len(self.digests)),
            f"{execute * 1e3:.0f} ms",
            f"{every * 1e3:.0f} ms",
            f"{every / execute:.3f}",
            f"{one / execute:.4f}",
        ]


def compare(names: Sequence[str], rounds: int) -> list[list[str]]:
    places = builtin_places()
    tokenizers = tokenizers_of(places)
    rows = []
    for name in names:
        request = build_request(load_job_spec(EXAMPLES / f"{name}.yaml"), places, tokenizers)
        (model,) = KINDS[request.workload].models()
        sides = [Side(request.workload, model.path, profile, request.input) for profile in EXACT_PROFILES]
        for _ in range(rounds):
            for side in sides:
                side.take_turn()
        rows += [side.row() for side in sides]
    return rows


def check_products(sizes: Sequence[int], rounds: int) -> list[list[str]]:
    rows = []
    for size in sizes:
        generator = torch.Generator().manual_seed(size)
        a, b = (torch.randint(-1_023, 1_024, (size, size), generator=generator).double() for _ in range(2))
        c = a @ b

        def check(a: torch.Tensor = a, b: torch.Tensor = b, c: torch.Tensor = c) -> None:
            vectors = freivalds.challenge(bytes(32), c.shape[1])
            if not freivalds.holds(a, freivalds.project(b, vectors), c, vectors):
                raise SystemExit("a right product was refused")

        multiplied = checked = float("inf")
        for _ in range(rounds):
            multiplied = min(multiplied, cpu_seconds(lambda a=a, b=b: a @ b))  # type: ignore[misc]
            checked = min(checked, cpu_seconds(check))
        shown = f"{multiplied * 1e3:.1f} ms", f"{checked * 1e3:.1f} ms", f"{checked / multiplied:.3f}"
        rows.append([f"{size} x {size} x {size}", *shown])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two kinds of work, one round, small products")
    arguments = parser.parse_args()
    print(machine_line(), flush=True)
    torch.set_num_threads(1)
    print_table(
        "The jobs of examples/, one thread, CPU time",
        ["workload", "profile", "chunks", "execute", "verify all", "to execute", "verify one, to execute"],
        compare(*((QUICK_JOBS, 1) if arguments.quick else (JOBS, 2))),
    )
    print_table(
        f"Freivalds' check, which a wrong product passes with a chance of {freivalds.SOUNDNESS:.0e} at most",
        ["integer product", "multiply", "check", "to multiply"],
        check_products((256, 512) if arguments.quick else (256, 512, 1_024, 2_048), 3),
    )


if __name__ == "__main__":
    main()
