"""Edits of signed evidence, as somebody who holds only his own key could make them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from protocols.envelope import Signed, open_envelope, seal
from tests.support.keys import CRYPTO, keyring
from tests.support.swarm import NETWORK

__all__ = ["at", "edit", "opened", "resigned"]

Path = tuple[str | int, ...]


def opened(raw: bytes) -> Signed[Any]:
    """A nested envelope, opened."""
    return open_envelope(raw, network=NETWORK, crypto=CRYPTO, bytes_max=2**26)


def resigned(raw: bytes, *, signer: int = 0, **changes: Any) -> bytes:
    """The same statement with other fields, signed by test peer ``signer``; 0 is the requester."""
    body = msgspec.structs.replace(opened(raw).body, **changes)
    return seal(body, network=NETWORK, key=keyring(signer)).raw


def at(value: Any, path: Path) -> Any:
    """The part of a nested record at ``path``: field names and tuple indexes."""
    for step in path:
        value = value[step] if isinstance(step, int) else getattr(value, step)
    return value


def edit(value: Any, path: Path, change: Callable[[Any], Any]) -> Any:
    """A copy of a nested record with the part at ``path`` changed."""
    if not path:
        return change(value)
    step, rest = path[0], path[1:]
    changed = edit(at(value, (step,)), rest, change)
    if isinstance(step, int):
        index = step % len(value)
        return (*value[:index], changed, *value[index + 1 :])
    return msgspec.structs.replace(value, **{step: changed})
