"""Signed messages: who said what, on which network, and not one bit else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.codec import decode, encode
from protocols.crypto import verify_ed25519
from protocols.envelope import Signed, open_envelope, seal
from protocols.errors import BadSignature, Malformed, Oversized, PeerFault, UnknownKind, WrongNetwork
from protocols.messages import Bid, BidSeal, Body, Refusal
from tests.support.keys import CRYPTO, keyring
from tests.vectors import spec

SEALED = seal(BidSeal(bytes(32), b"\x01" * 32), network="here", key=keyring(1))


def reopened(raw: bytes, **changes: Any) -> Signed[Any]:
    return open_envelope(raw, **({"network": "here", "crypto": CRYPTO} | changes))


def by_hand(**changes: Any) -> bytes:
    """An envelope whose fields were changed after it was signed."""
    names = ("network", "kind", "version", "signer", "body", "signature")
    fields = dict(zip(names, spec.msgpack.unpackb(SEALED.raw, raw=False), strict=True))
    return spec.pack(list((fields | changes).values()))


def test_what_was_sealed_opens() -> None:
    assert reopened(SEALED.raw) == SEALED
    assert reopened(SEALED.raw, expect=BidSeal).body == SEALED.body
    assert SEALED.signer == keyring(1).public


@given(position=st.integers(0, len(SEALED.raw) - 1), bit=st.integers(0, 7))
def test_no_bit_can_flip(position: int, bit: int) -> None:
    flipped = bytearray(SEALED.raw)
    flipped[position] ^= 1 << bit
    with pytest.raises(PeerFault):
        reopened(bytes(flipped))


@given(data=st.binary(max_size=300))
def test_random_bytes_are_a_peers_fault(data: bytes) -> None:
    with pytest.raises(PeerFault):
        reopened(data)


@pytest.mark.parametrize("end", [0, 1, 40, len(SEALED.raw) - 1])
def test_a_cut_message_is_malformed(end: int) -> None:
    with pytest.raises(Malformed):
        reopened(SEALED.raw[:end])


def test_each_fault_has_its_type() -> None:
    with pytest.raises(WrongNetwork, match="for network 'here', this is 'there'"):
        reopened(SEALED.raw, network="there")
    with pytest.raises(UnknownKind, match="kind 'hello' version 1"):
        reopened(by_hand(kind="hello"))
    with pytest.raises(UnknownKind, match="version 2"):
        reopened(by_hand(version=2))
    with pytest.raises(Malformed, match="expected 'bid', got 'bid-seal'"):
        reopened(SEALED.raw, expect=Bid)
    with pytest.raises(BadSignature):
        reopened(by_hand(signer=keyring(2).public))
    with pytest.raises(BadSignature):
        reopened(by_hand(signature=bytes(64)))
    with pytest.raises(BadSignature):
        reopened(by_hand(body=SEALED.raw))
    with pytest.raises(Oversized):
        reopened(SEALED.raw, bytes_max=len(SEALED.raw) - 1)


def test_an_unknown_kind_costs_nobody() -> None:
    assert UnknownKind.points == 0
    assert BadSignature.points > PeerFault.points


def test_a_signed_body_must_still_be_canonical() -> None:
    key = keyring(1)
    seed = spec.tagged("p2p-node/test-key/1", (1).to_bytes(8, "little"))
    body = encode(SEALED.body)
    assert spec.envelope_of("here", "bid-seal", 1, seed, body) == SEALED.raw
    for wrong in (body + b"\0", body[:-1], b"\xdc\x00\x02" + body[1:], b""):
        raw = spec.envelope_of("here", "bid-seal", 1, seed, wrong)
        _, _, _, signer, packed, signature = spec.msgpack.unpackb(raw, raw=False)
        identifier = spec.message_id("here", "bid-seal", 1, signer, packed)
        assert verify_ed25519(key.public, b"p2p-node/envelope/1\0" + identifier, signature)
        with pytest.raises(Malformed):
            reopened(raw)


@given(
    st.lists(
        st.tuples(st.text(max_size=8), st.text(max_size=8), st.integers(0, 255), st.binary(max_size=8)),
        min_size=2,
        max_size=2,
        unique=True,
    )
)
def test_ids_bind_every_field_and_their_bounds(pair: list[tuple[str, str, int, bytes]]) -> None:
    ids = {spec.message_id(n, k, v, bytes(32), b) for n, k, v, b in pair}
    assert len(ids) == 2


def test_the_id_leaves_the_signature_out() -> None:
    """A second signature for one statement makes no second message."""
    assert spec.open_envelope(SEALED.raw)[-1] == SEALED.id
    assert spec.message_id("here", "bid-seal", 1, SEALED.signer, encode(SEALED.body)) == SEALED.id


def test_a_signature_never_covers_32_bare_bytes() -> None:
    """The VRF hashes bare points with the same key, so every signed message has a prefix."""
    signature = spec.msgpack.unpackb(SEALED.raw, raw=False)[-1]
    assert not verify_ed25519(SEALED.signer, SEALED.id, signature)


@given(text=st.text(max_size=64).filter(lambda t: len(t) > 0))
def test_text_survives_whatever_the_script(text: str) -> None:
    body: Body = Refusal(bytes(32), text, text)
    sealed = seal(body, network="here", key=keyring(2))
    assert reopened(sealed.raw).body == body
    assert decode(encode(body), Refusal) == body
