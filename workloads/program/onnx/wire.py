"""The wire format of Protocol Buffers, read as data with a bound on everything.

A message is a run of fields: a key (number and wire type), then a number or so many bytes. Nothing is looked
up in a schema here: `fields` gives what is there, in order, and readers take what they know. What they don't
know they skip, as the format asks for.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from workloads.errors import ModelRefused

__all__ = ["Field", "fields", "packed_floats", "packed_integers", "text"]

FIELDS_MAX = 1 << 22
"""Of one message: an unpacked list of numbers has a field for each."""

TEXT_BYTES_MAX = 4_096
_VARINT_BYTES_MAX = 10
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WORD, _SIGN = 1 << 64, 1 << 63


class Field(NamedTuple):
    """One field of a message.

    Args:
        number: by which its schema knows it.
        value: of a number the 64 or 32 bits, unsigned; else the bytes, a view.
    """

    number: int
    value: int | memoryview

    def integer(self) -> int:
        """The value as a signed 64-bit integer.

        Raises:
            ModelRefused: it is bytes.
        """
        if not isinstance(self.value, int):
            raise ModelRefused(f"field {self.number} must be a number")
        return self.value - _WORD if self.value >= _SIGN else self.value

    def real(self) -> float:
        """The value as a 32-bit floating-point number.

        Raises:
            ModelRefused: it is bytes, or longer.
        """
        if not isinstance(self.value, int) or self.value >= 1 << 32:
            raise ModelRefused(f"field {self.number} must be a 32-bit number")
        (number,) = struct.unpack("<f", struct.pack("<I", self.value))
        return float(number)

    def data(self) -> memoryview:
        """The value as bytes.

        Raises:
            ModelRefused: it is a number.
        """
        if isinstance(self.value, int):
            raise ModelRefused(f"field {self.number} must be bytes")
        return self.value


def fields(message: memoryview) -> Iterator[Field]:
    """The fields of a message, in order.

    Raises:
        ModelRefused: the message is cut short, holds a group or another unknown wire type, or has more than
            `FIELDS_MAX` fields.
    """
    place, count = 0, 0
    while place < len(message):
        count += 1
        if count > FIELDS_MAX:
            raise ModelRefused(f"message has more than {FIELDS_MAX} fields")
        key, place = _varint(message, place)
        number, kind = key >> 3, key & 7
        if not 1 <= number < 1 << 29:
            raise ModelRefused(f"field number {number} can't be")
        if kind == _VARINT:
            value, place = _varint(message, place)
            yield Field(number, value)
            continue
        if kind == _BYTES:
            size, place = _varint(message, place)
        elif kind in {_FIXED64, _FIXED32}:
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ModelRefused(f"field {number} has wire type {kind}, which we don't read")
        if size > len(message) - place:
            raise ModelRefused(f"field {number} of {size} bytes ends behind its message")
        data = message[place : place + size]
        place += size
        yield Field(number, data if kind == _BYTES else int.from_bytes(data, "little"))


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """A number of up to 64 bits, seven to a byte, and the place behind it."""
    number = 0
    for shift in range(_VARINT_BYTES_MAX):
        if place >= len(message):
            raise ModelRefused("message ends within a number")
        byte = message[place]
        place += 1
        number |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            if number >= _WORD:
                break
            return number, place
    raise ModelRefused("number has more than 64 bits")


def packed_integers(field: Field) -> list[int]:
    """A repeated integer: one, or many packed in bytes.

    Raises:
        ModelRefused: the bytes are no numbers.
    """
    if isinstance(field.value, int):
        return [field.integer()]
    place, numbers = 0, []
    while place < len(field.value):
        number, place = _varint(field.value, place)
        numbers.append(number - _WORD if number >= _SIGN else number)
    return numbers


def packed_floats(field: Field) -> list[float]:
    """A repeated 32-bit number: one, or many packed in bytes.

    Raises:
        ModelRefused: the bytes aren't whole numbers.
    """
    if isinstance(field.value, int):
        return [field.real()]
    if len(field.value) % 4:
        raise ModelRefused(f"field {field.number} of {len(field.value)} bytes must be whole numbers")
    return list(struct.unpack(f"<{len(field.value) // 4}f", field.value))


def text(field: Field) -> str:
    """A name or word.

    Raises:
        ModelRefused: it is too long, or not UTF-8.
    """
    data = field.data()
    if len(data) > TEXT_BYTES_MAX:
        raise ModelRefused(f"text of {len(data)} bytes exceeds {TEXT_BYTES_MAX}")
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise ModelRefused("text must be UTF-8") from error
