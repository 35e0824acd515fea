"""SECURITY.md names, for each threat, tests; here it is seen that they exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "SECURITY.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", DOCUMENT)))


@cache
def names_in(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, functions))


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_each_named_test_exists(path: str, name: str) -> None:
    assert name in names_in(path)


def test_each_threat_names_what_stops_it_and_a_test() -> None:
    table = DOCUMENT.partition("| who |")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(table) > 20
    for row in table:
        _, who, what, stops, shown, _ = row.split("|")
        assert who.strip()
        assert what.strip()
        assert stops.strip()
        assert "`tests/" in shown, row


def test_files_that_it_names_exist() -> None:
    links = re.findall(r"\]\(([\w./-]+\.md)\)", DOCUMENT)
    assert links
    assert all((ROOT / link).exists() for link in links)
