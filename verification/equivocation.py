"""Two commitments for one segment: a contradiction that convicts its signer without any arithmetic.

An executor that may say two things can show the requester one root and the drawn verifiers another,
or roll the draw again until it likes it. Whoever hears both has the proof in hand.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from protocols.crypto import Crypto
from protocols.envelope import Signed, open_envelope
from protocols.errors import Rejected
from protocols.limits import COMMITMENTS_WATCHED_MAX
from protocols.messages import Commitment, Equivocation

__all__ = ["CommitmentWatch", "Contradiction", "open_equivocation"]


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Who contradicted itself, and about what."""

    accused: bytes
    award_id: bytes
    segment: int


def open_equivocation(proof: Equivocation, *, network: str, crypto: Crypto) -> Contradiction:
    """Check a proof of equivocation.

    Raises:
        PeerFault: a part isn't a properly signed commitment, or they don't contradict each other.
    """
    first = open_envelope(proof.first, network=network, crypto=crypto, expect=Commitment)
    second = open_envelope(proof.second, network=network, crypto=crypto, expect=Commitment)
    if first.signer != second.signer:
        raise Rejected("the two commitments have different signers")
    about = (first.body.award_id, first.body.segment)
    if about != (second.body.award_id, second.body.segment):
        raise Rejected("the two commitments are for different segments")
    # One order, so that a pair is one statement; and one commitment isn't two.
    if first.id >= second.id:
        raise Rejected("the first commitment's id must be below the second's")
    return Contradiction(first.signer, *about)


class CommitmentWatch:
    """The newest commitments heard, by signer, award and segment; bounded."""

    def __init__(self) -> None:
        self._heard: OrderedDict[tuple[bytes, bytes, int], Signed[Commitment]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._heard)

    def hear(self, commitment: Signed[Commitment]) -> Equivocation | None:
        """Remember a commitment; the proof, if another one for its segment was heard before."""
        key = (commitment.signer, commitment.body.award_id, commitment.body.segment)
        known = self._heard.setdefault(key, commitment)
        while len(self._heard) > COMMITMENTS_WATCHED_MAX:
            self._heard.popitem(last=False)
        if known.id == commitment.id:
            return None
        first, second = sorted((known, commitment), key=lambda one: one.id)
        return Equivocation(first.raw, second.raw)
