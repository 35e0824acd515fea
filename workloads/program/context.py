"""What a judge must know of a model to derive a job's program: its manifest and one of its small files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from blake3 import blake3
from msgspec import Meta

from protocols.codec import Wire, decode, encode
from protocols.errors import PeerFault
from protocols.limits import CASE_CONTEXT_BYTES_MAX
from protocols.parameters import Manifest
from workloads.errors import ModelRefused

__all__ = ["open_context", "write_context"]


class _Context(Wire, frozen=True):
    manifest: Manifest
    content: Annotated[bytes, Meta(max_length=CASE_CONTEXT_BYTES_MAX)]


def write_context(manifest: Manifest, path: Path) -> bytes:
    """The context of a model, with the small file at ``path``.

    Raises:
        ModelRefused: the file can't be read, or the context exceeds its limit.
    """
    try:
        with path.open("rb") as file:
            content = file.read(CASE_CONTEXT_BYTES_MAX + 1)
    except OSError as error:
        raise ModelRefused(f"{path.name} cannot be read: {error.strerror or error}") from error
    context = encode(_Context(manifest, content))
    if len(context) > CASE_CONTEXT_BYTES_MAX:
        raise ModelRefused(f"context of {len(context)} bytes exceeds {CASE_CONTEXT_BYTES_MAX}")
    return context


def open_context(context: bytes, model: bytes, name: str) -> tuple[Manifest, bytes]:
    """The manifest of ``model`` and the content of its small file ``name``.

    Raises:
        ModelRefused: the context is malformed, or of another model.
    """
    try:
        opened = decode(context, _Context, bytes_max=CASE_CONTEXT_BYTES_MAX)
        opened.manifest.check(model)
    except PeerFault as error:
        raise ModelRefused(f"context: {error}") from error
    hashes = {file.name: file.blake3 for file in opened.manifest.files}
    if hashes.get(name) != blake3(opened.content).digest():
        raise ModelRefused(f"the context's content isn't {name} of model {model.hex()}")
    return opened.manifest, opened.content
