"""Training and clients' programs that were computed otherwise: each dispute ends at one operator."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from p2p_node.cli.job_verify import verify
from p2p_node.sim.crypto import SimCrypto
from protocols.effects import Judge, OpenValues, Run, Send, Trace
from protocols.envelope import Signed
from protocols.events import Event, Finding, Heard, RunJudged, RunOpened, RunTraced
from protocols.identity import peer_id
from protocols.messages import Dispute, OperatorFraud
from protocols.units import chunk_count, input_digest, units_digest
from tests.support.builders import (
    CRYPTO,
    EXECUTOR,
    NETWORK,
    NOW_MS,
    REQUESTER,
    blind,
    contract,
    key,
    opening,
    prover,
    reveal,
    signed,
)
from verification.dispute import open_dispute
from verification.dispute_evidence import open_operator_fraud
from verification.dispute_party import Party
from workloads.program.disputes import judge_case, open_chunk, trace_chunk
from workloads.registry import KINDS, open_workload
from workloads.workload import Workload

VERIFIER = 2
CHEATS = {
    "altered-operator": ("program.run", "linear"),
    "skipped-operator": ("program.run", "log_softmax"),
    "altered-training-step": ("training.run", "adamw"),
    # The first operator of the backward pass is the gradient of the loss, one.
    "skipped-training-step": ("training.run", "full"),
}
"""The workload, and the operator that convicts."""


def answer(workload: Workload, run: Run) -> Event:
    """What a worker with this workload says."""
    task = run.task
    if isinstance(task, Judge):
        return RunJudged(run.key, *judge_case(task.case), 1)
    assert isinstance(task, Trace | OpenValues)
    if isinstance(task, Trace):
        return RunTraced(run.key, *trace_chunk(workload, task.input, task.units, task.chunk), 1)
    return RunOpened(run.key, *open_chunk(workload, task.input, task.units, task.chunk, task.index), 1)


@cache
def convicted(variant: str, profile: str) -> OperatorFraud | None:
    """The proof that a dispute between a cheating executor and an honest verifier ends in."""
    kind = KINDS[CHEATS[variant][0]]
    (model,) = kind.models()
    cheat = open_workload(kind.name, model.path, profile, variant)
    honest = open_workload(kind.name, model.path, profile)
    given = kind.probe()
    units: list[int] = []
    stated: dict[int, bytes] = {}
    cheat.generate(given, (), lambda first, new: units.extend(new), stated.__setitem__, lambda: False)
    chunks = range(chunk_count(len(units), kind.chunk_units))
    found = honest.recompute(given, units, chunks)
    agreed = contract(
        workload=kind.name,
        model=honest.model,
        profile=profile,
        input_digest=input_digest(given),
        units_max=len(units),
        chunk_units=kind.chunk_units,
        segment_chunks=len(chunks),
        samples=len(chunks),
        prefix_digest=units_digest(()),
    )
    committing = prover(agreed)
    commitment = committing.commit([stated[chunk] for chunk in chunks], units, final=True)
    results = [found[chunk] for chunk in chunks]
    differing = next(chunk for chunk in chunks if stated[chunk] != found[chunk])
    body = Dispute(
        commitment.id,
        differing,
        opening(committing, commitment, results).raw,
        reveal(VERIFIER, commitment, blind(VERIFIER, commitment, results), results).raw,
    )
    quarrel = open_dispute(
        signed(REQUESTER, body), contract=agreed, commitment=commitment, network=NETWORK, crypto=CRYPTO
    )
    sides = {EXECUTOR: cheat, VERIFIER: honest}
    parties = {
        number: Party(
            quarrel,
            key(number),
            input=given,
            units=units,
            network=NETWORK,
            crypto=CRYPTO,
            sign=lambda body, number=number: signed(number, body),
        )
        for number in sides
    }
    waiting: list[tuple[int, Signed[Any]]] = []

    def perform(number: int, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, Run):
                perform(number, parties[number].handle(answer(sides[number], effect), NOW_MS))
            elif isinstance(effect, Send):
                # The requester passes it on.
                waiting.append((VERIFIER if number == EXECUTOR else EXECUTOR, effect.message))

    for number, party in parties.items():
        perform(number, party.start(NOW_MS))
    while waiting:
        to, message = waiting.pop(0)
        perform(to, parties[to].handle(Heard(message), NOW_MS))
    assert parties[EXECUTOR].accusation is None
    return parties[VERIFIER].accusation


@pytest.mark.parametrize("profile", ["exact14", "exact21"])
@pytest.mark.parametrize("variant", CHEATS)
def test_one_operator_convicts(variant: str, profile: str) -> None:
    proof = convicted(variant, profile)
    assert proof is not None
    accusation = open_operator_fraud(proof, network=NETWORK, crypto=CRYPTO)
    assert accusation.accused == key(EXECUTOR)
    assert accusation.case is not None
    finding, detail = judge_case(accusation.case)
    assert finding is Finding.GUILTY
    assert detail.startswith("step ") and detail.endswith(f" {CHEATS[variant][1]}")


def test_job_verify_judges_the_file_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Simulated keys stand for real ones; the worker that judges is real, and has only the file.
    monkeypatch.setattr("p2p_node.core.keyring.RealCrypto", SimCrypto)
    proof = convicted("altered-operator", "exact21")
    assert proof is not None
    path = tmp_path / "fraud-0.bin"
    path.write_bytes(signed(VERIFIER, proof).raw)
    result = CliRunner().invoke(verify, [str(path), "--output", "json"])
    assert result.exit_code == 0, result.output
    shown = json.loads(result.output)
    assert (shown["holds"], shown["guilty"]) == (True, peer_id(key(EXECUTOR)))
    assert (shown["workload"], shown["false"].split()[-1]) == ("program.run", "linear")
