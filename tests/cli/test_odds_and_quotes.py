"""`verify odds`, `job quote` and `model calibrate`: what is shown before anything is spent."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2p_node.cli import model_calibrate
from p2p_node.client import connect
from p2p_node.errors import ExitCode, UserError
from tests.api.rig import PEERS, Rig
from tests.cli.conftest import Run
from verification.draw_odds import Assumptions, DrawOdds, miss_chance
from verification.odds import escape_probability
from workloads.lm import calibrate
from workloads.lm.manifest import builtin_models


def rows(run: Run, *arguments: str) -> Any:
    return json.loads(run("verify", "odds", *arguments, "-o", "json").stdout)


def test_the_table_of_odds(run: Run) -> None:
    found = rows(run, "--verifiers", "2,4", "--chunks", "2", "--forged", "0.25,1", "--electors", "12")
    assert [(row["forged"], row["verifiers"]) for row in found] == [(0.25, 2), (0.25, 4), (1, 2), (1, 4)]
    odds = DrawOdds((1,) * 12, Assumptions(colluding=0.2))
    assert found[0]["undetected"] == odds.undetected(2_000, miss_chance(4, 1, 2))
    assert found[0]["accepted"] == odds.accepted(2_000, miss_chance(4, 1, 2))
    assert found[1]["formula"] == escape_probability(
        expected_verifiers=4, samples_per_verifier=2, forged_share=0.25, colluding_share=0.2
    )
    assert "0.442" in run("verify", "odds", "--verifiers", "2", "--chunks", "2", "--forged", "0.25").stdout


def test_what_a_chance_takes(run: Run) -> None:
    [row] = rows(run, "--target", "1e-3", "--forged", "0.25", "--electors", "40")
    assert row["undetected"] <= 1e-3 and row["chunks"] == 4
    with pytest.raises(UserError, match="out of reach: 3 electors"):
        run("verify", "odds", "--target", "1e-9", "--electors", "3")


def test_measured_rows_agree_and_repeat(run: Run) -> None:
    arguments = (
        "--verifiers",
        "2",
        "--chunks",
        "1",
        "--forged",
        "0.5",
        "--electors",
        "5",
        "--simulate",
        "30",
    )
    [row] = rows(run, *arguments)
    assert row["agrees"] and 0 <= row["accepted_measured"] <= 1
    assert rows(run, *arguments) == [row] != rows(run, *arguments, "--seed", "2")


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (("--verifiers", "0"), ExitCode.USAGE),
        (("--chunks", "some"), ExitCode.USAGE),
        (("--colluding", "1"), ExitCode.USAGE),
        (("--target", "0"), ExitCode.USAGE),
    ],
)
def test_odd_options_are_refused(run: Run, arguments: tuple[str, ...], exit_code: ExitCode) -> None:
    assert run("verify", "odds", *arguments).exit_code == exit_code


@pytest.mark.parametrize(
    "arguments", [("--forged", "2"), ("--chunks", "1.5"), ("--simulate", "5", "--lazy", "0.1")]
)
def test_options_that_contradict_each_other(run: Run, arguments: tuple[str, ...]) -> None:
    with pytest.raises(UserError):
        run("verify", "odds", *arguments)


def test_odds_need_neither_node_nor_torch() -> None:
    program = (
        "import sys; from click.testing import CliRunner; from p2p_node.cli import cli\n"
        "arguments = ['verify', 'odds', '--simulate', '2', '--forged', '1', '--chunks', '1']\n"
        "result = CliRunner().invoke(cli, arguments)\n"
        "assert result.exit_code == 0, result.output\n"
        "sys.exit(bool({'torch', 'libp2p', 'numpy'} & sys.modules.keys()))\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# --- Quotes ------------------------------------------------------------------------------------


def test_a_quote_offers_nothing(run: Run, rig: Rig, job_file: Callable[..., Path]) -> None:
    path = job_file()
    before = len(rig.node.book._records)
    found = json.loads(run("job", "quote", path, "-o", "json").stdout)
    assert found["reason"] == ""
    assert (found["peers_able"], found["electors"], found["segments"]) == (PEERS - 1, PEERS - 2, 1)
    assert found["total_micros"] == found["execution_micros"] + found["verification_micros"]
    assert len(found["best_asks"]) == PEERS - 1
    assert found["best_asks"][0]["price_micros"] == min(ask["price_micros"] for ask in found["best_asks"])
    assert len(rig.node.book._records) == before
    shown = run("job", "quote", path).stdout
    assert "execution_micros" in shown and "checked_share" in shown


def test_a_quote_says_why_not(run: Run, tmp_path: Path, job_file: Callable[..., Path]) -> None:
    text = job_file().read_text()
    path = tmp_path / "asked.yaml"
    path.write_text(text.replace("verify: {verifiers: 2, chunks: all}", "verify: {escape: 1e-6}"))
    result = run("job", "quote", path, "-o", "json")
    assert result.exit_code == ExitCode.NO_BIDS
    assert "out of reach" in json.loads(result.stdout)["reason"]
    path.write_text(text.replace("max_price: 500", "max_price: 0"))
    result = run("job", "quote", path, "-o", "json")
    assert result.exit_code == ExitCode.NO_BIDS
    assert json.loads(result.stdout)["reason"].startswith("no peer that is known runs")
    path.write_text(text.replace("chunks: all}", "chunks: all, profile: exact21}"))
    result = run("job", "quote", path, "-o", "json")
    assert result.exit_code == ExitCode.NO_BIDS
    reason = json.loads(result.stdout)["reason"]
    assert reason.startswith(
        "nobody known here has model kjv-2m for lm.generate in profile exact21; peers run"
    )


def test_a_bad_file_is_refused_by_the_node_too(rig: Rig) -> None:
    with connect(rig.datadir) as client, pytest.raises(UserError, match="apiVersion"):
        client.quote(b"kind: Job")


# --- Calibration -------------------------------------------------------------------------------


CALIBRATED: dict[str, Any] = {
    "model": "00",
    "bounds": {"agree_steps": 1, "convict_steps": 2, "agree_margin_ppb": 3, "convict_margin_ppb": 4},
    "honest": {"one thread": {"exact_steps_max": 1}},
    "cheats": {"int4 weights": {"exact_steps_min": 2}},
    "overlaps": [],
}


def test_calibrating_prints_and_writes(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "calibrate", lambda *_, **__: CALIBRATED)
    result = run("model", "calibrate", tmp_path, "--write", "-o", "json")
    assert result.exit_code == ExitCode.OK
    assert json.loads((tmp_path / "tolerance.json").read_text()) == CALIBRATED
    assert "int4 weights" in run("model", "calibrate", tmp_path).stdout


def test_what_cannot_be_told_apart_is_said(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = CALIBRATED | {"overlaps": ["int4 weights"]}
    monkeypatch.setattr(calibrate, "calibrate", lambda *_, **__: found)
    result = run("model", "calibrate", tmp_path)
    assert result.exit_code == ExitCode.VERIFICATION_FAILED
    assert "can't be told from them" in result.stderr


def test_calibrating_what_is_no_model(run: Run, tmp_path: Path) -> None:
    assert builtin_models() and model_calibrate.calibrate.name == "calibrate"
    with pytest.raises(UserError, match="calibrating"):
        run("model", "calibrate", tmp_path / "nothing")
    with pytest.raises(UserError, match="exclude each other"):
        run("model", "calibrate", tmp_path, "--write", "--quick")
