"""docs/protocol.md says what the code does: fields, tags and bounds are compared, not trusted."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from p2p_node.core.gossip import TOPICS
from protocols import limits, messages
from protocols.messages import KINDS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "protocol.md").read_text()
RECORDS = [
    getattr(messages, name)
    for name in dir(messages)
    if isinstance(getattr(messages, name), type) and issubclass(getattr(messages, name), msgspec.Struct)
]
NESTED = [
    record
    for record in RECORDS
    if record.__module__ == messages.__name__ and record not in KINDS.values() and record is not messages.Body
]


def first_columns(heading: str) -> list[str]:
    """The names in the first column of the table under a heading."""
    _, found, after = TEXT.partition(f"\n#### {heading}\n")
    assert found, f"no heading {heading!r}"
    section = after.split("\n#")[0]
    return re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.KIND)
def test_every_message_is_specified(kind: type[messages.Body]) -> None:
    assert first_columns(f"`{kind.KIND}`") == list(kind.__struct_fields__)


@pytest.mark.parametrize("record", NESTED, ids=lambda record: record.__name__)
def test_every_record_is_specified(record: type[msgspec.Struct]) -> None:
    assert first_columns(f"record `{record.__name__}`") == list(record.__struct_fields__)


def test_every_tag_is_listed() -> None:
    used = set()
    for folder in ("protocols", "verification", "workloads", "p2p_node/core"):
        for path in (ROOT / folder).rglob("*.py"):
            used |= set(re.findall(r'"(p2p-node/[a-z0-9-]+/\d+)"', path.read_text()))
    used -= {"p2p-node/leaf/1"}  # The example in a docstring.
    assert used - {"p2p-node/node-secret/1"} >= {"p2p-node/message/1", "p2p-node/chunk-leaf/1"}
    assert {tag for tag in used if f"`{tag}`" not in TEXT} == set()


def test_every_bound_is_the_codes() -> None:
    listed = re.findall(r"^\| `([A-Z_0-9]+)` \| ([\d,]+) \|$", TEXT, re.MULTILINE)
    assert len(listed) > 30
    for name, value in listed:
        assert getattr(limits, name) == int(value.replace(",", "")), name


def test_every_topic_is_named() -> None:
    for topic in TOPICS:
        assert f"`/p2p-node/<network>/{topic}/1`" in TEXT
