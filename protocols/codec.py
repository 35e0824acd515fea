"""Canonical MessagePack: one value, one encoding.

msgspec alone accepts unknown trailing fields, padded integers and other spellings of one value.
A signed protocol can't: two peers must agree on the bytes. So decoding re-encodes and compares.
Bounds are checked before decoding; structs say the rest (closed, frozen, integers only).
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from protocols.errors import Malformed, Oversized
from protocols.limits import ENVELOPE_BYTES_MAX

__all__ = ["Wire", "decode", "encode"]

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}


class Wire(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of everything that is sent: an immutable MessagePack array of its fields in order."""


def encode(value: Any) -> bytes:
    """The canonical bytes of ``value``, a `Wire` or a built-in made of integers, bytes and text."""
    return _encoder.encode(value)


def decode(data: bytes, kind: type[T], *, bytes_max: int = ENVELOPE_BYTES_MAX) -> T:
    """Read ``data`` as ``kind``.

    Raises:
        Oversized: more than ``bytes_max`` bytes.
        Malformed: not ``kind``, or not its canonical encoding.
    """
    if len(data) > bytes_max:
        raise Oversized(f"{kind.__name__} of {len(data)} bytes exceeds {bytes_max}")
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    try:
        value = decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise Malformed(f"not a {kind.__name__}: {error}") from error
    if _encoder.encode(value) != data:
        raise Malformed(f"{kind.__name__} isn't in canonical form")
    return value  # type: ignore[no-any-return]
