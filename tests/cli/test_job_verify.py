"""`p2p-node job verify`: offline, without torch, and by recomputing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from p2p_node.cli.job_verify import _ReceiptRefused
from p2p_node.client import connect
from p2p_node.core.keyring import RealCrypto
from p2p_node.errors import UserError
from p2p_node.receipts import check_file
from p2p_node.recompute import recompute_receipt
from tests.api.rig import Rig, job_document
from tests.cli.conftest import Run
from workloads.lm.generate import LmExecutor
from workloads.lm.input import decode_input
from workloads.lm.manifest import builtin_models


@pytest.fixture(scope="module")
def receipt(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a job whose parties agreed on digests that no model gives."""
    path = tmp_path_factory.mktemp("receipt") / "receipt.json"
    with connect(rig.datadir) as client:
        job = client.submit(job_document())
        list(client.events(job["id"]))
        path.write_bytes(client.receipt(job["id"]))
    return path


def test_what_was_checked_and_who_earned(run: Run, receipt: Path) -> None:
    result = run("job", "verify", receipt, "-o", "json")
    checked = json.loads(result.stdout)
    assert (result.exit_code, checked["holds"], checked["state"]) == (0, True, "verified")
    assert checked["checked"]["contracts"] == 1
    assert checked["checked"]["draws"] == checked["checked"]["verdicts"] == 2
    report = check_file(receipt.read_bytes(), RealCrypto())
    assert sum(checked["earnings_micros"].values()) == sum(report.earnings.values())
    assert "--recompute" in run("job", "verify", receipt).stderr


@pytest.mark.parametrize("at", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_one_flipped_byte_is_refused(run: Run, receipt: Path, tmp_path: Path, at: float) -> None:
    content = bytearray(receipt.read_bytes())
    content[int(at * len(content))] ^= 1
    path = tmp_path / "flipped.json"
    path.write_bytes(content)
    with pytest.raises(_ReceiptRefused, match=f"{path} doesn't hold: ") as refused:
        run("job", "verify", path)
    assert refused.value.exit_code == 5


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[" * 100_000, b"0"])
def test_junk_is_refused(run: Run, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "junk.json"
    path.write_bytes(content)
    with pytest.raises(_ReceiptRefused, match="doesn't hold"):
        run("job", "verify", path)


def test_a_file_that_is_not_there(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't read") as refused:
        run("job", "verify", tmp_path / "nowhere.json")
    assert refused.value.exit_code == 2


def test_checking_needs_neither_torch_nor_network(receipt: Path) -> None:
    program = (
        "import sys\nfrom p2p_node.cli import main\n"
        f"sys.argv = ['p2p-node', 'job', 'verify', {str(receipt)!r}]\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "heavy = {'torch', 'libp2p', 'trio', 'httpx', 'numpy', 'starlette'} & sys.modules.keys()\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_recomputing_tells_truth_from_agreement(run: Run, receipt: Path) -> None:
    with pytest.raises(_ReceiptRefused, match="was right, and recomputed, chunks 0, 1 differ"):
        run("job", "verify", receipt, "--recompute")
    report = check_file(receipt.read_bytes(), RealCrypto())
    (claim,) = report.claims
    executor = LmExecutor(builtin_models()["kjv-2m"], "exact14")
    honest = executor.recompute(decode_input(claim.task.input), claim.task.units, claim.task.chunks)
    true_claim = replace(claim, digests=tuple(sorted(honest.items())))
    half_true = replace(claim, digests=((0, honest[0]), claim.digests[1]))
    results = recompute_receipt(replace(report, claims=(true_claim, half_true)))
    assert [result.wrong_chunks for result in results] == [(), (1,)]
    assert [result.holds for result in results] == [True, False]


def test_a_model_that_is_not_here_cannot_be_recomputed(receipt: Path) -> None:
    report = replace(check_file(receipt.read_bytes(), RealCrypto()), model=bytes(32))
    with pytest.raises(UserError, match="isn't on this machine"):
        recompute_receipt(report)
