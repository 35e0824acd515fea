"""Lies that a requester could tell in a receipt.

The requester signs the receipt and can sign anything anew that is its own; what others signed it
can only drop, move or repeat, unless they are its accomplices.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from protocols.envelope import Signed, open_envelope, seal
from protocols.messages import ReceiptBody
from tests.support.jobs import finished
from tests.support.keys import CRYPTO, keyring
from tests.support.swarm import NETWORK
from verification.receipt import ReceiptError, check_receipt

__all__ = [
    "ATTEMPT",
    "SEGMENT",
    "VERIFIER",
    "Change",
    "assert_refused",
    "at",
    "drop",
    "edit",
    "move",
    "opened",
    "put",
    "repeat",
    "resigned",
    "sign_anew",
]

Path = tuple[str | int, ...]
Change = Callable[[ReceiptBody], Any]

ATTEMPT: Path = ("attempts", 0)
SEGMENT: Path = (*ATTEMPT, "segments", 0)
VERIFIER: Path = (*SEGMENT, "verifiers", 0)


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


def put(path: Path, value: Any) -> Change:
    """Replace a part."""
    return lambda body: edit(body, path, lambda old: value)


def drop(path: Path, index: int) -> Change:
    """Leave one element of a list out."""
    return lambda body: edit(body, path, lambda old: old[:index] + old[index + 1 :])


def repeat(path: Path, index: int) -> Change:
    """Append one element of a list once more."""
    return lambda body: edit(body, path, lambda old: (*old, old[index]))


def move(source: Path, path: Path) -> Change:
    """Put a copy of one part in the place of another."""
    return lambda body: edit(body, path, lambda old: at(body, source))


def sign_anew(path: Path, *, signer: int = 0, **changes: Any) -> Change:
    """Change fields of a nested statement, and have test peer ``signer`` sign it."""
    return lambda body: edit(body, path, lambda raw: resigned(raw, signer=signer, **changes))


def assert_refused(kind: str, change: Change, message: str) -> None:
    """That the checker refuses a real receipt with this change, in exactly these words.

    Peer ids are left out of the message.
    """
    receipt = finished(kind).receipt
    assert receipt is not None
    forged = seal(change(receipt.body), network=NETWORK, key=keyring(0)).raw
    with pytest.raises(ReceiptError) as caught:
        check_receipt(forged, network=NETWORK, crypto=CRYPTO)
    said = re.sub(r" 12D3Koo\w+", "", str(caught.value))
    assert said == message, said
