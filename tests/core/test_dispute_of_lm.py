"""The whole way with a real model: 4-bit weights, a dispute, a proof in a file, a judge without the model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from p2p_node.cli.job_verify import verify
from p2p_node.errors import UserError
from p2p_node.frauds import FraudRefused, read_file
from p2p_node.sim.crypto import SimCrypto
from protocols.effects import Judge, OpenValues, Run, Send, Trace
from protocols.envelope import Signed
from protocols.events import Event, Finding, Heard, RunJudged, RunOpened, RunTraced
from protocols.identity import peer_id
from protocols.messages import Dispute, OperatorFraud, Reveal
from protocols.units import input_digest, units_digest
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
from workloads.lm.input import LmInput, encode_input
from workloads.lm.manifest import builtin_models
from workloads.lm.workload import LmWorkload
from workloads.program.disputes import judge_case, open_chunk, trace_chunk

VERIFIER = 2
UNITS = 34
"""A whole chunk and the beginning of another."""


@dataclass(frozen=True)
class Side:
    """One party: what it runs, and what it stated."""

    number: int
    workload: LmWorkload

    def run(self, run: Run) -> Event:
        task = run.task
        if isinstance(task, Judge):
            return RunJudged(run.key, *judge_case(task.case), 1)
        assert isinstance(task, Trace | OpenValues)
        if isinstance(task, Trace):
            return RunTraced(run.key, *trace_chunk(self.workload, task.input, task.units, task.chunk), 1)
        return RunOpened(
            run.key, *open_chunk(self.workload, task.input, task.units, task.chunk, task.index), 1
        )


@cache
def convicted(variant: str) -> OperatorFraud | None:
    """The proof that a dispute between a cheating executor and an honest verifier ends in."""
    path = builtin_models()["kjv-2m"]
    cheat, honest = LmWorkload(path, "exact14", variant), LmWorkload(path, "exact14")
    given = encode_input(LmInput(((1, 2, 3),), UNITS, seed=7, temperature_milli=0))
    units: list[int] = []
    stated: dict[int, bytes] = {}
    cheat.generate(given, (), lambda first, new: units.extend(new), stated.__setitem__, lambda: False)
    found = honest.recompute(given, units, (0, 1))
    agreed = contract(
        workload="lm.generate",
        model=honest.model,
        input_digest=input_digest(given),
        units_max=UNITS,
        prefix_digest=units_digest(()),
    )
    committing = prover(agreed)
    commitment = committing.commit([stated[0], stated[1]], units, final=True)
    results = [found[0], found[1]]
    body = Dispute(
        commitment.id,
        0,
        opening(committing, commitment, results).raw,
        reveal(VERIFIER, commitment, blind(VERIFIER, commitment, results), results).raw,
    )
    quarrel = open_dispute(
        signed(REQUESTER, body), contract=agreed, commitment=commitment, network=NETWORK, crypto=CRYPTO
    )
    sides = {EXECUTOR: Side(EXECUTOR, cheat), VERIFIER: Side(VERIFIER, honest)}
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
                perform(number, parties[number].handle(sides[number].run(effect), NOW_MS))
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


def test_four_bit_weights_are_convicted_by_one_tensor_without_the_model() -> None:
    proof = convicted("quantized-weights")
    assert proof is not None
    accusation = open_operator_fraud(proof, network=NETWORK, crypto=CRYPTO)
    assert accusation.accused == key(EXECUTOR)
    assert accusation.case is not None
    finding, detail = judge_case(accusation.case)
    assert finding is Finding.GUILTY and detail.startswith("parameter ")
    assert len(signed(VERIFIER, proof).raw) < 64 * 1024


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The proof as a file, in a world where simulated keys are real."""
    monkeypatch.setattr("p2p_node.core.keyring.RealCrypto", SimCrypto)
    proof = convicted("quantized-weights")
    assert proof is not None
    path = tmp_path / "fraud-0.bin"
    path.write_bytes(signed(VERIFIER, proof).raw)
    return path


def test_job_verify_judges_the_file_offline(file: Path) -> None:
    result = CliRunner().invoke(verify, [str(file), "--output", "json"])
    assert result.exit_code == 0, result.output
    shown = json.loads(result.output)
    assert shown["holds"] is True
    assert shown["guilty"] == peer_id(key(EXECUTOR))
    assert shown["false"].startswith("parameter ")


def test_a_damaged_file_is_refused(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    with pytest.raises(FraudRefused):
        read_file(bytes(data), SimCrypto())
    file.write_bytes(data)
    result = CliRunner().invoke(verify, [str(file)])
    assert isinstance(result.exception, UserError)
    assert result.exception.exit_code == 5


def test_what_is_no_fraud_proof_is_refused() -> None:
    with pytest.raises(FraudRefused, match="a 'reveal' is no fraud proof"):
        read_file(signed(VERIFIER, Reveal(bytes(32), bytes(32), bytes(32), (), "exact14")).raw, SimCrypto())
    with pytest.raises(FraudRefused, match="Envelope"):
        read_file(b"not a proof", SimCrypto())
