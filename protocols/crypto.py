"""The two ports through which keys are used.

The core signs through `KeyPair` and judges through `Crypto`. Real peers get Ed25519 and ECVRF;
the simulator, which plays thousands of peers, gets a faster pair with the same contract.
"""

from __future__ import annotations

from typing import Protocol

from nacl import bindings
from nacl.exceptions import BadSignatureError

__all__ = ["SIGNATURE_BYTES", "Crypto", "KeyPair", "verify_ed25519"]

SIGNATURE_BYTES = 64


class KeyPair(Protocol):
    """One peer's own key."""

    @property
    def public(self) -> bytes:
        """The 32-byte public key that names the peer."""
        ...

    def sign(self, message: bytes) -> bytes:
        """A 64-byte signature over ``message``."""
        ...

    def vrf_prove(self, alpha: bytes) -> bytes:
        """The proof from which everybody computes this key's one random output for ``alpha``."""
        ...


class Crypto(Protocol):
    """Judging what others signed."""

    def verify(self, key: bytes, message: bytes, signature: bytes) -> bool:
        """Whether ``signature`` is ``key``'s over ``message``."""
        ...

    def vrf_output(self, key: bytes, alpha: bytes, proof: bytes) -> bytes | None:
        """The 64-byte output that ``proof`` shows for ``alpha``, or None if it shows nothing."""
        ...


def verify_ed25519(key: bytes, message: bytes, signature: bytes) -> bool:
    """Ed25519 as RFC 8032 has it, strict on canonical scalars (libsodium)."""
    if len(signature) != SIGNATURE_BYTES or len(key) != 32:
        return False
    try:
        bindings.crypto_sign_open(signature + message, key)
    except (BadSignatureError, ValueError):
        return False
    return True
