"""What a judge must know of a model to derive a job's program: its manifest and some of its small files."""

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
    contents: tuple[Annotated[bytes, Meta(max_length=CASE_CONTEXT_BYTES_MAX)], ...]


def write_context(manifest: Manifest, path: Path, *optional: Path) -> bytes:
    """The context of a model, with the small file at ``path``.

    Args:
        manifest: of the model.
        path: of a file that is always needed.
        optional: of files that some jobs need; those that don't fit are left out.

    Raises:
        ModelRefused: a file can't be read, or the context exceeds its limit.
    """
    contents = [_read(path)]
    context = encode(_Context(manifest, tuple(contents)))
    if len(context) > CASE_CONTEXT_BYTES_MAX:
        raise ModelRefused(f"context of {len(context)} bytes exceeds {CASE_CONTEXT_BYTES_MAX}")
    for other in optional:
        contents.append(_read(other))
        wider = encode(_Context(manifest, tuple(contents)))
        if len(wider) > CASE_CONTEXT_BYTES_MAX:
            break
        context = wider
    return context


def open_context(context: bytes, model: bytes, *names: str) -> tuple[Manifest, list[bytes]]:
    """The manifest of ``model`` and the contents of its small files ``names``, as many as there are.

    Raises:
        ModelRefused: the context is malformed, or of another model.
    """
    try:
        opened = decode(context, _Context, bytes_max=CASE_CONTEXT_BYTES_MAX)
        opened.manifest.check(model)
    except PeerFault as error:
        raise ModelRefused(f"context: {error}") from error
    hashes = {file.name: file.blake3 for file in opened.manifest.files}
    if not 1 <= len(opened.contents) <= len(names):
        raise ModelRefused(f"context has {len(opened.contents)} files, must have 1 to {len(names)}")
    for name, content in zip(names, opened.contents, strict=False):
        if hashes.get(name) != blake3(content).digest():
            raise ModelRefused(f"the context's content isn't {name} of model {model.hex()}")
    return opened.manifest, list(opened.contents)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(CASE_CONTEXT_BYTES_MAX + 1)
    except OSError as error:
        raise ModelRefused(f"{path.name} cannot be read: {error.strerror or error}") from error
