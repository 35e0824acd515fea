"""Frames survive any cutting of the stream, and nothing else does."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_node.network.frames import (
    APPLICATION,
    CONTROL,
    Control,
    FrameSplitter,
    Hello,
    Peers,
    Ping,
    Pong,
    application_frame,
    control_frame,
    read_control,
)
from protocols.errors import Malformed, Oversized
from protocols.limits import (
    ADDRESS_BYTES_MAX,
    ADDRESSES_PER_PEER_MAX,
    FRAME_BYTES_MAX,
    NETWORK_NAME_BYTES_MAX,
    PEER_EXCHANGE_ADDRESSES_MAX,
)

CONTROLS: list[Control] = [Hello("net", ["/ip4/1.2.3.4/tcp/1"]), Peers([]), Ping(0), Pong(2**40)]


@given(payloads=st.lists(st.binary(max_size=300), max_size=10), cut=st.integers(1, 50))
def test_frames_come_out_as_they_went_in(payloads: list[bytes], cut: int) -> None:
    stream = b"".join(application_frame(payload) for payload in payloads)
    splitter = FrameSplitter()
    frames = [frame for at in range(0, len(stream), cut) for frame in splitter.feed(stream[at : at + cut])]
    assert frames == [(APPLICATION, payload) for payload in payloads]


@given(junk=st.binary(max_size=400))
def test_junk_is_cut_or_refused(junk: bytes) -> None:
    try:
        for _, payload in FrameSplitter().feed(junk):
            read_control(payload)
    except Malformed:
        pass


def test_the_bytes_on_the_stream() -> None:
    assert application_frame(b"ab") == b"\x03\x00\x00\x00\x01ab"
    assert FrameSplitter().feed(control_frame(Ping(7))) == [(CONTROL, b"\x92\xa4ping\x07")]


@pytest.mark.parametrize("message", CONTROLS)
def test_control_messages_come_out_as_they_went_in(message: Control) -> None:
    ((lead, payload),) = FrameSplitter().feed(control_frame(message))
    assert (lead, read_control(payload)) == (CONTROL, message)


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (struct.pack("<I", FRAME_BYTES_MAX + 1), Oversized),
        (struct.pack("<I", 0), Malformed),
        (struct.pack("<IB", 1, 2), Malformed),
    ],
)
def test_a_frame_that_cannot_be_is_refused(stream: bytes, error: type[Malformed]) -> None:
    with pytest.raises(error):
        FrameSplitter().feed(stream)


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (b"", Malformed),
        (b"\x92\xa4pong\xcc\x07", Malformed),  # seven, padded
        (b"\x93\xa4pong\x07\x07", Malformed),
        (b"\x92\xa4pang\x07", Malformed),
        (b"\x92\xa4pong\xc0", Malformed),
        (bytes(65_537), Oversized),
        (control_frame(Hello("n" * (NETWORK_NAME_BYTES_MAX + 1), []))[5:], Oversized),
        (control_frame(Hello("n", ["a"] * (ADDRESSES_PER_PEER_MAX + 1)))[5:], Oversized),
        (control_frame(Peers(["a"] * (PEER_EXCHANGE_ADDRESSES_MAX + 1)))[5:], Oversized),
        (control_frame(Peers(["a" * (ADDRESS_BYTES_MAX + 1)]))[5:], Oversized),
    ],
)
def test_a_control_message_that_breaks_a_rule_is_refused(payload: bytes, error: type[Malformed]) -> None:
    with pytest.raises(error):
        read_control(payload)


def test_an_oversized_payload_is_not_framed() -> None:
    with pytest.raises(ValueError, match=str(FRAME_BYTES_MAX)):
        application_frame(bytes(FRAME_BYTES_MAX))
