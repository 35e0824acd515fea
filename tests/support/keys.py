"""Peers with real keys, each from a small number."""

from __future__ import annotations

from functools import lru_cache

from p2p_node.core.keyring import Keyring, RealCrypto
from protocols.digest import tagged

__all__ = ["CRYPTO", "keyring"]

CRYPTO = RealCrypto()


@lru_cache(maxsize=256)
def keyring(number: int) -> Keyring:
    """The test identity with this number, the same in every run."""
    return Keyring(tagged("p2p-node/test-key/1", number.to_bytes(8, "little")))
