"""What an executor and its verifiers commit to before either sees the other's result.

The executor's leaf hides its chunk digest behind a salt, so a published root shows nothing to
copy. A verifier blinds its own digest behind a nonce until the executor has opened the leaf. Each
digest names who made it, so one party's commitment is worthless in another's hands.
"""

from __future__ import annotations

from protocols.digest import DIGEST_BYTES, tagged
from protocols.limits import INTEGER_MAX

__all__ = ["SALT_BYTES", "SECRET_BYTES", "blind_digest", "chunk_leaf", "chunk_salt"]

SALT_BYTES = 32
SECRET_BYTES = 32
_KEY_BYTES = 32


def chunk_leaf(
    *, executor: bytes, job_id: bytes, segment: int, chunk: int, salt: bytes, digest: bytes
) -> bytes:
    """The Merkle leaf of one chunk of a result.

    Args:
        executor: 32-byte key of the peer that computed the chunk.
        job_id: the job, as its messages name it.
        segment: number of the segment in the job, from 0.
        chunk: number of the chunk in the segment, from 0.
        salt: 32 bytes from `chunk_salt`.
        digest: 32-byte digest of the chunk's result.

    Returns:
        32 bytes.

    Raises:
        ValueError: a field has another length, or a number is negative or above 2**63 - 1.
    """
    return tagged(
        "p2p-node/chunk-leaf/1",
        _exactly("executor", executor, _KEY_BYTES),
        job_id,
        _number("segment", segment),
        _number("chunk", chunk),
        _exactly("salt", salt, SALT_BYTES),
        _exactly("digest", digest, DIGEST_BYTES),
    )


def chunk_salt(secret: bytes, job_id: bytes, segment: int, chunk: int) -> bytes:
    """The salt of one chunk, derived, so that a restart can still open every leaf.

    Args:
        secret: 32 random bytes that never leave this peer. Opened salts say nothing about it.
        job_id: the job, as its messages name it.
        segment: number of the segment in the job, from 0.
        chunk: number of the chunk in the segment, from 0.

    Returns:
        32 bytes.

    Raises:
        ValueError: the secret is not 32 bytes, or a number is negative or above 2**63 - 1.
    """
    return tagged(
        "p2p-node/chunk-salt/1",
        _exactly("secret", secret, SECRET_BYTES),
        job_id,
        _number("segment", segment),
        _number("chunk", chunk),
    )


def blind_digest(*, verifier: bytes, root: bytes, chunk: int, digest: bytes, nonce: bytes) -> bytes:
    """A verifier's commitment to the digest that it recomputed.

    The verifier's key is inside, so that a copied commitment can't be opened by the copier.

    Args:
        verifier: 32-byte key of the verifier.
        root: 32-byte root of the segment that is checked.
        chunk: number of the chunk in the segment, from 0.
        digest: 32-byte digest that the verifier computed.
        nonce: 32 random bytes, shown at the reveal.

    Returns:
        32 bytes.

    Raises:
        ValueError: a field has another length, or the number is negative or above 2**63 - 1.
    """
    return tagged(
        "p2p-node/blind-digest/1",
        _exactly("verifier", verifier, _KEY_BYTES),
        _exactly("root", root, DIGEST_BYTES),
        _number("chunk", chunk),
        _exactly("digest", digest, DIGEST_BYTES),
        _exactly("nonce", nonce, SALT_BYTES),
    )


def _exactly(name: str, value: bytes, length: int) -> bytes:
    if len(value) != length:
        raise ValueError(f"{name} must be {length} bytes, got {len(value)}")
    return value


def _number(name: str, value: int) -> bytes:
    if not 0 <= value <= INTEGER_MAX:
        raise ValueError(f"{name} must be in 0..{INTEGER_MAX}, got {value}")
    return value.to_bytes(8, "little")
