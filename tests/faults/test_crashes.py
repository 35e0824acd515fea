"""One crash in one job, at a sample of all writes; `python -m benchmarks.crashes` plays every one of them."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.crashes import BACK_MS, MOMENTS, ROLES, Case, play
from p2p_node.core.node import NodeCore

BUSY = {"requester": range(1, 31, 5), "executor": range(1, 15, 3), "verifier": range(2, 14, 3)}
"""Writes while something is under way; later ones are adverts."""

CASES = [
    Case(role, write, MOMENTS[number % len(MOMENTS)], BACK_MS[number % len(BACK_MS)])
    for role in ROLES
    for number, write in enumerate(BUSY[role])
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.role}-{case.write}-{case.moment}")
def test_a_crash_breaks_no_promise(case: Case) -> None:
    crash = play(case)
    assert crash.writes >= case.write, "it died"
    assert crash.broken == []


@pytest.mark.parametrize(
    ("forgotten", "case"),
    [
        ("contracts", Case("executor", 8, "after", 2_000)),
        ("lanes", Case("verifier", 7, "before", 2_000)),
        ("outbox", Case("requester", 21, "after", 2_000)),
    ],
)
def test_a_promise_that_is_forgotten_is_noticed(
    forgotten: str, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    restore = NodeCore.restore

    def restore_less(self: NodeCore, **kept: Any) -> Any:
        return restore(self, **{**kept, forgotten: {}})

    monkeypatch.setattr(NodeCore, "restore", restore_less)
    assert play(case).broken != []
