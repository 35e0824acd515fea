"""Reads each gossip message once for a whole world: what it says is the same for every peer.

Whether it is news, late or unwelcome still is each peer's own judgement. A message that breaks a rule
is read anew by each of them, since faults aren't remembered.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache

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
        # In place of the method: one call less for each peer that hears a message.
        self.envelope = lru_cache(REMEMBERED)(super().envelope)  # type: ignore[method-assign]
        # Newcomers are sent the same adverts by one neighbour after another.
        self.frame = lru_cache(REMEMBERED)(super().frame)  # type: ignore[method-assign]
        self._notices: OrderedDict[bytes, tuple[Contract, Signed[Commitment]]] = OrderedDict()
        self._accusation = lru_cache(REMEMBERED)(super().accusation)

    def notice(self, message: Signed[CommitmentNotice]) -> tuple[Contract, Signed[Commitment]]:
        """As `GossipReader.notice`."""
        known = self._notices.get(message.id)
        if known is None:
            known = self._notices[message.id] = super().notice(message)
            if len(self._notices) > REMEMBERED:
                self._notices.popitem(last=False)
        return known

    def accusation(self, message: Signed[FraudProof]) -> Accusation:
        """As `GossipReader.accusation`."""
        return self._accusation(message)
