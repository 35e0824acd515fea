"""Every test that docs/hardening.md names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/hardening.md").read_text()
NAMED = re.findall(r"`(tests/\S+\.py)::(\w+)`", DOCUMENT)
FAULTS_MIN = 24


def test_every_test_that_is_named_exists() -> None:
    missing = [
        f"{path}::{name}"
        for path, name in NAMED
        if not re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE)
    ]
    assert missing == []


def test_every_row_names_a_test() -> None:
    faults = DOCUMENT.partition("## Faults of libp2p")[2]
    rows = [line for line in faults.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= FAULTS_MIN
    assert all("::" in row for row in rows)
