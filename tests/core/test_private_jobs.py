"""Private jobs: what everybody hears of them, who may have what they name, and what stays off disks."""

from __future__ import annotations

import dataclasses

from p2p_node.core.attempt import Outcome
from p2p_node.core.requester import offer_of
from protocols.blobs import Blob
from protocols.effects import FetchBlobs, Persist, Prefetch, Publish, Recompute, Run
from protocols.events import RunFailed, RunRecomputed
from protocols.messages import BlobRecord, CommitmentNotice, FraudProof
from protocols.units import input_digest
from tests.core.test_attempt import JOB, Trial, ended, request
from tests.core.test_engagement import Work
from tests.support.builders import EXECUTOR, INPUT, NOW_MS, REQUESTER, UNITS, key, offer
from tests.support.machines import core, sent, the
from verification.round import Verdict

BLOBS = (Blob(b"a" * 32, 1_000), Blob(b"b" * 32, 500))


def differing(**fields: bool) -> tuple[Trial, bytes, list[object]]:
    """A round whose verifier and executor differ."""
    trial = Trial(**fields).accepted()
    trial.output(0, len(UNITS))
    first = trial.commitments(variant=b"forged")[0]
    trial.commit(first)
    return trial, first.id, trial.verify(first)


def test_everybody_hears_how_much_it_names_and_not_what() -> None:
    wanted = dataclasses.replace(request(), input_blobs=BLOBS)
    told = offer_of(wanted, nonce=bytes(16), sent_ms=1, expires_ms=2)
    assert told.blobs == tuple(BlobRecord(blob.digest, blob.size_bytes) for blob in BLOBS)
    private = dataclasses.replace(wanted, is_private=True)
    told = offer_of(private, nonce=bytes(16), sent_ms=1, expires_ms=2)
    assert told.is_private and told.blobs == (BlobRecord(bytes(32), 1_500),)


def test_bidders_make_room_and_fetch_nothing() -> None:
    provider = core(EXECUTOR).provider
    record = (BlobRecord(bytes(32), 1_500),)
    effects = provider.hear_offer(offer(blobs=record, is_private=True), NOW_MS)
    assert sent(effects) != []
    assert not any(isinstance(effect, Run) and isinstance(effect.task, Prefetch) for effect in effects)
    assert provider.capacity(NOW_MS).blob_bytes_free == provider.blob_bytes_max - 1_500


def test_its_parties_are_the_executor_and_verifiers_at_work() -> None:
    trial = Trial(is_private=True).accepted()
    assert trial.attempt.parties == {key(EXECUTOR)}
    trial.output(0, len(UNITS))
    first, second = trial.commitments()
    trial.commit(first)
    trial.commit(second)
    trial.verify(first, 2)
    assert trial.attempt.parties == {key(EXECUTOR)}
    trial, *_ = differing(is_private=True)
    assert trial.attempt.parties == {key(EXECUTOR), key(2)}


def test_what_it_leaves_is_fetched_as_its_own() -> None:
    trial = Trial(is_private=True, has_output_blobs=True).accepted()
    trial.output(0, len(UNITS))
    effects = trial.commit(trial.commitments()[0])
    (task,) = [effect.task for effect in effects if isinstance(effect, Run)]
    assert isinstance(task, FetchBlobs) and task.private_job == JOB


def test_who_computes_knows_whose_it_is() -> None:
    assert Work().engagement.award.body.is_private is False
    work = Work(is_private=True)
    (run,) = [effect for effect in work.started if isinstance(effect, Run)]
    assert run.task.private_to == key(REQUESTER)  # type: ignore[union-attr]


def test_its_fraud_is_judged_here_and_shown_to_nobody() -> None:
    for is_private in (False, True):
        trial, first, effects = differing(is_private=is_private)
        (settle,) = [e.task for e in effects if isinstance(e, Run) and e.key[0] == "settle"]
        assert isinstance(settle, Recompute)
        assert settle.private_to == (key(REQUESTER) if is_private else b"")
        assert bool(trial.node.disputes.umpires) is not is_private
        settled = RunRecomputed(("settle", first), ((0, trial.truth[0]),), 1)
        effects = trial.attempt.handle(settled, NOW_MS)
        assert ended(effects, Outcome.FRAUD)
        shown = [e for e in effects if isinstance(e, Publish) and isinstance(e.message.body, FraudProof)]
        assert bool(shown) is not is_private
        # It stays with the requester's receipt all the same.
        assert any(isinstance(e, Persist) and e.table == "frauds" for e in effects)


def test_where_the_requester_cant_recompute_nothing_is_settled() -> None:
    trial, first, _ = differing(is_private=True)
    trial.attempt.handle(RunFailed(("settle", first), "worker-died", "it died"), NOW_MS)
    assert trial.attempt.rounds[first].verdict is Verdict.UNSETTLED


def test_neither_input_nor_output_goes_to_the_executors_disk() -> None:
    for is_private in (False, True):
        work = Work(is_private=is_private)
        effects = [*work.started, *work.all()]
        written = b"".join(e.value or b"" for e in effects if isinstance(e, Persist))
        assert (INPUT in written) is not is_private
        published = [e.message.body for e in effects if isinstance(e, Publish)]
        assert published and all(isinstance(body, CommitmentNotice) for body in published)
        assert not any(INPUT in body.award or INPUT in body.commitment for body in published)  # type: ignore[union-attr]


def test_a_proposal_must_say_the_same_as_the_offer() -> None:
    trial = Trial(is_private=True)
    assert trial.attempt.award.body.is_private
    assert trial.attempt.award.body.input_digest == input_digest(INPUT)
    assert the(sent(trial.started)).body.input == INPUT
