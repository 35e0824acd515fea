"""Every kind of work through 1, 2 and 4 real peers on loopback, against the same job without any.

    python -m benchmarks.peers [--quick] [--models DIR] [--only KIND]

Every peer is a `p2p-node start` with its worker processes. All of them may verify in every run; who may
execute is limited by `placement.exclude`, so that one executor has verifiers too. Where a kind of work
splits, the node splits the job. Direct is the workload called in this process, on one thread, once its model
is loaded; runs take turns, so that all see the same machine. The first job of a kind, the smallest, which
loads the model, is told beside it, and below what a worker's start costs, cold and warm.

Times on the clock say how peers share cores only if nobody else holds them: how many cores other programs
held is told beside them. Processor time says it in any case: what was computed, what verifiers recomputed on
the same cores, and what the nodes took; and from these the least share of one peer's time that several could
take, with verification and without.

Kinds whose models don't ship are left out unless DIR has them, as `scripts/fetch_models.py` makes them. A
kind takes about a minute on an idle machine.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio
import yaml

from benchmarks.sandbox import starts
from benchmarks.spent import Spent, cores, mean, ratio_bound, spending
from benchmarks.table import machine_line, print_table
from p2p_node.client import NodeClient
from p2p_node.executor import ModelPlace, builtin_places
from p2p_node.jobrequest import build_request
from p2p_node.jobspec import parse_job_spec
from p2p_node.kernels import find_kernels
from p2p_node.models import find_models, places_of
from p2p_node.packing import pack_files
from p2p_node.swarm import Swarm, running_swarm
from p2p_node.tasks import tokenizers_of
from protocols.blobs import Blob
from workloads.blobs import MemoryBlobs
from workloads.registry import KINDS, open_workload

EXECUTORS = (1, 2, 4)
RATIO_TARGET = 0.6
"""Of batch work's time with one peer, what it may take with two, where there are two cores."""

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
WORDS = ("And", "Behold", "For", "God", "He", "I", "In", "Let", "My", "Now", "The", "Then", "Thou", "Ye")


@dataclass(frozen=True)
class Case:
    """A job of one kind.

    Args:
        task: the job file's; numbers in `sized` are multiplied by how much there is to do.
        sized: fields of the task that say how much there is to do.
        profile: of numerics.
    """

    task: Mapping[str, Any]
    sized: tuple[str, ...] = ()
    profile: str = "exact14"

    @property
    def kind(self) -> str:
        """The kind of work."""
        return str(self.task["workload"])

    def document(self, *, scale: int, seed: int, parts: bool, exclude: Sequence[str]) -> bytes:
        """The job file, ``scale`` times the smallest size."""
        task = {name: value * scale if name in self.sized else value for name, value in self.task.items()}
        if "seed" in task:
            task["seed"] = seed
        whole: dict[str, Any] = {
            "apiVersion": "p2p/v1",
            "kind": "Job",
            "name": "peers",
            "task": task,
            "auction": {"mode": "posted", "max_price": 5_000},
            "verify": {"profile": self.profile, "verifiers": 1, "chunks": 1},
            "placement": {"exclude": list(exclude)},
            "timeouts": {"queue": "60s", "execution": "20m", "total": "30m"},
        }
        if parts:
            whole["parts"] = "auto"
        return yaml.safe_dump(whole).encode()


SCENE = {
    "workload": "render.trace",
    "width": 256,
    "height": 32,
    "samples": 16,
    "depth": 4,
    "seed": 1,
    "background": [0.5, 0.6, 1],
    "camera": {"position": [0, 1, 4], "target": [0, 0, 0]},
    "materials": [{"name": "clay", "albedo": [0.8, 0.4, 0.3]}, {"name": "floor", "albedo": [0.7, 0.7, 0.7]}],
    "spheres": [
        {"centre": [-1, 0, 0], "radius": 1, "material": "clay"},
        {"centre": [1, 0, 0], "radius": 1, "material": "clay"},
    ],
    "planes": [{"point": [0, -1, 0], "normal": [0, 1, 0], "material": "floor"}],
}
TRAINING = {
    **yaml.safe_load((EXAMPLES / "train.yaml").read_text())["task"],
    "segments": 1,
}
CASES = {
    "text": Case(
        {
            "workload": "lm.generate",
            "model": "kjv-2m",
            "prompts": [f"{word} {other}" for word in WORDS for other in ("the", "of")],
            "max_tokens": 32,
            "seed": 1,
            "temperature": 0.8,
        },
        ("prompts",),
    ),
    "embeddings": Case(
        {"workload": "embed.text", "model": "all-minilm-l6-v2", "texts": "data/ecclesiastes.txt"}
    ),
    "image classes": Case(
        {
            "workload": "classify.image",
            "model": "efficientnet-lite0",
            "images": ["data/temple.jpg", "data/flower.jpg"],
        },
        ("images",),
    ),
    "speech": Case(
        {"workload": "speech.transcribe", "model": "whisper-tiny.en", "audio": "data/genesis.wav"}
    ),
    "digits": Case(
        {"workload": "diffusion.sample", "model": "digits-8x8", "labels": [0, 1, 2], "steps": 16, "seed": 1},
        ("labels",),
    ),
    "terrain": Case(
        {"workload": "diffusion.terrain", "model": "terrain", "conditions": [20], "seed": 1}, ("conditions",)
    ),
    "rendering": Case(SCENE, ("height",)),
    "training": Case(TRAINING, ("segments",), "exact21"),
    "own program": Case(
        {
            "workload": "program.run",
            "program": {"file": "data/digits.pt2", "inputs": {"pictures": "data/digits.npy"}},
        }
    ),
    "products": Case(
        {
            "workload": "linalg.matmul",
            "rows": 128,
            "inner": 2_048,
            "columns": 256,
            "bits": 10,
            "left_seed": 1,
            "right_seed": 2,
        },
        ("rows",),
    ),
}


@dataclass(frozen=True)
class Effort:
    """How long a direct run shall last, how often each way is taken, and what of."""

    direct_s: float
    """Peers share work that lasts; of a job of three seconds a third is agreeing on it."""
    rounds: int
    executors: tuple[int, ...]
    cases: tuple[str, ...]


FULL = Effort(direct_s=10.0, rounds=1, executors=EXECUTORS, cases=tuple(CASES))
QUICK = Effort(direct_s=2.0, rounds=1, executors=(1, 2), cases=("text", "embeddings", "rendering"))
SCALE_MAX = 64


class _NodeBlobs(MemoryBlobs):
    """What is packed for a job is kept here for the direct run, and handed to the node."""

    def __init__(self, client: NodeClient) -> None:
        super().__init__()
        self._client = client

    def write(self, data: bytes) -> Blob:
        self._client.add_blob(data)
        return super().write(data)


@dataclass
class Measured:
    """What each way to have a job done took; a number is so many executors."""

    case: str
    first_s: float = math.nan
    direct: list[float] = field(default_factory=list)
    through: dict[int, list[Spent]] = field(default_factory=dict)

    def row(self, executors: Sequence[int]) -> list[str]:
        """Means: direct, and for each number of peers the time, over direct and over one peer."""
        direct = sum(self.direct) / len(self.direct)
        spent = {count: mean(self.through[count]) for count in executors}
        cells = [self.case, f"{direct:.2f}", f"{self.first_s:.2f}"]
        for count, took in spent.items():
            cells += [f"{took.wall_s:.2f}", f"{took.wall_s / direct:.2f}"]
            cells += [f"{took.wall_s / spent[1].wall_s:.2f}"] if count > 1 else []
        return [*cells, f"{mean(list(spent.values())).others_cores:.1f}"]

    def shares(self, count: int) -> list[str]:
        """Processor seconds of the jobs with so many executors, and what they leave of one peer's time."""
        one, spent = mean(self.through[1]), mean(self.through[count])
        rest = max(0.0, spent.workers_s - spent.computed_s - spent.verified_s)
        figures = (spent.computed_s, spent.verified_s, rest, spent.nodes_s)
        bounds = (
            ratio_bound(one, spent, count, cores=cores(), is_verified=is_verified)
            for is_verified in (True, False)
        )
        return [
            f"{self.case}, {count} peers",
            *(f"{figure:.2f}" for figure in figures),
            f"{100 * spent.verified_s / max(spent.total_s, 1e-9):.0f}%",
            *(f"{bound:.2f}" for bound in bounds),
        ]


class Bench:
    """One kind's job on a swarm and in this process."""

    def __init__(
        self, case: str, swarm: Swarm, clients: Sequence[NodeClient], places: Mapping[str, ModelPlace]
    ) -> None:
        self.measured = Measured(case)
        self._case, self._places, self._swarm, self._clients = CASES[case], places, swarm, clients
        self._client = client = clients[0]
        self._others = [peer.peer_id for peer in swarm.peers if peer is not swarm.requester]
        self._blobs = _NodeBlobs(client)
        self._splits = KINDS[self._case.kind].split is not None
        name = self._case.task.get("model")
        path = places[name].path if name else KINDS[self._case.kind].models()[0].path
        self._workload = open_workload(self._case.kind, path, self._case.profile, blobs=self._blobs)
        self._scale = 1

    def _document(self, *, seed: int, parts: bool, exclude: Sequence[str]) -> bytes:
        document = self._case.document(scale=self._scale, seed=seed, parts=parts, exclude=exclude)
        return pack_files(document, EXAMPLES / "peers.yaml", self._blobs)

    def fit(self, direct_s: float) -> None:
        """Choose the size by how long the smallest takes."""
        self.measured.first_s = self._job_s(self._document(seed=1, parts=False, exclude=()))
        self._direct_s(1)
        if self._case.sized:
            # Whoever else used the machine meanwhile would make it small.
            took = min(self._direct_s(1), self._direct_s(1))
            self._scale = min(SCALE_MAX, max(1, round(direct_s / took)))

    def round(self, number: int, executors: Sequence[int]) -> None:
        """Each way once."""
        seed = number + 2
        self.measured.direct.append(self._direct_s(seed))
        for count in executors:
            document = self._document(seed=seed, parts=self._splits, exclude=self._others[count:])
            with spending(self._swarm, self._clients) as spent:
                self._job_s(document)
            self.measured.through.setdefault(count, []).append(spent)

    def _direct_s(self, seed: int) -> float:
        spec = parse_job_spec(self._document(seed=seed, parts=self._splits, exclude=()))
        request = build_request(spec, self._places, tokenizers_of(self._places), self._blobs)
        inputs = [request.input]
        split = KINDS[request.workload].split
        if split is not None:
            # In runs of items that one job may have: a whole may be larger.
            items = split.items(request.input)
            size = max(1, items // 4)
            inputs = [
                split.part(request.input, first, min(size, items - first)).input
                for first in range(0, items, size)
            ]
        started = time.perf_counter()
        for job in inputs:
            self._workload.generate(job, (), lambda *_: None, lambda *_: None, lambda: False)
        return time.perf_counter() - started

    def _job_s(self, document: bytes) -> float:
        """Seconds from asking for a job until all of it is verified and settled.

        Raises:
            RuntimeError: it isn't.
        """
        started = time.perf_counter()
        job_id = self._client.submit(document)["id"]
        for _ in self._client.events(job_id):
            pass
        took = time.perf_counter() - started
        job = self._client.job(job_id)
        if job["state"] != "verified":
            raise RuntimeError(f"a job of {self._case.kind} ended as {job['state']}: {job['reason']}")
        return took


def measured(effort: Effort, cases: Sequence[str], places: Mapping[str, ModelPlace]) -> list[Measured]:
    """All cases on one swarm, one after another."""
    found = []
    own = sorted({place.path for name, place in places.items() if name not in builtin_places()})
    with tempfile.TemporaryDirectory() as made:
        for path in own:
            (Path(made) / path.name).symlink_to(path)
        models = [Path(made)] if own else []
        with (
            running_swarm(max(effort.executors) + 1, seed=1, models=models) as swarm,
            ExitStack() as opened,
        ):
            clients = [opened.enter_context(peer.connect()) for peer in swarm.peers]
            for case in cases:
                bench = Bench(case, swarm, clients, places)
                bench.fit(effort.direct_s)
                for number in range(effort.rounds):
                    bench.round(number, effort.executors)
                found.append(bench.measured)
                print(f"  {case}: done", flush=True)
    return found


def head(executors: Sequence[int]) -> list[str]:
    """The columns of `Measured.row`."""
    cells = ["kind of work", "direct s", "first job s"]
    for count in executors:
        cells += [f"{count} peer{'s' * (count > 1)} s", "of direct"]
        cells += ["of 1 peer"] if count > 1 else []
    return [*cells, "cores of others"]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; the exit status says nothing of the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="three kinds, 1 and 2 peers, smaller jobs, once")
    parser.add_argument("--models", type=Path, help="directory with models that don't ship")
    parser.add_argument("--only", action="append", choices=CASES, help="a kind of work; may be repeated")
    arguments = parser.parse_args(argv)
    effort = QUICK if arguments.quick else FULL
    # Imported late: the tables can be had without torch.
    import torch

    torch.set_num_threads(1)
    print(machine_line(), flush=True)
    places = dict(builtin_places())
    if arguments.models is not None:
        places |= places_of(find_models([arguments.models]))
    wanted = arguments.only or effort.cases
    cases = [case for case in wanted if CASES[case].task.get("model") in {None, *places}]
    for case in wanted:
        if case not in cases:
            print(f"  {case}: left out, since {CASES[case].task['model']} isn't here; give --models DIR")
    found = measured(effort, cases, places)
    print_table(
        f"Seconds until a verified result, mean of {effort.rounds} "
        f"(target for work in parts: 2 peers at most {RATIO_TARGET} of 1 on 2 cores)",
        head(effort.executors),
        [each.row(effort.executors) for each in found],
    )
    print_table(
        f"Processor seconds of these jobs, and the least of 1 peer's time that {cores()} cores allow",
        ["job", "computing", "verifying", "workers' rest", "nodes", "verifying is", "bound", "unverified"],
        [each.shares(count) for each in found for count in effort.executors],
    )
    kernels = trio.run(find_kernels, 60)
    rows = trio.run(partial(starts, kernels, count=5))
    print_table(
        "A worker's start, ms",
        ["start", "times", "best", "median", "p95", "layer adds", "to cold"],
        [rows[0], rows[-1]],
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
