"""Where things are in the directory: every peer has a place, everything that can be looked for a key.

Places and keys are digests, spread evenly over one space whose distance is the exclusive or. A place
follows from a peer's key, so nobody chooses where it is but by trying out keys. A key tells nothing of
what it names to a peer that doesn't know it already.

Source: P. Maymounkov and D. Mazières, Kademlia (2002), section 2.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from protocols.digest import tagged
from protocols.envelope import Signed
from protocols.errors import Rejected
from protocols.identity import peer_id
from protocols.limits import (
    ADDRESS_BYTES_MAX,
    CLOCK_SKEW_MS,
    PROVIDER_RECORD_LIFETIME_MS_MAX,
)
from protocols.messages import ProviderRecord

__all__ = [
    "ability_key",
    "blob_key",
    "check_current",
    "check_record",
    "distance",
    "model_key",
    "model_name_key",
    "place_of",
    "ranges_of",
    "workload_key",
]

_IPV4_BITS = 24
_IPV6_BITS = 48


@lru_cache(maxsize=65_536)
def place_of(key: bytes) -> bytes:
    """The place of the peer with this public key."""
    return tagged("p2p-node/place/1", key)


def ability_key(workload: str, model: bytes) -> bytes:
    """Under which peers are found that run this model."""
    return tagged("p2p-node/key-ability/1", workload.encode(), model)


def workload_key(workload: str) -> bytes:
    """Under which peers are found that run any model of this workload."""
    return tagged("p2p-node/key-workload/1", workload.encode())


def model_key(model: bytes) -> bytes:
    """Under which peers are found that give away the files of the model with this digest."""
    return tagged("p2p-node/key-model/1", model)


def model_name_key(name: str) -> bytes:
    """Under which peers are found that give away the files of what they call so."""
    return tagged("p2p-node/key-model-name/1", name.encode())


def blob_key(digest: bytes) -> bytes:
    """Under which peers are found that give away the blob with this digest."""
    return tagged("p2p-node/key-blob/1", digest)


def distance(one: bytes, other: bytes) -> int:
    """How far two places or keys are apart."""
    return int.from_bytes(one, "big") ^ int.from_bytes(other, "big")


def check_record(message: Signed[ProviderRecord]) -> None:
    """Whether a signed record can be believed at any time.

    Raises:
        Rejected: it is to live too long, or an address isn't its signer's.
    """
    record = message.body
    lifetime = record.expires_ms - record.sent_ms
    if not 0 < lifetime <= PROVIDER_RECORD_LIFETIME_MS_MAX:
        raise Rejected(
            f"provider record's lifetime of {lifetime} ms must be in (0, {PROVIDER_RECORD_LIFETIME_MS_MAX}]"
        )
    # Or a record could send strangers to knock at a victim's door.
    ending = f"/p2p/{peer_id(message.signer)}"
    for address in record.addresses:
        if not address.endswith(ending) or len(address.encode()) > ADDRESS_BYTES_MAX:
            raise Rejected(f"address {address[:80]!r} must end in {ending}, in {ADDRESS_BYTES_MAX} bytes")


def check_current(record: ProviderRecord, now_ms: int) -> None:
    """Whether a record may be handed on now.

    Raises:
        Rejected: it is from the future, or has expired for longer than clocks differ.
    """
    if record.sent_ms > now_ms + CLOCK_SKEW_MS:
        raise Rejected(f"provider record sent_ms={record.sent_ms} is in the future")
    if record.expires_ms + CLOCK_SKEW_MS <= now_ms:
        raise Rejected(f"provider record expires_ms={record.expires_ms} is past")


@lru_cache(maxsize=65_536)
def ranges_of(addresses: tuple[str, ...]) -> frozenset[str]:
    """The address ranges that these multiaddrs are in; those of private networks are in none.

    Keys are free and addresses are not quite. A name counts as the range of its last two labels.
    """
    ranges = set()
    for address in addresses:
        parts = address.split("/")
        host = parts[2] if len(parts) > 2 else ""
        try:
            ip = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            ranges.add(".".join(host.lower().rstrip(".").split(".")[-2:]))
            continue
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        if not ip.is_private:
            bits = _IPV4_BITS if ip.version == 4 else _IPV6_BITS
            ranges.add(str(ipaddress.ip_network((ip, bits), strict=False)))
    return frozenset(ranges)
