"""Real keys behind the core's two ports: Ed25519 signatures and ECVRF draws with one identity."""

from __future__ import annotations

from nacl.signing import SigningKey

from protocols.crypto import verify_ed25519
from verification import ecvrf

__all__ = ["SEED_BYTES", "Keyring", "RealCrypto"]

SEED_BYTES = 32


class Keyring:
    """One peer's identity; it implements `protocols.crypto.KeyPair`.

    Args:
        seed: the 32-byte Ed25519 secret seed.

    Raises:
        ValueError: the seed isn't 32 bytes.
    """

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError(f"an Ed25519 seed has {SEED_BYTES} bytes, got {len(seed)}")
        self._seed = seed
        self._signing_key = SigningKey(seed)
        self._public = bytes(self._signing_key.verify_key)

    @property
    def public(self) -> bytes:
        """The 32-byte public key that names the peer."""
        return self._public

    def sign(self, message: bytes) -> bytes:
        """A 64-byte signature over ``message``."""
        return bytes(self._signing_key.sign(message).signature)

    def vrf_prove(self, alpha: bytes) -> bytes:
        """The 80-byte proof of this key's one random output for ``alpha``."""
        return ecvrf.prove(self._seed, alpha)


class RealCrypto:
    """Judges Ed25519 signatures and ECVRF proofs; it implements `protocols.crypto.Crypto`."""

    def verify(self, key: bytes, message: bytes, signature: bytes) -> bool:
        """Whether ``signature`` is ``key``'s over ``message``."""
        return verify_ed25519(key, message, signature)

    def vrf_output(self, key: bytes, alpha: bytes, proof: bytes) -> bytes | None:
        """The 64-byte output that ``proof`` shows for ``alpha``, or None if it shows nothing."""
        return ecvrf.verify(key, alpha, proof)
