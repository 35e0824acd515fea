"""fraud-<n>.bin: one fraud proof as a file, for anybody to judge offline.

The file is the proof's envelope and nothing else. An operator fraud proof needs no model: a worker
process runs one operator again. A chunk's fraud proof takes the model, to recompute the chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

from p2p_node.errors import UserError
from p2p_node.executor import ModelPlace, WorkerExecutor, builtin_places
from p2p_node.workers import WorkerPool
from protocols.crypto import Crypto
from protocols.effects import Judge, Recompute
from protocols.envelope import Signed, network_of, open_envelope
from protocols.errors import PeerFault
from protocols.events import Finding, RunEvent, RunFailed, RunJudged, RunRecomputed
from protocols.limits import EVIDENCE_BYTES_MAX
from protocols.messages import FraudProof, OperatorFraud
from verification.dispute_evidence import OperatorAccusation, open_operator_fraud
from verification.fraud import Accusation, open_proof

__all__ = ["FraudFile", "FraudRefused", "Judgement", "judge_file", "read_file"]


class FraudRefused(Exception):
    """A fraud proof doesn't hold; the message names the rule."""


@dataclass(frozen=True, slots=True)
class FraudFile:
    """A fraud proof whose parts hold together; what is left is arithmetic."""

    network: str
    proof: Signed[Any]
    accusation: OperatorAccusation | Accusation


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the arithmetic says."""

    finding: Finding
    detail: str
    """The operator, the parameter or the chunk."""


def read_file(data: bytes, crypto: Crypto) -> FraudFile:
    """Check a fraud proof but for the arithmetic.

    Args:
        data: the whole file.
        crypto: judges signatures.

    Raises:
        FraudRefused: the first rule that it breaks.
    """
    try:
        network = network_of(data, bytes_max=EVIDENCE_BYTES_MAX)
        proof: Signed[Any] = open_envelope(data, network=network, crypto=crypto, bytes_max=EVIDENCE_BYTES_MAX)
        accusation: OperatorAccusation | Accusation
        match proof.body:
            case OperatorFraud() as body:
                accusation = open_operator_fraud(body, network=network, crypto=crypto)
            case FraudProof() as body:
                accusation = open_proof(body, network=network, crypto=crypto)
            case body:
                raise FraudRefused(f"a {body.KIND!r} is no fraud proof")
    except PeerFault as fault:
        raise FraudRefused(str(fault)) from fault
    return FraudFile(network, proof, accusation)


def judge_file(
    file: FraudFile, places: Mapping[str, ModelPlace] | None = None, blob_folder: Path | None = None
) -> Judgement:
    """Run what convicts or acquits, in a worker process of this machine.

    Args:
        file: as `read_file` gave it.
        places: models by name; None for the built-in ones.
        blob_folder: with what the job's input and units name, each file called by its digest.

    Raises:
        UserError: it can't be run here: a chunk's proof needs the model.
    """
    accusation = file.accusation
    run = partial(_run, places or builtin_places(), blob_folder)
    if isinstance(accusation, OperatorAccusation):
        if accusation.case is None:
            return Judgement(Finding.GUILTY, "its signed trace contradicts its signed digest")
        event = trio.run(run, Judge(accusation.case))
        if isinstance(event, RunJudged):
            return Judgement(event.finding, event.detail)
    else:
        event = trio.run(run, accusation.task)
        if isinstance(event, RunRecomputed):
            is_guilty = accusation.is_guilty(dict(event.digests)[accusation.chunk])
            finding = Finding.GUILTY if is_guilty else Finding.ACQUITTED
            return Judgement(finding, f"chunk {accusation.chunk}, recomputed")
    if isinstance(event, RunFailed):
        raise UserError(f"the proof holds together, but can't be judged here: {event.detail}")
    raise AssertionError(f"a judgement ended with {event}")


async def _run(
    places: Mapping[str, ModelPlace], blob_folder: Path | None, task: Judge | Recompute
) -> RunEvent:
    pool = WorkerPool(1)
    models = {place.digest: place for place in places.values()}
    executor = WorkerExecutor(pool, pool, models, blob_folder=blob_folder)
    ended = trio.Event()
    events: list[RunEvent] = []

    def on_event(event: RunEvent) -> None:
        events.append(event)
        ended.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        executor.start(("judge", b""), task, on_event)
        await ended.wait()
        nursery.cancel_scope.cancel()
    return events[-1]
