"""docs/verification.md names every attack as the catalogue does."""

from __future__ import annotations

import re
from pathlib import Path

from p2p_node.hostile import ATTACKS

TEXT = (Path(__file__).parents[2] / "docs" / "verification.md").read_text()


def test_every_attack_is_in_the_table_with_the_check_that_stops_it() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (.+) \| (.+) \|$", TEXT, re.MULTILINE)
    told = {
        kind: (does, caught_by) for kind, does, caught_by in rows if kind not in {"homogeneous", "native"}
    }
    assert told == {a.kind: (a.does, a.caught_by) for a in ATTACKS.values()}


def test_no_table_is_left_to_be_filled() -> None:
    assert "@@" not in TEXT
