"""Watching executors for contradictions: every commitment heard is compared with the one before.

Whoever notices convicts at once and tells the others, who need nothing but the proof.
"""

from __future__ import annotations

from p2p_node.core.surroundings import Surroundings
from protocols.effects import Effect, Notify, Persist, Publish
from protocols.envelope import Signed
from protocols.messages import Commitment, Equivocation
from verification.equivocation import CommitmentWatch, Contradiction, open_equivocation

__all__ = ["Watch"]


class Watch:
    """One peer's watch over everybody's commitments."""

    def __init__(self, node: Surroundings) -> None:
        self._node = node
        self._commitments = CommitmentWatch()

    def hear_commitment(self, commitment: Signed[Commitment]) -> list[Effect]:
        """Compare a commitment, whose contract holds, with what its signer said before."""
        proof = self._commitments.hear(commitment)
        if proof is None or self._node.standings.of(commitment.signer).convicted:
            return []
        message = self._node.sign(proof)
        contradiction = open_equivocation(proof, network=self._node.network, crypto=self._node.crypto)
        return [*self.hear_equivocation(message, contradiction), Publish("convictions", message)]

    def hear_equivocation(self, message: Signed[Equivocation], contradiction: Contradiction) -> list[Effect]:
        """Convict on a proof that holds; there is nothing to recompute."""
        accused = contradiction.accused
        self._node.standings.convict(accused)
        details = {"peer": accused, "role": "executor", "segment": contradiction.segment}
        return [
            Persist("convictions", accused, message.raw),
            Notify(b"", "convicted", details),
        ]
