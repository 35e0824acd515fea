"""Runs that several peers share: one start for all, derived by each and checked by all; what is refused."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from itertools import chain
from typing import Any

import msgspec
import numpy as np
import pytest

from p2p_node.partition.receipts import plan_of_parts
from protocols.blobs import Blob
from protocols.units import FALSE_UNITS
from tests.workloads.training.test_large import base_of, job_of, run_of
from verification.receipt import ReceiptError
from workloads.blobs import BLOB_WORDS, MemoryBlobs, blob_words
from workloads.errors import InputRefused, NumericsRefused
from workloads.training.input import (
    CHUNK_UNITS,
    Adapters,
    ClassifierShape,
    Nesterov,
    Rounds,
    TrainingInput,
    Turn,
    decode_input,
    encode_input,
    losses,
    momentum_blob,
    start_blob,
    state_blob,
)
from workloads.training.kind import SKIPPED_STEP, TRAINING, run_files
from workloads.training.statefile import MOMENTUM, SECTIONS, state_header
from workloads.training.turns import TURNS, losses_of_turns
from workloads.training.workload import TrainingRun

STEP = Nesterov(rate_micro=700_000, momentum_micro=900_000)
TWICE = Rounds(2, 2)
RECORDS = bytes(value * 37 % 256 if value % 5 < 4 else value % 2 for value in range(500))


def shared(rounds: Rounds | None = TWICE, **changes: object) -> TrainingInput:
    """A run of a classifier with 58 parameters."""
    return job_of(
        **{
            "llama": None,
            "classifier": ClassifierShape((4, 8, 2)),
            "data": RECORDS,
            "segments": 2,
            "segment_steps": 2,
            "rounds": rounds,
            **changes,
        }
    )


class Done:
    """A shared run, done turn by turn."""

    def __init__(self, job: TrainingInput, blobs: MemoryBlobs | None = None) -> None:
        self.job = job
        self.whole = encode_input(job, is_whole=True)
        self.blobs = blobs or MemoryBlobs()
        self.inputs: list[bytes] = []
        self.units: list[list[int]] = []
        self.digests: list[dict[int, bytes]] = []
        assert TURNS.order is not None
        for item in range(TURNS.items(self.whole)):
            needed = [self.units[other] for other in TURNS.order.needs(self.whole, item)]
            part = TURNS.order.part(self.whole, item, needed)
            assert TURNS.part(self.whole, item, 1).units_max == part.units_max
            units, digests = run_of(decode_input(part.input), self.blobs)
            self.inputs.append(part.input)
            self.units.append(units)
            self.digests.append(digests)

    @property
    def flat(self) -> list[int]:
        return list(chain.from_iterable(self.units))

    def numbers(self, blob: Blob, steps: int, sections: tuple[str, ...] = SECTIONS) -> np.ndarray:
        """All numbers of a state's file."""
        data = self.blobs.read(blob)
        header = state_header(SHAPES, steps, sections)
        assert data.startswith(header)
        return np.frombuffer(data, dtype="<f4", offset=len(header))


SHAPES = {"layers.0.bias": (8,), "layers.0.weight": (8, 4), "layers.1.bias": (2,), "layers.1.weight": (2, 8)}
COUNT = 58


@pytest.fixture(scope="module")
def averaged() -> Done:
    return Done(shared())


@pytest.fixture(scope="module")
def stepped() -> Done:
    return Done(shared(Rounds(2, 3, STEP)))


def test_one_peer_in_rounds_does_what_it_does_alone() -> None:
    done = Done(shared(Rounds(1, 2)))
    alone, blobs = msgspec.structs.replace(done.job, rounds=None, segments=4), MemoryBlobs()
    units, _ = run_of(alone, blobs)
    assert losses_of_turns(done.job, done.flat) == [losses(alone, units)]
    assert state_blob(done.units[-1], 0) == state_blob(units, 3)


def test_peers_see_other_data_and_go_on_from_the_average_of_what_they_made(averaged: Done) -> None:
    first, second = losses_of_turns(averaged.job, averaged.flat)
    assert (len(first), first != second) == (8, True)
    # A round's turns name one start, and it is the mean of what the last round ended in, rounded once.
    starts = [start_blob(averaged.job, units) for units in averaged.units]
    assert [starts.index(start) for start in starts] == [0, 0, 2, 2, 4]
    for item in (2, 4):
        steps = 4 * item // 2
        ends = [averaged.numbers(state_blob(averaged.units[n], 1), steps) for n in (item - 2, item - 1)]
        mean = ((ends[0].astype(np.float64) + ends[1]) / 2).astype(np.float32)
        assert (averaged.numbers(starts[item], steps) == mean).all()
    assert state_blob(averaged.units[-1], 0) == starts[4]


def test_a_step_between_rounds_is_nesterovs(stepped: Done) -> None:
    momentum = np.zeros(COUNT)
    for number in (1, 2, 3):
        turns = [stepped.units[item] for item in (2 * number - 2, 2 * number - 1)]
        ends = [stepped.numbers(state_blob(units, 1), 4 * number).astype(np.float64) for units in turns]
        before = stepped.numbers(start_blob(stepped.job, turns[0]), 4 * number - 4)[:COUNT].astype(np.float64)
        slope = before - ((ends[0] + ends[1]) / 2)[:COUNT]
        momentum = slope if number == 1 else 0.9 * momentum + slope
        after = stepped.units[2 * number]
        turn = decode_input(stepped.inputs[2 * number])
        name = momentum_blob(turn, after)
        assert name is not None
        found = stepped.numbers(name, 4 * number, MOMENTUM)
        assert (found == momentum.astype(np.float32)).all()
        start = stepped.numbers(start_blob(turn, after), 4 * number)
        assert (start[:COUNT] == (before - 0.7 * (slope + 0.9 * momentum)).astype(np.float32)).all()
        assert (start[COUNT:] == ((ends[0] + ends[1]) / 2)[COUNT:].astype(np.float32)).all()
        momentum = found.astype(np.float64)


def test_a_turn_takes_a_bounded_number_of_blobs_and_leaves_what_the_next_needs(stepped: Done) -> None:
    for item, input in enumerate(stepped.inputs):
        number = item // 2
        turn = decode_input(input)
        assert turn.turn is not None
        assert len(TRAINING.input_blobs(input)) == (2 + (number > 0) + (number > 1) if number else 0)
        left = TRAINING.output_blobs(input, stepped.units[item])
        assert set(left) <= {stepped.blobs.write(data) for data in stepped.blobs.contents()}
        assert start_blob(turn, stepped.units[item]) in left
    # Each segment is committed to by itself, unlike a run's by one peer.
    assert TRAINING.segments is not None
    assert TRAINING.segments(stepped.whole) == 1
    assert TRAINING.segments(encode_input(job_of())) == TRAINING.segment_chunks


def recomputed(done: Done, item: int, units: Sequence[int], chunk: int) -> bytes:
    return TrainingRun("exact21", blobs=done.blobs).recompute(done.inputs[item], units, [chunk])[chunk]


def test_whoever_checks_a_turn_checks_what_it_started_from(stepped: Done) -> None:
    for item, chunk in ((2, 0), (3, 1), (6, 0)):
        assert recomputed(stepped, item, stepped.units[item], chunk) == stepped.digests[item][chunk]
    other = blob_words(state_blob(stepped.units[0], 1))
    names = BLOB_WORDS + stepped.job.segment_steps
    for item, at in ((2, names), (2, names + BLOB_WORDS), (6, 0), (6, names)):
        lie = list(stepped.units[item])
        lie[at : at + BLOB_WORDS] = other
        assert recomputed(stepped, item, lie, 0) == FALSE_UNITS
    # From what a peer made alone in place of all: the units are others, and so is the digest.
    alone = msgspec.structs.replace(decode_input(stepped.inputs[6]), turn=Turn(3, 0))
    with pytest.raises(InputRefused, match="ends of round 3 must be given 2 times"):
        encode_input(alone)


def test_a_cheat_in_a_turn_is_caught(averaged: Done) -> None:
    turn = decode_input(averaged.inputs[2])
    units, digests = run_of(turn, averaged.blobs, SKIPPED_STEP)
    assert [recomputed(averaged, 2, units, chunk) for chunk in (0, 1)] == [FALSE_UNITS] * 2
    assert digests[0] != averaged.digests[2][0]


def test_what_is_no_state_of_the_last_round_is_refused(averaged: Done) -> None:
    turn = decode_input(averaged.inputs[2])
    assert turn.turn is not None
    good, blobs = turn.turn.ends[0], averaged.blobs
    older = start_blob(turn, averaged.units[0])
    for bad in (older, blobs.write(b"x"), blobs.write(blobs.read(good) + b"1234")):
        lie = msgspec.structs.replace(turn, turn=msgspec.structs.replace(turn.turn, ends=(good, bad)))
        with pytest.raises(InputRefused, match="is no such state"):
            run_of(lie, blobs)
    broken = bytearray(blobs.read(good))
    broken[-4:] = b"\xff\xff\x7f\x7f"
    far = msgspec.structs.replace(turn.turn, ends=(blobs.write(bytes(broken)),) * 2)
    broken[-4:] = b"\x00\x00\x80\x7f"
    infinite = msgspec.structs.replace(turn.turn, ends=(good, blobs.write(bytes(broken))))
    run_of(msgspec.structs.replace(turn, turn=far, learning_rate_micro=0), blobs)
    with pytest.raises(NumericsRefused, match="leaves float32"):
        run_of(msgspec.structs.replace(turn, turn=infinite), blobs)


def test_a_run_goes_on_from_where_a_shared_one_ended(averaged: Done) -> None:
    end = state_blob(averaged.units[-1], 0)
    later = msgspec.structs.replace(averaged.job, start=end, start_step=8)
    again = Done(later, averaged.blobs)
    assert start_blob(later, again.units[0]) == end
    # Only the first round needs it.
    assert [end in TRAINING.input_blobs(input) for input in again.inputs] == [True, True, False, False, False]


def test_adapters_are_shared_beside_their_base() -> None:
    blobs = MemoryBlobs()
    base = blobs.write(base_of())
    rounds = Rounds(2, 1)
    job = job_of(base=base, adapters=Adapters(2, 4_000), segments=1, segment_steps=2, rounds=rounds)
    done = Done(job, blobs)
    assert all(base in TRAINING.input_blobs(input) for input in done.inputs)
    content = run_files(done.whole, done.flat, blobs).content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert "adapter_model.safetensors" in archive.namelist()
    # A base that is trained itself is in the states from the second round on.
    ends = (state_blob(done.units[0], 0),) * 2
    assert msgspec.structs.replace(job, adapters=None, turn=Turn(1, 0, ends)).blobs == ends


def test_the_file_has_the_curve_of_each_peer_and_the_last_state(averaged: Done) -> None:
    result = run_files(averaged.whole, averaged.flat, averaged.blobs)
    with zipfile.ZipFile(io.BytesIO(result.content)) as archive:
        rows = [[float(cell) for cell in line.split(b",")] for line in archive.read("loss.csv").splitlines()]
        assert archive.read("loss.png").startswith(b"\x89PNG")
    assert [row[0] for row in rows] == list(range(1, 9))
    assert all(row[1] == pytest.approx((row[2] + row[3]) / 2, abs=1e-4) for row in rows)
    assert "after 8 steps of 2 peers each" in result.description
    # A part's own file: of a turn, and of the end, where nothing is learnt.
    for item, told in ((3, "after 8 steps; loss"), (4, "after 8 steps; state")):
        assert told in run_files(averaged.inputs[item], averaged.units[item], averaged.blobs).description
    said = TRAINING.remark(averaged.inputs[2], averaged.units[2])
    assert said.endswith("before step 8")
    assert TRAINING.remark(averaged.inputs[4], averaged.units[4]) == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rounds": Rounds(0, 1)}, "peers=0 must be in"),
        ({"rounds": Rounds(9, 7, STEP)}, None),
        ({"rounds": Rounds(8, 8)}, "peers x rounds = 64 must be at most 63"),
        ({"rounds": Rounds(2, 1, Nesterov(1, 1_000_000))}, "momentum_micro=1000000 must be in"),
        ({"is_large": False}, "keeps its states in blobs"),
        ({"segments": 33}, "33 segments of a turn must be at most 32"),
        ({"rounds": None, "turn": Turn(0, 0)}, "a turn is one of rounds"),
        ({"turn": Turn(3, 0)}, "round=3 must be in"),
        ({"turn": Turn(0, 2)}, "peer=2 must be in"),
        ({"turn": Turn(2, 1)}, "peer=1 must be in"),
        ({"turn": Turn(1, 0)}, "ends of round 1 must be given 2 times"),
        ({"turn": Turn(0, 0, before=Blob(bytes(32), 9))}, "before of round 0 must be given 0 times"),
        ({"turn": Turn(1, 0, (Blob(b"short", 9),) * 2)}, "digest"),
    ],
)
def test_rules(changes: dict[str, Any], words: str | None) -> None:
    job = shared(**changes)
    if words is None:
        job.check(is_whole=True)
        return
    with pytest.raises(InputRefused, match=words):
        job.check(is_whole=True)


def test_a_shared_run_is_no_job_for_one() -> None:
    with pytest.raises(InputRefused, match="is done turn by turn"):
        encode_input(shared())
    with pytest.raises(InputRefused, match="a run by one peer isn't split"):
        TURNS.items(encode_input(job_of()))
    for first, count in ((-1, 1), (5, 1), (0, 2)):
        with pytest.raises(InputRefused):
            TURNS.part(encode_input(shared(), is_whole=True), first, count)


# --- What a stranger checks without a blob ---------------------------------------------------------


def test_the_plan_chains_the_rounds_by_the_names_of_their_states(stepped: Done) -> None:
    plan = plan_of_parts("training.run", stepped.whole, (1,) * 7)
    assert plan.needs == ((), (), (0, 1), (0, 1), (2, 3), (2, 3), (4, 5))
    for part, needs in enumerate(plan.needs):
        units = [tuple(stepped.units[other]) for other in needs]
        assert plan.input(part, units) == stepped.inputs[part]
        if needs:
            assert plan.input(part, units[::-1]) != stepped.inputs[part]
    strange = [tuple(stepped.units[0]), tuple(stepped.units[3])]
    with pytest.raises(ReceiptError, match="part 4: input: turns of round 1 started from 2 states"):
        plan.input(4, strange)
    with pytest.raises(ReceiptError, match="part 2: input: 9 words must be 10"):
        plan.input(2, [tuple(units[: CHUNK_UNITS + 9]) for units in stepped.units[:2]])
    with pytest.raises(ReceiptError, match="plan: its parts have several items each"):
        plan_of_parts("training.run", stepped.whole, (2, 1, 1, 1, 2))
    with pytest.raises(ReceiptError, match="plan: its parts have 6 turns, the job 7"):
        plan_of_parts("training.run", stepped.whole, (1,) * 6)
