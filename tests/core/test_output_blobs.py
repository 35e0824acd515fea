"""Output that is blobs: nothing is paid that only has a name, nobody is blamed for what another withholds."""

from __future__ import annotations

from typing import Any

import pytest

from p2p_node.core.attempt import EXECUTOR_FAULTS, Outcome
from p2p_node.core.node import NodeCore
from protocols.blobs import Blob
from protocols.effects import CancelRun, FetchBlobs, Notify, Prefetch, Run, SetTimer
from protocols.events import (
    INPUT_MISSING,
    NO_ROOM,
    OUTPUT_MISSING,
    RunFailed,
    RunFetched,
    RunProgress,
)
from protocols.messages import AuctionClose, BlobRecord, Closed, Decline, ExecutionFailed, Progress
from tests.core.test_attempt import Trial, ended, paid
from tests.support.builders import EXECUTOR, INPUT, NOW_MS, REQUESTER, UNITS, key, offer, signed
from tests.support.machines import core, sent, the

STALL_MS = 20_000


def delivered() -> tuple[Trial, Any, Any, list[Any]]:
    """A job whose units name blobs, with both of its segments committed to."""
    trial = Trial(has_output_blobs=True, stall_ms=STALL_MS).accepted()
    trial.output(0, len(UNITS))
    first, second = trial.commitments()
    return trial, first, second, trial.commit(first) + trial.commit(second)


def fetched(trial: Trial, commitment: Any, now_ms: int = NOW_MS) -> list[Any]:
    return trial.attempt.handle(RunFetched(("outputs", commitment.id)), now_ms)


def executors_pay(effects: list[Any]) -> list[int]:
    return [micros for payee, micros in paid(effects) if payee == key(EXECUTOR)]


def test_the_blobs_of_a_committed_segment_are_fetched_from_its_executor() -> None:
    _, first, second, effects = delivered()
    wanted = [effect for effect in effects if isinstance(effect, Run)]
    assert [run.key for run in wanted] == [("outputs", first.id), ("outputs", second.id)]
    task = wanted[0].task
    assert isinstance(task, FetchBlobs)
    assert (task.input, task.units, task.sources) == (INPUT, UNITS[:32], (key(EXECUTOR),))


def test_a_job_without_blobs_fetches_nothing() -> None:
    trial = Trial().accepted()
    trial.output(0, len(UNITS))
    assert not any(isinstance(effect, Run) for effect in trial.commit(trial.commitments()[0]))


@pytest.mark.parametrize("blobs_first", [True, False])
def test_a_segment_is_paid_once_it_is_verified_and_here(blobs_first: bool) -> None:
    trial, first, _, _ = delivered()
    if blobs_first:
        assert executors_pay(fetched(trial, first)) == []
        assert executors_pay(trial.verify(first)) != []
    else:
        assert executors_pay(trial.verify(first)) == []
        assert trial.attempt.verified == ()
        assert executors_pay(fetched(trial, first)) != []
    assert trial.attempt.verified == UNITS[:32]


def test_the_job_is_done_when_the_last_blob_is_here() -> None:
    trial, first, second, _ = delivered()
    fetched(trial, first)
    trial.verify(first)
    trial.verify(second)
    assert trial.attempt.outcome is None
    fetched(trial, second)
    assert trial.attempt.outcome is Outcome.VERIFIED


def test_an_executor_that_withholds_its_blob_loses_the_attempt_and_keeps_what_it_earned() -> None:
    trial, first, second, _ = delivered()
    fetched(trial, first)
    trial.verify(first)
    effects = trial.attempt.handle(RunFailed(("outputs", second.id), OUTPUT_MISSING, "nobody has it"), NOW_MS)
    assert ended(effects, Outcome.OUTPUT_WITHHELD)
    assert Outcome.OUTPUT_WITHHELD in EXECUTOR_FAULTS
    assert trial.attempt.verified == UNITS[:32]


def test_an_executor_that_serves_nothing_in_time_withholds() -> None:
    trial, first, second, _ = delivered()
    fetched(trial, first)
    later_ms = NOW_MS + STALL_MS - 1
    trial.attempt.handle(RunProgress(("outputs", second.id), "fetching", 1, 9), later_ms)
    again = trial.timer("outputs", NOW_MS + STALL_MS)
    assert again == [SetTimer(("attempt", trial.id, "outputs"), later_ms + STALL_MS)]
    effects = trial.timer("outputs", later_ms + STALL_MS)
    assert ended(effects, Outcome.OUTPUT_WITHHELD)
    assert CancelRun(("outputs", second.id)) in effects
    assert CancelRun(("outputs", first.id)) not in effects


def test_trickling_ends_with_the_contracts_deadline() -> None:
    trial, _, _, _ = delivered()
    assert ended(trial.timer("finish", NOW_MS + 60_000), Outcome.OUTPUT_WITHHELD)


def test_a_requester_without_room_blames_nobody() -> None:
    trial, first, _, _ = delivered()
    effects = trial.attempt.handle(RunFailed(("outputs", first.id), NO_ROOM, "9 bytes"), NOW_MS)
    assert ended(effects, Outcome.NO_ROOM)
    assert Outcome.NO_ROOM not in EXECUTOR_FAULTS


def test_an_executor_that_couldnt_get_the_input_isnt_to_blame() -> None:
    trial = Trial().accepted()
    assert ended(trial.hear(ExecutionFailed(trial.id, INPUT_MISSING, "blob ab")), Outcome.INPUT_MISSING)
    assert Outcome.INPUT_MISSING not in EXECUTOR_FAULTS


def test_progress_is_told_and_counts_as_a_sign_of_life() -> None:
    trial = Trial(stall_ms=STALL_MS).accepted()
    effects = trial.hear(Progress(trial.id, "fetching", 1, 2), now_ms=NOW_MS + 15_000)
    assert effects == [
        Notify(
            trial.attempt.job_id,
            "progress",
            {"peer": key(EXECUTOR), "phase": "fetching", "done": 1, "total": 2},
        )
    ]
    assert trial.timer("stall", NOW_MS + STALL_MS) == [
        SetTimer(("attempt", trial.id, "stall"), NOW_MS + 15_000 + STALL_MS)
    ]


# --- The input's, before there is a contract -------------------------------------------------------


FILE = BlobRecord(bytes(32), 600)


def bidder(blob_bytes_max: int) -> NodeCore:
    node = core(EXECUTOR, knows=(2, 3))
    node.provider.blob_bytes_max = blob_bytes_max
    return node


def test_who_bids_begins_to_fetch_and_reserves_the_room() -> None:
    node = bidder(1_000)
    job = offer(blobs=(FILE,))
    effects = node.provider.hear_offer(job, NOW_MS)
    early = Run(("prefetch", job.id), Prefetch((Blob(FILE.digest, FILE.size_bytes),), (key(REQUESTER),)))
    assert early in effects
    decline = the(sent(node.provider.hear_offer(offer(blobs=(FILE,), nonce=b"n" * 16), NOW_MS), Decline))
    assert (decline.body.reason, decline.body.have, decline.body.need) == ("storage", 400, 600)


@pytest.mark.parametrize("ending", ["closed", "not counted"])
def test_who_loses_stops_fetching_and_has_the_room_back(ending: str) -> None:
    node = bidder(1_000)
    job = offer(blobs=(FILE,))
    node.provider.hear_offer(job, NOW_MS)
    if ending == "closed":
        effects = node.provider.hear_closed(signed(REQUESTER, Closed(job.id, key(4))))
    else:
        effects = node.provider.hear_close(signed(REQUESTER, AuctionClose(job.id, (), NOW_MS)), NOW_MS)
    assert CancelRun(("prefetch", job.id)) in effects
    assert node.provider.capacity(NOW_MS).blob_bytes_free == 1_000
