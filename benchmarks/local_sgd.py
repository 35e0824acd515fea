"""One run shared by several peers: the loss at equal tokens, and the bytes that travel for each token.

    python -m benchmarks.local_sgd [--quick]

Every row learns from as many tokens, with the workload's own code in one process and no network. The loss is
that of the last state on examples that are the same for all rows. Bytes are sizes of the states' files:
*trained* is what executors fetch of each other's and the client of theirs (each peer keeps a turn's place, so
it has its own state); *checked* is what two verifiers of each turn fetch, who have nothing.
"""

from __future__ import annotations

import argparse
from itertools import chain
from pathlib import Path

import torch
from msgspec.structs import replace

from benchmarks.table import machine_line, print_table
from protocols.blobs import Blob
from workloads.blobs import MemoryBlobs
from workloads.training.input import (
    CHUNK_UNITS,
    LlamaShape,
    Nesterov,
    Rounds,
    TrainingInput,
    decode_input,
    encode_input,
    losses,
    state_blob,
)
from workloads.training.kind import TRAINING
from workloads.training.turns import TURNS
from workloads.training.workload import TrainingRun

TEXT = Path(__file__).parents[1] / "examples" / "data" / "ecclesiastes.txt"
PROFILE = "exact14"
VERIFIERS = 2
ROUNDS, SEGMENT_STEPS = 4, 4
STEP = Nesterov(700_000, 900_000)
HELD_BATCH, HELD_STEPS, HELD_SEED = 64, 2, 999


def job_of(peers: int, steps: int, nesterov: Nesterov | None) -> TrainingInput:
    """A run whose peers take so many steps together."""
    rounds = 1 if peers == 1 else ROUNDS
    return TrainingInput(
        classifier=None,
        llama=LlamaShape(128, 32, 64, 2, 2, 1, 16, 32),
        segments=steps // (peers * rounds * SEGMENT_STEPS),
        segment_steps=SEGMENT_STEPS,
        batch=4,
        learning_rate_micro=6_000,
        beta1_micro=900_000,
        beta2_micro=950_000,
        weight_decay_micro=10_000,
        seed=7,
        data=TEXT.read_bytes()[:20_000],
        is_large=True,
        rounds=None if peers == 1 else Rounds(peers, rounds, nesterov),
    )


def units_of(job: TrainingInput, blobs: MemoryBlobs) -> list[int]:
    units: list[int] = []
    run = TrainingRun(PROFILE, blobs=blobs)
    run.generate(encode_input(job), (), lambda _, new: units.extend(new), lambda *_: None, lambda: False)
    return units


class Shared:
    """A run done turn by turn, and the bytes that its peers would have moved."""

    def __init__(self, job: TrainingInput) -> None:
        self.job = job
        self.blobs = MemoryBlobs()
        self.trained_bytes = self.checked_bytes = 0
        # By the peer's place; the client's is None.
        self._has: dict[int | None, set[Blob]] = {}
        if job.rounds is None:
            self.units = units_of(job, self.blobs)
            self._count(0, job, self.units)
            return
        assert TURNS.order is not None
        whole = encode_input(job, is_whole=True)
        done: list[list[int]] = []
        for item in range(job.rounds.turns):
            needed = [done[other] for other in TURNS.order.needs(whole, item)]
            turn = decode_input(TURNS.order.part(whole, item, needed).input)
            done.append(units_of(turn, self.blobs))
            self._count(item % job.rounds.peers, turn, done[-1])
        self.units = list(chain.from_iterable(done))

    def _count(self, peer: int, job: TrainingInput, units: list[int]) -> None:
        input = encode_input(job)
        left = TRAINING.output_blobs(input, units)
        self.trained_bytes += self._fetched(peer, job.blobs)
        self._has[peer].update(left)
        self.trained_bytes += self._fetched(None, left)
        between = [
            blob for n in range(len(units) // CHUNK_UNITS) for blob in TRAINING.chunk_blobs(input, units, n)
        ]
        self.checked_bytes += VERIFIERS * sum(blob.size_bytes for blob in {*job.blobs, *between})

    def _fetched(self, peer: int | None, blobs: tuple[Blob, ...]) -> int:
        has = self._has.setdefault(peer, set())
        missing = set(blobs) - has
        has.update(missing)
        return sum(blob.size_bytes for blob in missing)

    @property
    def steps(self) -> int:
        """That follow one another."""
        rounds = 1 if self.job.rounds is None else self.job.rounds.rounds
        return rounds * self.job.segments * self.job.segment_steps

    def held_loss(self) -> float:
        """Of the last state, on examples of its own."""
        job = replace(
            self.job,
            rounds=None,
            segments=1,
            segment_steps=HELD_STEPS,
            batch=HELD_BATCH,
            learning_rate_micro=0,
            seed=HELD_SEED,
            start=state_blob(self.units, len(self.units) // CHUNK_UNITS - 1),
            start_step=self.steps,
        )
        return sum(losses(job, units_of(job, self.blobs))) / HELD_STEPS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="half the tokens")
    arguments = parser.parse_args()
    print(machine_line(), flush=True)
    torch.set_num_threads(1)
    steps = 64 if arguments.quick else 128
    rows: list[list[str]] = []
    base = 0.0
    tokens = steps * job_of(1, steps, None).batch * job_of(1, steps, None).shape.rows
    for peers, nesterov in ((1, None), (2, None), (2, STEP), (4, None), (4, STEP)):
        run = Shared(job_of(peers, steps, nesterov))
        loss = run.held_loss()
        base = base or loss
        how = "alone" if peers == 1 else "average" if nesterov is None else "Nesterov"
        moved = (run.trained_bytes / tokens, run.checked_bytes / tokens)
        rows.append([f"{peers}, {how}", f"{run.steps}", f"{loss:.3f}", f"{loss / base:.3f}"])
        rows[-1] += [f"{each:,.0f}" for each in moved]
    print_table(
        f"{tokens:,} tokens, {job_of(1, steps, None).parameters:,} parameters, {ROUNDS} rounds",
        ["peers", "steps in a row", "loss", "to one peer", "trained, bytes a token", "checked"],
        rows,
    )


if __name__ == "__main__":
    main()
