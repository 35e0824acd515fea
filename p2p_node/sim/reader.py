"""Reads each gossip message once for a whole world: what it says is the same for every peer.

Whether it is news, late or unwelcome still is each peer's own judgement. A message that breaks a rule
is read anew by each of them, since faults aren't remembered.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from p2p_node.core.gossip import GossipReader
from protocols.crypto import Crypto
from protocols.envelope import Signed
from protocols.messages import Commitment, CommitmentNotice, FraudProof
from verification.evidence import Contract
from verification.fraud import Accusation

__all__ = ["RememberingReader"]

REMEMBERED = 16_384


class RememberingReader(GossipReader):
    """A `GossipReader` that many simulated peers share."""

    def __init__(self, *, network: str, crypto: Crypto) -> None:
        super().__init__(network=network, crypto=crypto)
        self._envelope = lru_cache(REMEMBERED)(super().envelope)
        self._notice = lru_cache(REMEMBERED)(super().notice)
        self._accusation = lru_cache(REMEMBERED)(super().accusation)

    def envelope(self, data: bytes) -> Signed[Any]:
        """As `GossipReader.envelope`."""
        return self._envelope(data)

    def notice(self, message: Signed[CommitmentNotice]) -> tuple[Contract, Signed[Commitment]]:
        """As `GossipReader.notice`."""
        return self._notice(message)

    def accusation(self, message: Signed[FraudProof]) -> Accusation:
        """As `GossipReader.accusation`."""
        return self._accusation(message)
