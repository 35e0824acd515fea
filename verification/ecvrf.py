"""ECVRF-EDWARDS25519-SHA512-TAI (RFC 9381, suite 3), on libsodium's group operations.

A verifiable random function turns a key and an input ``alpha`` into 64 bytes ``beta`` that only
the key's holder can compute, that nobody can choose, and that everybody can check with a proof.
The key is a peer's Ed25519 identity, so no second key has to be announced.

Points are held to a stricter rule than the RFC's: the public key and the proof's point must be
canonical and lie in the prime-order subgroup. Honest proofs always do; what is refused is a second
encoding of the same draw.

One key serves signatures and draws, and both derive their nonce as SHA-512(key half || message).
They collide only for a signed message that is exactly the 32 bytes of a curve point this module
derived, so whoever holds the key must sign only messages with a fixed prefix, never 32 bare bytes.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha512
from typing import NamedTuple

from nacl import bindings as sodium
from nacl.exceptions import CryptoError

__all__ = ["BETA_BYTES", "PROOF_BYTES", "proof_to_hash", "prove", "verify"]

PROOF_BYTES = 80
BETA_BYTES = 64

_SUITE = b"\x03"
_ENCODE_TO_CURVE = b"\x01"
_CHALLENGE = b"\x02"
_PROOF_TO_HASH = b"\x03"
_BACK = b"\x00"

_POINT_BYTES = 32
_CHALLENGE_BYTES = 16
_SCALAR_BYTES = 32
_ORDER = 2**252 + 27742317777372353535851937790883648493
_FIELD = 2**255 - 19
_ZERO = bytes(_SCALAR_BYTES)
_IDENTITY = (1).to_bytes(_POINT_BYTES, "little")

# Enough for every peer of a simulated swarm in one process; a real peer needs one entry.
_EXPANDED_KEYS_MAX = 1024


class _ExpandedKey(NamedTuple):
    scalar: bytes
    nonce_prefix: bytes
    public_key: bytes


def prove(seed: bytes, alpha: bytes) -> bytes:
    """The proof of this key's draw for ``alpha``.

    Args:
        seed: the 32-byte Ed25519 secret seed.
        alpha: the input, any length.

    Returns:
        80 bytes: the point gamma, the challenge c (16 bytes), the scalar s. Deterministic.

    Raises:
        ValueError: the seed is not 32 bytes.

    Source: RFC 9381 section 5.1; nonce as in section 5.4.2.2.
    """
    key = _expand(seed)
    hashed = _encode_to_curve(key.public_key, alpha)
    gamma = _scale(key.scalar, hashed)
    nonce = sodium.crypto_core_ed25519_scalar_reduce(sha512(key.nonce_prefix + hashed).digest())
    challenge = _challenge(key.public_key, hashed, gamma, _scale_base(nonce), _scale(nonce, hashed))
    # libsodium's scalars, not Python's integers: their time does not depend on the secret.
    product = sodium.crypto_core_ed25519_scalar_mul(_widen(challenge), key.scalar)
    return gamma + challenge + sodium.crypto_core_ed25519_scalar_add(nonce, product)


def verify(public_key: bytes, alpha: bytes, proof: bytes) -> bytes | None:
    """The draw that ``proof`` shows, or None where it shows nothing.

    Args:
        public_key: the 32-byte Ed25519 public key.
        alpha: the input, any length.
        proof: as `prove` returns it.

    Returns:
        The 64-byte beta; None for a wrong length, a point that is not canonical, not on the curve
        or outside the prime-order subgroup, a scalar at or above the group order, or a proof that
        does not hold. No input bytes make it raise.

    Source: RFC 9381 section 5.3, with the key validation of section 5.4.5.
    """
    if len(public_key) != _POINT_BYTES or not sodium.crypto_core_ed25519_is_valid_point(public_key):
        return None
    parts = _split(proof)
    if parts is None:
        return None
    gamma, challenge, scalar = parts
    hashed = _encode_to_curve(public_key, alpha)
    wide = _widen(challenge)
    u = sodium.crypto_core_ed25519_sub(_scale_base(scalar), _scale(wide, public_key))
    v = sodium.crypto_core_ed25519_sub(_scale(scalar, hashed), _scale(wide, gamma))
    if _challenge(public_key, hashed, gamma, u, v) != challenge:
        return None
    return _beta(gamma)


def proof_to_hash(proof: bytes) -> bytes:
    """The draw of one's own proof, without checking that it holds.

    Args:
        proof: as `prove` returns it. For a stranger's proof use `verify`.

    Returns:
        The 64-byte beta.

    Raises:
        ValueError: the proof does not have the form of one.

    Source: RFC 9381 section 5.2.
    """
    parts = _split(proof)
    if parts is None:
        raise ValueError(f"proof must be {PROOF_BYTES} bytes of valid point and scalars, got {proof.hex()}")
    return _beta(parts[0])


@lru_cache(maxsize=_EXPANDED_KEYS_MAX)
def _expand(seed: bytes) -> _ExpandedKey:
    """RFC 8032 section 5.1.5. The scalar is reduced mod the order, which leaves its multiples alone."""
    if len(seed) != 32:
        raise ValueError(f"seed must be 32 bytes, got {len(seed)}")
    digest = sha512(seed).digest()
    clamped = bytearray(digest[:32])
    clamped[0] &= 248
    clamped[31] &= 127
    clamped[31] |= 64
    scalar = sodium.crypto_core_ed25519_scalar_reduce(bytes(clamped) + bytes(32))
    return _ExpandedKey(scalar, digest[32:], _scale_base(scalar))


def _split(proof: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Gamma, c and s, or None where one of them is not allowed."""
    if len(proof) != PROOF_BYTES:
        return None
    gamma = proof[:_POINT_BYTES]
    challenge = proof[_POINT_BYTES : _POINT_BYTES + _CHALLENGE_BYTES]
    scalar = proof[_POINT_BYTES + _CHALLENGE_BYTES :]
    if int.from_bytes(scalar, "little") >= _ORDER:
        return None
    if not sodium.crypto_core_ed25519_is_valid_point(gamma):
        return None
    return gamma, challenge, scalar


def _encode_to_curve(public_key: bytes, alpha: bytes) -> bytes:
    """Try and increment, RFC 9381 section 5.4.1.1. Half of all candidates are points."""
    prefix = sha512(_SUITE + _ENCODE_TO_CURVE + public_key + alpha)
    for counter in range(256):
        attempt = prefix.copy()
        attempt.update(bytes([counter]) + _BACK)
        point = _decode_times_cofactor(attempt.digest()[:_POINT_BYTES])
        if point is not None and point != _IDENTITY:
            return point
    raise AssertionError("256 candidates in a row were no points, which has probability 2**-256")


def _decode_times_cofactor(encoding: bytes) -> bytes | None:
    """Eight times the encoded point, or None if RFC 8032 section 5.1.3 does not decode it."""
    y = int.from_bytes(encoding, "little") & ((1 << 255) - 1)
    sign = encoding[31] >> 7
    # libsodium reduces a y at or above the field's prime and ignores the sign of x = 0; the RFC
    # refuses both.
    if y >= _FIELD or (sign and y in (1, _FIELD - 1)):
        return None
    try:
        doubled = sodium.crypto_core_ed25519_add(encoding, encoding)
    except CryptoError:
        return None
    return _double(_double(doubled))


def _challenge(*points: bytes) -> bytes:
    """RFC 9381 section 5.4.3."""
    return sha512(_SUITE + _CHALLENGE + b"".join(points) + _BACK).digest()[:_CHALLENGE_BYTES]


def _beta(gamma: bytes) -> bytes:
    cleared = _double(_double(_double(gamma)))
    return sha512(_SUITE + _PROOF_TO_HASH + cleared + _BACK).digest()


def _double(point: bytes) -> bytes:
    return sodium.crypto_core_ed25519_add(point, point)


def _scale(scalar: bytes, point: bytes) -> bytes:
    # libsodium refuses the zero scalar, which a stranger's proof may hold.
    return _IDENTITY if scalar == _ZERO else sodium.crypto_scalarmult_ed25519_noclamp(scalar, point)


def _scale_base(scalar: bytes) -> bytes:
    return _IDENTITY if scalar == _ZERO else sodium.crypto_scalarmult_ed25519_base_noclamp(scalar)


def _widen(challenge: bytes) -> bytes:
    return challenge + bytes(_SCALAR_BYTES - _CHALLENGE_BYTES)
