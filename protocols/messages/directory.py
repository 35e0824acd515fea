"""Who has what, beyond those one knows: what peers ask and tell about keys that are far from both."""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta

from protocols import limits
from protocols.messages.fields import Body, Digest, Text, Uint

__all__ = ["Closest", "FindClosest", "ProviderRecord", "StoreRecord"]

RecordRaw = Annotated[bytes, Meta(max_length=limits.PROVIDER_RECORD_BYTES_MAX)]


class ProviderRecord(Body, frozen=True):
    """The signer has what ``key`` names, and is reached at ``addresses``. Strangers keep it for others."""

    KIND: ClassVar[str] = "provider-record"

    key: Digest
    """See `protocols.places`; the signer's own place if it tells of nothing but where the signer is."""
    sent_ms: Uint
    expires_ms: Uint
    addresses: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=limits.ADDRESSES_PER_PEER_MAX)]


class FindClosest(Body, frozen=True):
    """Asks for the peers closest to a key, and for what is kept under it."""

    KIND: ClassVar[str] = "find-closest"

    key: Digest
    number: Uint
    """Makes each question another message."""
    with_records: bool
    sender: RecordRaw
    """The record of the sender's place, or empty if it isn't to be asked itself."""


class Closest(Body, frozen=True):
    """Answers `FindClosest`."""

    KIND: ClassVar[str] = "closest"

    find_id: Digest
    sender: RecordRaw
    """The record of the sender's place, or empty."""
    peers: Annotated[tuple[RecordRaw, ...], Meta(max_length=limits.BUCKET_PEERS)]
    """Records of their places: where a peer is, nobody else can say."""
    records: Annotated[tuple[RecordRaw, ...], Meta(max_length=limits.RECORDS_PER_ANSWER_MAX)]


class StoreRecord(Body, frozen=True):
    """Asks to keep a provider's record for others."""

    KIND: ClassVar[str] = "store-record"

    record: RecordRaw
