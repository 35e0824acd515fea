"""The demonstration, on the swarm of the other tests."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from p2p_node.demo import show
from p2p_node.swarm import Swarm
from tests.swarm.jobs import DOCUMENT


def test_all_that_the_demo_claims_holds(
    swarm: Swarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    console = Console(file=io.StringIO(), width=200)
    document = DOCUMENT.format(max_tokens=40).encode()
    failures = show(swarm, document, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert failures == [], shown
    cheater = swarm.peers[-1]
    # Every step of the way is shown: bids, the award and its reason, draws, verdicts, the conviction.
    for step in (
        "asks 100 per token",
        f"{cheater.peer_id[-8:]} wins: lowest of",
        "recomputes chunks 0, 1",
        "differs at chunks",
        f"{cheater.peer_id[-8:]}: fraud in segment 0 at chunk",
        "caught by  chunk",
        "next lowest score",
        "lost to a peer that failed",
    ):
        assert step in shown, f"{step!r} isn't in:\n{shown}"
    assert json.loads((tmp_path / "receipt.json").read_bytes())["state"] == "verified"
