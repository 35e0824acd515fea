"""Field types that messages share, and the base of every signed body."""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta

from protocols import limits
from protocols.codec import Wire

__all__ = [
    "Body",
    "Digest",
    "Fingerprint",
    "Key",
    "Name",
    "NumericClass",
    "Price",
    "Proof",
    "Raw",
    "Small",
    "Text",
    "Uint",
    "Unit",
]

Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
Uint = Annotated[int, Meta(ge=0, le=limits.INTEGER_MAX)]
Small = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Name = Annotated[str, Meta(min_length=1, max_length=limits.NAME_BYTES_MAX)]
Text = Annotated[str, Meta(max_length=limits.TEXT_BYTES_MAX)]
Price = Annotated[int, Meta(ge=0, le=limits.PRICE_MICROS_MAX)]
Unit = Annotated[int, Meta(ge=0, le=limits.UNIT_VALUE_MAX)]
Proof = Annotated[bytes, Meta(min_length=80, max_length=80)]
Raw = Annotated[bytes, Meta(max_length=limits.ENVELOPE_BYTES_MAX)]
NumericClass = Annotated[str, Meta(max_length=limits.NAME_BYTES_MAX)]
Fingerprint = Annotated[bytes, Meta(max_length=limits.FINGERPRINT_BYTES_MAX)]


class Body(Wire, frozen=True):
    """Base of every signed body."""

    KIND: ClassVar[str] = ""
    VERSION: ClassVar[int] = 1
