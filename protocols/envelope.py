"""Signed messages.

An envelope is (network, kind, version, signer, body, signature). Its id is a tagged hash over the
length-prefixed fields, and the signature is over that id: never over a re-encoded object. The id
leaves the signature out, so a second signature for the same statement doesn't make a new message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar, cast

import msgspec

from protocols.codec import Wire, decode, encode
from protocols.crypto import Crypto, KeyPair
from protocols.digest import tagged
from protocols.errors import BadSignature, Malformed, UnknownKind, WrongNetwork
from protocols.limits import ENVELOPE_BYTES_MAX, KIND_BYTES_MAX, NETWORK_NAME_BYTES_MAX
from protocols.messages import KINDS, Body, Digest, Key

__all__ = ["Signed", "network_of", "open_envelope", "seal"]

B = TypeVar("B", bound=Body)
B_co = TypeVar("B_co", bound=Body, covariant=True)


class _Envelope(Wire, frozen=True):
    network: Annotated[str, msgspec.Meta(max_length=NETWORK_NAME_BYTES_MAX)]
    kind: Annotated[str, msgspec.Meta(max_length=KIND_BYTES_MAX)]
    version: Annotated[int, msgspec.Meta(ge=0, le=255)]
    signer: Key
    body: bytes
    signature: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]


@dataclass(frozen=True, slots=True)
class Signed(Generic[B_co]):
    """A message whose signature has been checked (or made): its bytes, id, signer and body."""

    raw: bytes
    id: Digest
    signer: Key
    body: B_co


_SIGNED_PREFIX = b"p2p-node/envelope/1\0"
"""Comes before the id under every signature: the VRF hashes bare 32-byte points with the same key."""


def _message_id(network: str, kind: str, version: int, signer: bytes, body: bytes) -> bytes:
    return tagged("p2p-node/message/1", network.encode(), kind.encode(), bytes([version]), signer, body)


def seal(body: B, *, network: str, key: KeyPair) -> Signed[B]:
    """Sign ``body`` with ``key`` for ``network``."""
    packed = encode(body)
    kind, version = body.KIND, body.VERSION
    identifier = _message_id(network, kind, version, key.public, packed)
    raw = encode(_Envelope(network, kind, version, key.public, packed, key.sign(_SIGNED_PREFIX + identifier)))
    return Signed(raw, identifier, key.public, body)


def network_of(raw: bytes, *, bytes_max: int = ENVELOPE_BYTES_MAX) -> str:
    """The network that an envelope says it is for; nothing else of it is checked.

    Raises:
        Malformed: no envelope, or too large a one.
    """
    return decode(raw, _Envelope, bytes_max=bytes_max).network


def open_envelope(
    raw: bytes,
    *,
    network: str,
    crypto: Crypto,
    expect: type[B] | None = None,
    bytes_max: int = ENVELOPE_BYTES_MAX,
) -> Signed[B]:
    """Read and check one signed message.

    Args:
        raw: the envelope's bytes.
        network: the network it must be for.
        crypto: judges the signature.
        expect: the only body accepted, or None for any known one.
        bytes_max: size bound of the envelope.

    Raises:
        Malformed: bytes that aren't the canonical encoding of an envelope or its body, or not the
            expected kind.
        WrongNetwork: signed for another network.
        UnknownKind: a kind or version we don't know.
        BadSignature: the signature doesn't hold.
    """
    envelope = decode(raw, _Envelope, bytes_max=bytes_max)
    if envelope.network != network:
        raise WrongNetwork(f"message is for network {envelope.network!r}, this is {network!r}")
    kind = KINDS.get((envelope.kind, envelope.version))
    if kind is None:
        raise UnknownKind(f"kind {envelope.kind!r} version {envelope.version} is unknown")
    if expect is not None and kind is not expect:
        raise Malformed(f"expected {expect.KIND!r}, got {envelope.kind!r}")
    identifier = _message_id(
        envelope.network, envelope.kind, envelope.version, envelope.signer, envelope.body
    )
    # The signature comes before the body: an unsigned stranger can't make us parse much.
    if not crypto.verify(envelope.signer, _SIGNED_PREFIX + identifier, envelope.signature):
        raise BadSignature(f"signature of {envelope.kind!r} doesn't hold for its signer")
    body = decode(envelope.body, kind, bytes_max=bytes_max)
    return Signed(raw, identifier, envelope.signer, cast(B, body))
