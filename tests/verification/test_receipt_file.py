"""receipt.json: one right file for each receipt, and the arithmetic that signatures leave open."""

from __future__ import annotations

import base64
import json
import random
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from p2p_node.receipts import FILE_BYTES_MAX, check_file, recompute_claims, render, write
from protocols.digest import tagged
from protocols.effects import Recompute
from protocols.envelope import seal
from protocols.identity import peer_id
from tests.support.forgery import at, opened, put
from tests.support.jobs import KINDS, finished
from tests.support.keys import CRYPTO, keyring
from tests.support.swarm import NETWORK, UNITS_MAX, honest_digest
from verification.receipt import ReceiptError, check_receipt


def evidence(kind: str) -> bytes:
    receipt = finished(kind).receipt
    assert receipt is not None
    return receipt.raw


def file_of(kind: str) -> bytes:
    return render(evidence(kind), network=NETWORK, crypto=CRYPTO)


@pytest.mark.parametrize("kind", KINDS)
def test_every_real_receipt_becomes_a_file_that_holds(kind: str) -> None:
    assert check_file(file_of(kind), CRYPTO).state == finished(kind).state.value


def test_the_file_says_what_the_evidence_proves() -> None:
    document = json.loads(file_of("auction"))
    executor = peer_id(keyring(1).public)
    assert document["requester"] == peer_id(keyring(0).public)
    assert document["executors"] == [executor]
    assert document["state"] == "verified"
    assert document["units"] == UNITS_MAX
    assert document["earnings_micros"][executor] == 102 * UNITS_MAX
    assert len(document["attempts"][0]["segments"]) == 4
    assert base64.b64decode(document["evidence"]) == evidence("auction")


def test_writing_checks_first_and_leaves_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "receipt.json"
    with pytest.raises(ReceiptError):
        write(path, evidence("auction")[:-1], network=NETWORK, crypto=CRYPTO)
    assert list(tmp_path.iterdir()) == []
    write(path, evidence("auction"), network=NETWORK, crypto=CRYPTO)
    assert [entry.name for entry in tmp_path.iterdir()] == ["receipt.json"]
    assert path.read_bytes() == file_of("auction")


def test_no_byte_of_the_file_can_change() -> None:
    data = file_of("auction")
    start = data.index(b'"evidence"')
    end = data.index(b"\n", start)
    chance = random.Random(3)
    readable = [*range(start), *range(end, len(data))]
    positions = [*chance.sample(readable, 80), *chance.sample(range(start, end), 80), 0, len(data) - 1]
    for position in positions:
        flipped = bytearray(data)
        flipped[position] ^= 1 << chance.randrange(8)
        with pytest.raises(ReceiptError):
            check_file(bytes(flipped), CRYPTO)


def test_no_byte_can_be_added_or_cut() -> None:
    data = file_of("auction")
    for changed in (data + b"\n", b" " + data, data[:-1], data.replace(b"\n", b"\r\n"), b""):
        with pytest.raises(ReceiptError):
            check_file(changed, CRYPTO)


def test_each_field_is_named_when_it_lies() -> None:
    document = json.loads(file_of("auction"))
    for name, value in document.items():
        lie = {str: f"{value}x", int: 7, list: [*value, 1] if isinstance(value, list) else [], dict: {}}
        changed = document | {name: lie[type(value)]}
        with pytest.raises(ReceiptError) as caught:
            check_file((json.dumps(changed, sort_keys=True, indent=2) + "\n").encode(), CRYPTO)
        named = f"file field {name!r}"
        # A wrong network shows in the evidence first.
        assert caught.value.step == ("receipt" if name == "network" else named)


@pytest.mark.parametrize(
    ("change", "step"),
    [
        (lambda d: d | {"comment": "hello"}, "file field 'comment'"),
        (lambda d: {k: v for k, v in d.items() if k != "state"}, "file field 'state'"),
        (lambda d: {k: v for k, v in d.items() if k != "evidence"}, "file field 'evidence'"),
        (lambda d: d | {"network": 5}, "file field 'network'"),
        (lambda d: d | {"format": "p2p-node/receipt/2"}, "file field 'format'"),
        (lambda d: d | {"finished_ms": float(d["finished_ms"])}, "file field 'finished_ms'"),
        (lambda d: [d], "file"),
    ],
)
def test_fields_cannot_be_added_dropped_or_retyped(change: Callable[[Any], Any], step: str) -> None:
    changed = change(json.loads(file_of("auction")))
    with pytest.raises(ReceiptError) as caught:
        check_file((json.dumps(changed, sort_keys=True, indent=2) + "\n").encode(), CRYPTO)
    assert caught.value.step == step


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xfe",
        b"[" * 100_000,
        b"9" * 10_000,
        b"null",
        b"{}",
        b'{"format": "p2p-node/receipt/1", "network": "\\ud800", "evidence": "AAAA"}',
        '{"format": "p2p-node/receipt/1", "network": "x", "evidence": "é"}'.encode(),
        b'{"format": "p2p-node/receipt/1", "network": "x", "evidence": "A"}',
    ],
)
def test_rubbish_is_refused_politely(data: bytes) -> None:
    with pytest.raises(ReceiptError):
        check_file(data, CRYPTO)


def test_a_huge_file_is_refused_unread() -> None:
    with pytest.raises(ReceiptError, match="exceed"):
        check_file(bytes(FILE_BYTES_MAX + 1), CRYPTO)


# --- Recomputation -----------------------------------------------------------------------------


def honest(task: Recompute) -> Mapping[int, bytes]:
    return {chunk: honest_digest(task.input, task.units, chunk) for chunk in task.chunks}


@pytest.mark.parametrize("kind", KINDS)
def test_every_claim_of_a_real_receipt_holds(kind: str) -> None:
    report = check_receipt(evidence(kind), network=NETWORK, crypto=CRYPTO)
    results = recompute_claims(report, honest)
    assert len(results) == len(report.claims)
    assert all(result.holds for result in results)


def test_a_cheat_is_convicted_by_the_chunk_that_it_forged() -> None:
    report = check_receipt(evidence("lying executor"), network=NETWORK, crypto=CRYPTO)
    convicted = [r for r in recompute_claims(report, honest) if r.wrong_chunks]
    assert [(r.claim.peer, r.claim.role, r.wrong_chunks) for r in convicted] == [
        (keyring(1).public, "executor", (5,))
    ]


def test_a_false_accusation_shows() -> None:
    """If honest machines gave what the accused signed, the accusation is what doesn't hold."""

    def as_the_accused(task: Recompute) -> Mapping[int, bytes]:
        digests = dict(honest(task))
        return digests | {c: tagged("lie", d) for c, d in digests.items() if c == 5}

    report = check_receipt(evidence("lying executor"), network=NETWORK, crypto=CRYPTO)
    broken = [r.claim for r in recompute_claims(report, as_the_accused) if not r.holds]
    assert {claim.role for claim in broken} == {"executor", "verifier"}
    assert all(dict(claim.digests).keys() >= {5} for claim in broken)


def test_an_honest_verifier_that_was_not_paid_after_fraud_shows() -> None:
    """No signature tells whether it was right about the disputed chunk; arithmetic does."""
    receipt = finished("lying executor").receipt
    assert receipt is not None
    verifier = ("attempts", 0, "segments", 2, "verifiers", 0)
    body = receipt.body
    for name in ("voucher", "voucher_receipt"):
        body = put((*verifier, name), b"")(body)
    cheated = opened(at(body, (*verifier, "claim"))).signer
    raw = seal(body, network=NETWORK, key=keyring(0)).raw
    report = check_receipt(raw, network=NETWORK, crypto=CRYPTO)
    broken = [r.claim for r in recompute_claims(report, honest) if not r.holds]
    assert [(claim.peer, claim.role, claim.is_right) for claim in broken] == [(cheated, "verifier", False)]


def test_one_run_settles_all_claims_about_one_segment() -> None:
    report = check_receipt(evidence("lying verifier"), network=NETWORK, crypto=CRYPTO)
    tasks: list[Recompute] = []

    def counting(task: Recompute) -> Mapping[int, bytes]:
        tasks.append(task)
        return honest(task)

    assert len(recompute_claims(report, counting)) == 16
    assert [task.chunks for task in tasks] == [(0, 1), (2, 3), (4, 5), (6, 7)]


def test_checking_needs_neither_torch_nor_a_network() -> None:
    code = "import sys, p2p_node.receipts; print(*{'torch', 'libp2p', 'trio'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
