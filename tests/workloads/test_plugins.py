"""A package that adds a kind of work, as somebody would write and install it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, distribution
from pathlib import Path

import pytest

from p2p_node.jobspec import JobSpecError
from p2p_node.pluginspec import plugin_fields
from p2p_node.yamltree import Fault, parse
from workloads.blobs import NO_BLOBS
from workloads.errors import InputRefused
from workloads.plugins import GROUP, load_plugins, package_digest
from workloads.registry import KINDS
from workloads.workload import Kind

KIND = '''
"""Counts how often each letter occurs in each line: a kind of work that needs no torch."""

from pathlib import Path

from workloads.chunkwise import Chunk, Chunkwise
from workloads.errors import InputRefused
from workloads.plugins import package_digest
from workloads.split import Part
from workloads.workload import Artifact, Kind, Model

NAME = "acme.letters"
DIGEST = package_digest(NAME, 1, "acme_letters")
LETTERS = 26


class Letters(Chunkwise):
    def decode(self, input):
        lines = input.split(b"\\n")
        if not input.isascii() or not all(lines):
            raise InputRefused("lines must be ASCII and not empty")
        return lines

    def units_total(self, job):
        return LETTERS * len(job)

    def derive(self, job, before, chunk):
        line = job[chunk].lower()
        return Chunk([line.count(97 + letter) for letter in range(LETTERS)], line)


def plan(fields):
    lines = fields.get("lines")
    if not isinstance(lines, list) or not lines or fields.keys() != {"lines"}:
        raise InputRefused(f"lines={lines!r} must be a list of lines, and all there is")
    return Part("\\n".join(lines).encode(), 0, LETTERS * len(lines))


def table(input, units):
    rows = (units[start : start + LETTERS] for start in range(0, len(units), LETTERS))
    lines = (",".join(map(str, row)) + "\\n" for row in rows)
    return Artifact("text/csv", "".join(lines).encode(), "CSV table")


KIND = Kind(
    name=NAME,
    unit="count",
    chunk_units=LETTERS,
    segment_chunks=4,
    profiles=("exact14",),
    variants=(),
    models=lambda: (Model("letters", Path(), DIGEST, 65_536),),
    probe=lambda: b"In the beginning",
    open=lambda folder, profile, variant, digest, blobs: Letters(NAME, DIGEST, profile, LETTERS),
    plan=plan,
    present=table,
)
NAMED_OTHERWISE = KIND
'''


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    """The package with its metadata, as an installer leaves them."""
    (tmp_path / "acme_letters").mkdir()
    (tmp_path / "acme_letters" / "__init__.py").write_text(KIND)
    metadata = tmp_path / "acme_letters-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-letters\nVersion: 1.0\n")
    names = {
        "acme.letters": "acme_letters:KIND",
        "acme.other": "acme_letters:NAMED_OTHERWISE",
        "acme.broken": "acme_letters.nowhere:KIND",
        "acme.text": "acme_letters:NAME",
    }
    written = "\n".join(f"{name} = {target}" for name, target in names.items())
    (metadata / "entry_points.txt").write_text(f"[{GROUP}]\n{written}\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield [entry for entry in distribution("acme-letters").entry_points if entry.group == GROUP]
    sys.modules.pop("acme_letters", None)


@pytest.fixture
def kind(installed: list[EntryPoint]) -> Kind:
    return load_plugins(KINDS, installed)[0]["acme.letters"]


def test_a_package_adds_a_kind_and_what_is_broken_is_told(installed: list[EntryPoint]) -> None:
    kinds, faults = load_plugins(KINDS, installed)
    assert list(kinds) == ["acme.letters"]
    assert sorted(faults) == ["acme.broken", "acme.other", "acme.text"]
    assert "No module named 'acme_letters.nowhere'" in faults["acme.broken"]
    assert "'acme.letters' must be the entry point's" in faults["acme.other"]
    assert "must be a workloads.workload.Kind, got str" in faults["acme.text"]
    assert "is taken" in load_plugins(["acme.letters"], installed)[1]["acme.letters"]
    # Those of this environment, found as a node finds them.
    assert "acme.letters" in load_plugins(KINDS)[0]


def test_its_work_is_done_and_checked_like_any_other(kind: Kind) -> None:
    job = kind.plan({"lines": ["In the beginning", "God created"]}) if kind.plan else None
    assert job is not None and job.units_max == 52
    (model,) = kind.models()
    workload = kind.open(model.path, "exact14", None, model.digest, NO_BLOBS)
    units: list[int] = []
    digests: dict[int, bytes] = {}
    workload.generate(job.input, (), lambda _, new: units.extend(new), digests.__setitem__, lambda: False)
    assert (units[4], units[26 + 4]) == (2, 2)
    assert workload.recompute(job.input, units, digests) == digests
    assert kind.present is not None and kind.present(job.input, units).content.count(b"\n") == 2
    with pytest.raises(InputRefused, match="must be a list of lines"):
        kind.plan({"lines": []})  # type: ignore[misc]


def test_nodes_with_other_code_do_not_match(installed: list[EntryPoint], tmp_path: Path) -> None:
    digest = package_digest("acme.letters", 1, "acme_letters")
    assert package_digest("acme.letters", 1, "acme_letters") == digest
    assert package_digest("acme.letters", 2, "acme_letters") != digest
    (tmp_path / "acme_letters" / "__init__.py").write_text(KIND.replace("lower", "upper"))
    assert package_digest("acme.letters", 1, "acme_letters") != digest


def test_a_job_file_gives_it_plain_data() -> None:
    read = plugin_fields("acme.letters")
    text = b"workload: acme.letters\nlines: [a, '1', 2, true]\nmore: {deep: [{x: -3}]}"
    task = read(parse(text), "task")
    assert task.fields == {"lines": ["a", "1", 2, True], "more": {"deep": [{"x": -3}]}}
    for bad in (b"[1]", b"a: 1\na: 2"):
        with pytest.raises(Fault):
            read(parse(bad), "task")


def test_what_nobody_offers_is_a_fault_of_the_file() -> None:
    from p2p_node.jobspec import parse_job_spec

    with pytest.raises(JobSpecError, match=r"must be one of lm\.generate"):
        parse_job_spec(b"apiVersion: p2p/v1\nkind: Job\nname: n\ntask: {workload: acme.letters}\n")
