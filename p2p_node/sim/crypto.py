"""Fast stand-ins for Ed25519 and ECVRF, with the same contract, for simulated worlds.

A signature is a keyed hash whose key the whole simulation can derive from the public key. Nobody in
a simulation forges, so this is enough, and fifty times faster; tests hold it to the same rules as
the real pair.
"""

from __future__ import annotations

from functools import lru_cache

from protocols.digest import tagged

__all__ = ["SimCrypto", "SimKeys"]

_REMEMBERED = 65_536
"""Everybody hears the same gossip: in one process a signature need be computed once."""


@lru_cache(maxsize=_REMEMBERED)
def _signature(public: bytes, message: bytes) -> bytes:
    return tagged("p2p-node/sim-signature/1", public, message) * 2


@lru_cache(maxsize=_REMEMBERED)
def _vrf_proof(public: bytes, alpha: bytes) -> bytes:
    return (tagged("p2p-node/sim-vrf/1", public, alpha) * 3)[:80]


class SimKeys:
    """One simulated peer's key pair."""

    def __init__(self, seed: bytes) -> None:
        self.public = tagged("p2p-node/sim-public/1", seed)

    def sign(self, message: bytes) -> bytes:
        """A 64-byte keyed hash."""
        return _signature(self.public, message)

    def vrf_prove(self, alpha: bytes) -> bytes:
        """80 bytes, the same for the same key and ``alpha``."""
        return _vrf_proof(self.public, alpha)


class SimCrypto:
    """Judges what `SimKeys` made."""

    def verify(self, key: bytes, message: bytes, signature: bytes) -> bool:
        """Whether the keyed hash is the one for this key and message."""
        return signature == _signature(key, message)

    def vrf_output(self, key: bytes, alpha: bytes, proof: bytes) -> bytes | None:
        """64 bytes spread by hashing the proof, or None if it isn't this key's."""
        if proof != _vrf_proof(key, alpha):
            return None
        return tagged("p2p-node/sim-vrf-output/1", proof, b"0") + tagged(
            "p2p-node/sim-vrf-output/1", proof, b"1"
        )
