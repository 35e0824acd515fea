"""docs/sandbox.md tells of every layer and of every way a run ends."""

from __future__ import annotations

import re
from pathlib import Path

from workloads.frames import Failed
from workloads.sandbox import LAYERS

DOCUMENT = (Path(__file__).parents[2] / "docs" / "sandbox.md").read_text()


def test_every_layer_has_a_row() -> None:
    table = DOCUMENT.split("## Layers", 1)[1].split("\n## ", 1)[0]
    rows = [line.split("|")[1].strip().lower() for line in table.splitlines() if line.startswith("| ")]
    assert rows[1:] == list(LAYERS)


def test_every_reason_is_explained() -> None:
    assert Failed.__doc__ is not None
    reasons = set(re.findall(r"``([a-z-]+)``", Failed.__doc__))
    table = DOCUMENT.split("## How a run ends", 1)[1].split("\n## ", 1)[0]
    told = {
        name
        for line in table.splitlines()
        for name in re.findall(r"`([a-z-]+)`", line.split("|")[1] if "|" in line else "")
    }
    assert told == reasons
