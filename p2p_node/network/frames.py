"""Bytes on the direct stream between two peers.

A frame is a length (u32, little-endian) and a body of 1 to FRAME_BYTES_MAX bytes. The body's first byte says
whose it is: 0x00 the network adapter's own (hello, liveness, peer exchange), 0x01 the application's. This
module only cuts and joins; it never reads a socket.
"""

from __future__ import annotations

import struct
from typing import TypeAlias

import msgspec

from protocols.codec import Wire
from protocols.errors import Malformed, Oversized
from protocols.limits import (
    ADDRESS_BYTES_MAX,
    ADDRESSES_PER_PEER_MAX,
    FRAME_BYTES_MAX,
    NETWORK_NAME_BYTES_MAX,
    PEER_EXCHANGE_ADDRESSES_MAX,
)

__all__ = [
    "APPLICATION",
    "CONTROL",
    "Control",
    "FrameSplitter",
    "Hello",
    "Peers",
    "Ping",
    "Pong",
    "application_frame",
    "control_frame",
    "read_control",
]

CONTROL = 0x00
APPLICATION = 0x01
CONTROL_BYTES_MAX = 64 * 1024
_LENGTH = struct.Struct("<I")


class Hello(Wire, tag="hello", frozen=True):
    """First frame on every link: which network, and where the sender listens."""

    network: str
    addresses: list[str]


class Peers(Wire, tag="peers", frozen=True):
    """Addresses of other peers that the sender is connected to."""

    addresses: list[str]


class Ping(Wire, tag="ping", frozen=True):
    """Asks for a `Pong` with the same number."""

    number: int


class Pong(Wire, tag="pong", frozen=True):
    """Answers a `Ping`."""

    number: int


Control: TypeAlias = Hello | Peers | Ping | Pong

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Control] = msgspec.msgpack.Decoder(Control)


def application_frame(payload: bytes) -> bytes:
    """``payload`` as it goes on the stream.

    Raises:
        ValueError: the payload exceeds FRAME_BYTES_MAX less the leading byte.
    """
    return _frame(APPLICATION, payload)


def control_frame(message: Control) -> bytes:
    """An adapter's own message as it goes on the stream."""
    return _frame(CONTROL, _encoder.encode(message))


def _frame(lead: int, payload: bytes) -> bytes:
    size = 1 + len(payload)
    if size > FRAME_BYTES_MAX:
        raise ValueError(f"frame of {size} bytes exceeds {FRAME_BYTES_MAX}")
    return b"".join((_LENGTH.pack(size), bytes((lead,)), payload))


def read_control(payload: bytes) -> Control:
    """The adapter message in a control frame's payload (after the leading byte).

    Raises:
        Malformed: not the canonical encoding of one, or it breaks a bound.
    """
    if len(payload) > CONTROL_BYTES_MAX:
        raise Oversized(f"control frame of {len(payload)} bytes exceeds {CONTROL_BYTES_MAX}")
    try:
        message = _decoder.decode(payload)
        canonical = _encoder.encode(message) == payload
    except (msgspec.DecodeError, UnicodeError, RecursionError, OverflowError) as error:
        raise Malformed(f"not a control message: {error}") from error
    if not canonical:
        raise Malformed("control message isn't in canonical form")
    match message:
        case Hello(network, addresses):
            if len(network.encode()) > NETWORK_NAME_BYTES_MAX:
                raise Oversized(f"network name exceeds {NETWORK_NAME_BYTES_MAX} bytes")
            _check_addresses(addresses, ADDRESSES_PER_PEER_MAX)
        case Peers(addresses):
            _check_addresses(addresses, PEER_EXCHANGE_ADDRESSES_MAX)
        case _:
            pass
    return message


def _check_addresses(addresses: list[str], count_max: int) -> None:
    if len(addresses) > count_max:
        raise Oversized(f"{len(addresses)} addresses exceed {count_max}")
    for address in addresses:
        if len(address.encode()) > ADDRESS_BYTES_MAX:
            raise Oversized(f"address of {len(address.encode())} bytes exceeds {ADDRESS_BYTES_MAX}")


class FrameSplitter:
    """Cuts a byte stream into frame bodies. Holds at most one unfinished frame and one read."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Add what was read; the frames it completes, as (leading byte, payload).

        Raises:
            Oversized: a frame is announced that exceeds FRAME_BYTES_MAX. The stream is beyond repair.
            Malformed: an empty frame, or a leading byte we don't know.
        """
        buffer = self._buffer
        buffer += data
        frames = []
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(buffer, start)
            if size > FRAME_BYTES_MAX:
                raise Oversized(f"frame of {size} bytes exceeds {FRAME_BYTES_MAX}")
            if size == 0:
                raise Malformed("a frame has at least its leading byte")
            body = start + _LENGTH.size
            if len(buffer) < body + size:
                break
            lead = buffer[body]
            if lead not in (CONTROL, APPLICATION):
                raise Malformed(f"leading byte {lead:#04x} is neither control nor application")
            frames.append((lead, bytes(memoryview(buffer)[body + 1 : body + size])))
            start = body + size
        if start:
            del buffer[:start]
        return frames
