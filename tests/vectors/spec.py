"""The specification once more, by hand: docs/protocol.md in msgpack, PyNaCl and BLAKE3.

It imports nothing of ours, so that an error in our codec or hashing can't hide behind itself.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import msgpack
from blake3 import blake3
from nacl.signing import SigningKey, VerifyKey

__all__ = [
    "blind_digest",
    "chunk_leaf",
    "drawn_chunks",
    "electorate_root",
    "envelope_of",
    "from_json",
    "is_drawn",
    "merkle_root",
    "message_id",
    "open_envelope",
    "pack",
    "peer_id",
    "tagged",
    "u64",
    "units_digest",
    "weighted_climb",
]


def u64(number: int) -> bytes:
    return number.to_bytes(8, "little")


def tagged(tag: str, *parts: bytes) -> bytes:
    joined = b"".join(u64(len(part)) + part for part in (tag.encode("utf-8"), *parts))
    return blake3(joined).digest()


def from_json(value: Any) -> Any:
    """A vector's JSON as what msgpack packs."""
    if isinstance(value, dict):
        return bytes.fromhex(value["hex"])
    if isinstance(value, list):
        return [from_json(part) for part in value]
    return value


def pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def message_id(network: str, kind: str, version: int, signer: bytes, body: bytes) -> bytes:
    return tagged("p2p-node/message/1", network.encode(), kind.encode(), bytes([version]), signer, body)


def envelope_of(network: str, kind: str, version: int, seed: bytes, body: bytes) -> bytes:
    key = SigningKey(seed)
    identifier = message_id(network, kind, version, bytes(key.verify_key), body)
    signature = key.sign(b"p2p-node/envelope/1\x00" + identifier).signature
    return pack([network, kind, version, bytes(key.verify_key), body, signature])


def open_envelope(raw: bytes) -> tuple[str, str, int, bytes, list[Any], bytes]:
    """(network, kind, version, signer, fields, id); raises if the signature doesn't hold."""
    network, kind, version, signer, body, signature = msgpack.unpackb(raw, raw=False, strict_map_key=True)
    identifier = message_id(network, kind, version, signer, body)
    VerifyKey(signer).verify(b"p2p-node/envelope/1\x00" + identifier, signature)
    return network, kind, version, signer, msgpack.unpackb(body, raw=False), identifier


def peer_id(key: bytes) -> str:
    alphabet = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
    raw = bytes([0x00, 0x24, 0x08, 0x01, 0x12, 0x20]) + key
    number, text = int.from_bytes(raw, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        text = alphabet[digit] + text
    return "1" + text  # One leading zero byte.


def units_digest(units: list[int]) -> bytes:
    return tagged("p2p-node/units/1", b"".join(unit.to_bytes(4, "little") for unit in units))


def chunk_leaf(
    executor: bytes, award_id: bytes, segment: int, chunk: int, salt: bytes, digest: bytes
) -> bytes:
    return tagged("p2p-node/chunk-leaf/1", executor, award_id, u64(segment), u64(chunk), salt, digest)


def blind_digest(verifier: bytes, root: bytes, chunk: int, digest: bytes, nonce: bytes) -> bytes:
    return tagged("p2p-node/blind-digest/1", verifier, root, u64(chunk), digest, nonce)


def _top(leaves: list[bytes]) -> bytes:
    """RFC 6962's recursion: the left part is the largest power of two below the count."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while 2 * split < len(leaves):
        split *= 2
    return tagged("p2p-node/merkle-node/1", _top(leaves[:split]), _top(leaves[split:]))


def merkle_root(leaves: list[bytes]) -> bytes:
    return tagged("p2p-node/merkle-root/1", u64(len(leaves)), _top(leaves))


def _weighted_top(members: list[tuple[bytes, int]]) -> tuple[bytes, int]:
    if len(members) == 1:
        key, weight = members[0]
        return tagged("p2p-node/electorate-leaf/1", key, u64(weight)), weight
    split = 1
    while 2 * split < len(members):
        split *= 2
    (left, lw), (right, rw) = _weighted_top(members[:split]), _weighted_top(members[split:])
    return tagged("p2p-node/electorate-node/1", left, u64(lw), right, u64(rw)), lw + rw


def electorate_root(members: list[tuple[bytes, int]]) -> bytes:
    top, weight = _weighted_top(sorted(members))
    return tagged("p2p-node/electorate-root/1", u64(len(members)), u64(weight), top)


def weighted_climb(key: bytes, count: int, proof: list[Any]) -> bytes:
    """The root to which [index, weight, [[digest, weight], ...]] leads."""
    index, weight, siblings = proof
    node = tagged("p2p-node/electorate-leaf/1", key, u64(weight))
    waiting, width = list(siblings), count
    while width > 1:
        if index ^ 1 < width:
            digest, beside = waiting.pop(0)
            ours, theirs = (node, u64(weight)), (digest, u64(beside))
            pair = (*theirs, *ours) if index % 2 else (*ours, *theirs)
            node, weight = tagged("p2p-node/electorate-node/1", *pair), weight + beside
        index, width = index // 2, -(-width // 2)
    assert not waiting
    return tagged("p2p-node/electorate-root/1", u64(count), u64(weight), node)


def is_drawn(beta: bytes, *, weight: int, total: int, expected_milli: int, widening: int) -> bool:
    chance = Fraction(expected_milli, 1000) * 2**widening * Fraction(weight, total)
    return bool(Fraction(int.from_bytes(beta, "big"), 2**512) < chance)


def drawn_chunks(beta: bytes, *, chunks: int, samples: int) -> list[int]:
    """Floyd's sampling over the words of tagged(beta, counter)."""
    words: list[int] = []
    for counter in range(1_000):
        block = tagged("p2p-node/sortition-chunks/1", beta, u64(counter))
        words += [int.from_bytes(block[i : i + 8], "little") for i in (0, 8, 16, 24)]
    if samples >= chunks:
        return list(range(chunks))
    chosen: set[int] = set()
    for last in range(chunks - samples, chunks):
        bound = last + 1
        word = words.pop(0)
        while word >= 2**64 // bound * bound:
            word = words.pop(0)
        chosen.add(last if word % bound in chosen else word % bound)
    return sorted(chosen)
