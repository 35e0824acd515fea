"""One value, one encoding: whatever else means the same is refused."""

from __future__ import annotations

from typing import Annotated, Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta

from protocols.codec import Wire, decode, encode
from protocols.errors import Malformed, Oversized, PeerFault
from protocols.messages import KINDS, Body
from tests.support.strategies import records


class Pair(Wire, frozen=True):
    number: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    data: bytes


BODIES = sorted(KINDS.values(), key=lambda kind: kind.KIND)


@pytest.mark.parametrize("kind", BODIES, ids=lambda kind: kind.KIND)
@settings(max_examples=25)
@given(data=st.data())
def test_every_message_comes_back_as_it_went(kind: type[Body], data: st.DataObject) -> None:
    body = data.draw(records(kind))
    packed = encode(body)
    assert decode(packed, kind) == body
    # A stranger's MessagePack packs the same fields to the same bytes.
    assert msgpack.packb(msgpack.unpackb(packed, raw=False), use_bin_type=True) == packed


@settings(max_examples=200)
@given(data=st.data())
def test_a_mutated_message_is_refused_or_is_exactly_another_one(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(BODIES))
    packed = bytearray(encode(data.draw(records(kind))))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(packed) - 1))
        match data.draw(st.sampled_from(["flip", "insert", "delete"])):
            case "flip":
                packed[at] ^= data.draw(st.integers(1, 255))
            case "insert":
                packed.insert(at, data.draw(st.integers(0, 255)))
            case "delete" if len(packed) > 1:
                del packed[at]
    mutated = bytes(packed)
    try:
        value = decode(mutated, kind)
    except PeerFault:
        return
    assert encode(value) == mutated


@given(data=st.binary(max_size=200))
def test_random_bytes_never_crash(data: bytes) -> None:
    for kind in BODIES:
        try:
            assert encode(decode(data, kind)) == data
        except PeerFault:
            continue


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "nothing"),
        (b"\x92\x05", "cut short"),
        (b"\x92\x05\xc4\x01a\x00", "bytes after the end"),
        (b"\x93\x05\xc4\x01a\x00", "a field too many"),
        (b"\x91\x05", "a field too few"),
        (b"\x92\xcc\x05\xc4\x01a", "an integer in more bytes than it takes"),
        (b"\x92\xd3\x00\x00\x00\x00\x00\x00\x00\x05\xc4\x01a", "a signed integer that isn't negative"),
        (b"\xdc\x00\x02\x05\xc4\x01a", "a long array header"),
        (b"\x92\x05\xc5\x00\x01a", "a long bytes header"),
        (b"\x92\x05\xa1a", "text for bytes"),
        (b"\x92\xcb\x40\x14\x00\x00\x00\x00\x00\x00\xc4\x01a", "a float that is whole"),
        (b"\x92\xff\xc4\x01a", "below the bound"),
        (b"\x92\xcf\xff\xff\xff\xff\xff\xff\xff\xff\xc4\x01a", "above the bound"),
        (b"\x92\xc0\xc4\x01a", "nil"),
        (b"\x92\xc3\xc4\x01a", "true for a number"),
        (b"\x82\xa6number\x05\xa4data\xc4\x01a", "a map"),
        (b"\x91" * 5_000, "nesting without end"),
        (b"\xdd\xff\xff\xff\xff", "a huge array that isn't there"),
        (b"\x92\x05\xc6\xff\xff\xff\xff", "huge bytes that aren't there"),
    ],
)
def test_other_spellings_are_malformed(data: bytes, why: str) -> None:
    assert encode(decode(b"\x92\x05\xc4\x01a", Pair)) == b"\x92\x05\xc4\x01a"
    with pytest.raises(Malformed):
        decode(data, Pair)


def test_size_is_checked_before_anything_is_read() -> None:
    packed = encode(Pair(1, bytes(100)))
    assert decode(packed, Pair, bytes_max=len(packed)).number == 1
    with pytest.raises(Oversized, match=f"Pair of {len(packed)} bytes exceeds {len(packed) - 1}"):
        decode(packed, Pair, bytes_max=len(packed) - 1)


@pytest.mark.parametrize("kind", BODIES, ids=lambda kind: kind.KIND)
def test_messages_hold_no_floats_maps_or_unbounded_fields(kind: type[Body]) -> None:
    """Every field of every message has a bound: `records` fails on anything else."""

    def bounded(info: Any) -> None:
        from msgspec import inspect as types

        match info:
            case types.StructType(fields=fields):
                for field in fields:
                    bounded(field.type)
            case types.VarTupleType(item_type=item, max_length=high):
                assert high is not None, f"{kind.KIND}: a tuple without max_length"
                bounded(item)
            case types.TupleType(item_types=items):
                for item in items:
                    bounded(item)
            case types.BytesType(max_length=high):
                assert high is not None, f"{kind.KIND}: bytes without max_length"
            case types.StrType(max_length=high, pattern=pattern):
                assert high is not None or pattern is not None, f"{kind.KIND}: text without max_length"
            case types.IntType(ge=low, le=high, lt=below):
                assert low is not None and (high is not None or below is not None)
            case _:
                assert isinstance(info, types.BoolType)

    from msgspec import inspect as types

    bounded(types.type_info(kind))
