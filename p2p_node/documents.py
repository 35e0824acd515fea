"""Job files with one value in place of another; everything else stays as its author wrote it."""

from __future__ import annotations

import base64

import yaml

from p2p_node.itemspec import PACKED_BYTES_MAX
from p2p_node.yamltree import parse
from protocols.blobs import blob_name
from workloads.blobs import Blobs

__all__ = ["packed_or_blob", "with_task_field"]


def with_task_field(document: bytes, name: str, written: str) -> bytes:
    """The document with another value for a field of its task.

    Args:
        document: a valid job file that has the field.
        name: of the field.
        written: the value, as YAML on one line.
    """
    content = document.decode("utf-8")
    node = _member(_member(parse(document), "task"), name)
    start, end = node.start_mark.index, node.end_mark.index
    # A block's end is where the next one begins, behind its last line's end.
    tail = content[start:end].rstrip()
    if not content[:start].rpartition("\n")[2].strip():
        # The items of a block may stand right below their key; what is on one line must be further in.
        written = " " + written
    return (content[:start] + written + content[start + len(tail) :]).encode()


def packed_or_blob(content: bytes, blobs: Blobs) -> str:
    """How a job file holds content: itself, or the name of a blob, as a field of a YAML mapping."""
    if len(content) <= PACKED_BYTES_MAX:
        return f'packed: "{base64.b64encode(content).decode()}"'
    return f'blob: "{blob_name(blobs.write(content))}"'


def _member(node: yaml.Node, name: str) -> yaml.Node:
    found: yaml.Node = next(value for key, value in node.value if key.value == name)
    return found
