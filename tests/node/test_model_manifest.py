"""A model's manifest, as a stranger may have written it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from p2p_node.errors import UserError
from p2p_node.modelmanifest import (
    MANIFEST_BYTES_MAX,
    ModelFile,
    ModelManifest,
    read_manifest,
    write_manifest,
)

MANIFEST = ModelManifest("verses", "lm.generate", "ab" * 32, (ModelFile("config.json", "c" * 64 + ":7"),))


def changed(**fields: Any) -> bytes:
    return json.dumps(json.loads(write_manifest(MANIFEST)) | fields).encode()


def test_it_is_read_as_it_was_written() -> None:
    assert read_manifest(write_manifest(MANIFEST)) == MANIFEST


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "not a model's manifest"),
        (b"[" * 10_000, "not a model's manifest"),
        (b" " * (MANIFEST_BYTES_MAX + 1), "at most"),
        (changed(format="p2p-node/model/2"), "not a model's manifest"),
        (changed(extra=1), "unknown field"),
        (changed(digest="AB" * 32), "digest"),
        (changed(files=[]), "files"),
        (changed(name="../up"), "which must be a plain name"),
        (changed(files=[{"name": "../config.json", "blob": "x"}]), "must be a plain name"),
        (changed(files=[{"name": ".hidden", "blob": "x"}]), "must be a plain name"),
        (changed(files=[{"name": "a/b", "blob": "x"}]), "must be a plain name"),
        (changed(files=2 * [{"name": "a", "blob": "x"}]), "each file once"),
    ],
)
def test_what_breaks_a_rule_is_refused(content: bytes, rule: str) -> None:
    with pytest.raises(UserError, match=rule):
        read_manifest(content)
