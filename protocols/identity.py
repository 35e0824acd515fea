"""A peer's name: its Ed25519 public key, and the text form that libp2p gives it.

The text is base58btc of the identity multihash of the protobuf-encoded key, as the libp2p
peer-id specification defines it for Ed25519; it always begins with ``12D3KooW``.
"""

from __future__ import annotations

__all__ = ["KEY_BYTES", "peer_id", "peer_key", "short_id"]

KEY_BYTES = 32
_PREFIX = bytes.fromhex("002408011220")
_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_INDEX = {character: value for value, character in enumerate(_ALPHABET)}
_TEXT_CHARACTERS_MAX = 64


def peer_id(key: bytes) -> str:
    """The libp2p peer id of an Ed25519 public key of 32 bytes.

    Raises:
        ValueError: the key isn't 32 bytes.
    """
    if len(key) != KEY_BYTES:
        raise ValueError(f"an Ed25519 public key has {KEY_BYTES} bytes, got {len(key)}")
    raw = _PREFIX + key
    number = int.from_bytes(raw, "big")
    digits = []
    while number:
        number, digit = divmod(number, 58)
        digits.append(_ALPHABET[digit])
    # Each leading zero byte is written as the first letter of the alphabet.
    leading = len(raw) - len(raw.lstrip(b"\0"))
    return "1" * leading + "".join(reversed(digits))


def peer_key(text: str) -> bytes:
    """The 32-byte public key in an Ed25519 peer id.

    Raises:
        ValueError: the text isn't the canonical peer id of an Ed25519 key.
    """
    if not text or len(text) > _TEXT_CHARACTERS_MAX or any(c not in _INDEX for c in text):
        raise ValueError(f"{text[:80]!r} isn't a base58 peer id")
    number = 0
    for character in text:
        number = number * 58 + _INDEX[character]
    raw = number.to_bytes(max(1, (number.bit_length() + 7) // 8), "big")
    raw = b"\0" * (len(text) - len(text.lstrip("1"))) + raw
    key = raw[len(_PREFIX) :]
    if not raw.startswith(_PREFIX) or len(key) != KEY_BYTES:
        raise ValueError(f"{text!r} isn't the peer id of an Ed25519 key")
    return key


def short_id(key: bytes) -> str:
    """The last eight characters of the peer id: enough to tell peers apart in a table."""
    return peer_id(key)[-8:]
