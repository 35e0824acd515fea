"""Every kind of work through 1, 2 and 4 real peers on loopback, against the same job without any.

    python -m benchmarks.peers [--quick] [--models DIR]

Every peer is a `p2p-node start` with its worker processes. All of them may verify in every run; who may
execute is limited by `placement.exclude`, so that one executor has verifiers too. Where a kind of work
splits, the node splits the job. Direct is the workload called in this process, on one thread, once its model
is loaded; runs take turns, so that all see the same machine. The first job of a kind, the smallest, which
loads the model, is told beside it, and below what a worker's start costs, cold and warm.

Kinds whose models don't ship are left out unless DIR has them, as `scripts/fetch_models.py` makes them.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio
import yaml

from benchmarks.sandbox import starts
from benchmarks.table import machine_line, print_table
from p2p_node.client import NodeClient
from p2p_node.executor import ModelPlace, builtin_places
from p2p_node.jobrequest import build_request
from p2p_node.jobspec import parse_job_spec
from p2p_node.kernels import find_kernels
from p2p_node.models import find_models, places_of
from p2p_node.packing import pack_files
from p2p_node.swarm import running_swarm
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
            "max_tokens": 16,
            "seed": 1,
            "temperature": 0.8,
        },
        ("max_tokens",),
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
    rounds: int
    executors: tuple[int, ...]
    cases: tuple[str, ...]


FULL = Effort(direct_s=12.0, rounds=3, executors=EXECUTORS, cases=tuple(CASES))
QUICK = Effort(direct_s=4.0, rounds=1, executors=(1, 2), cases=("text", "embeddings", "rendering"))
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
    """Seconds of each way to have a job done; a number is so many executors."""

    case: str
    first_s: float = math.nan
    direct: list[float] = field(default_factory=list)
    through: dict[int, list[float]] = field(default_factory=dict)

    def row(self, executors: Sequence[int]) -> list[str]:
        """Medians: direct, and for each number of peers the time, over direct and over one peer."""
        direct = statistics.median(self.direct)
        times = {count: statistics.median(self.through[count]) for count in executors}
        cells = [self.case, f"{direct:.2f}", f"{self.first_s:.2f}"]
        for count, took in times.items():
            cells += [f"{took:.2f}", f"{took / direct:.2f}"]
            cells += [f"{took / times[1]:.2f}"] if count > 1 else []
        return cells


class Bench:
    """One kind's job on a swarm and in this process."""

    def __init__(
        self, case: str, client: NodeClient, places: Mapping[str, ModelPlace], others: Sequence[str]
    ) -> None:
        self.measured = Measured(case)
        self._case, self._client, self._places, self._others = CASES[case], client, places, others
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
            took = self._direct_s(1)
            self._scale = min(SCALE_MAX, max(1, round(direct_s / took)))

    def round(self, number: int, executors: Sequence[int]) -> None:
        """Each way once."""
        seed = number + 2
        self.measured.direct.append(self._direct_s(seed))
        for count in executors:
            document = self._document(seed=seed, parts=self._splits, exclude=self._others[count:])
            self.measured.through.setdefault(count, []).append(self._job_s(document))

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
            swarm.requester.connect() as client,
        ):
            others = [peer.peer_id for peer in swarm.peers if peer is not swarm.requester]
            for case in cases:
                bench = Bench(case, client, places, others)
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
    return cells


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
    print_table(
        f"Seconds until a verified result, median of {effort.rounds} "
        f"(target for work in parts: 2 peers at most {RATIO_TARGET} of 1 on 2 cores)",
        head(effort.executors),
        [found.row(effort.executors) for found in measured(effort, cases, places)],
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
