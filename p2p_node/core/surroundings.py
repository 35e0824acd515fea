"""What a job's machines may ask of the node they live in."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from protocols.auction import Candidate
from protocols.crypto import Crypto
from protocols.envelope import Signed
from protocols.messages import Bid, Body, Offer
from protocols.standing import Standings
from verification.electorate import Electorate

__all__ = ["Surroundings"]

B = TypeVar("B", bound=Body)


class Surroundings(Protocol):
    """The node, as a requester's or an executor's machine sees it."""

    network: str
    crypto: Crypto
    secret: bytes
    standings: Standings
    connected: set[bytes]

    def sign(self, body: B) -> Signed[B]:
        """Seal a body with this peer's key."""
        ...

    def appraise(self, peer: bytes, bid: Bid) -> tuple[int, int]:
        """(penalty in micro-units, corrected eta in ms) of a bid."""
        ...

    def posted_candidates(self, offer: Signed[Offer], now_ms: int) -> list[Candidate]:
        """Peers whose standing ask fits an offer, best first."""
        ...

    def electorate(self, offer: Offer, executor: bytes, now_ms: int) -> Electorate | None:
        """Everybody known who could verify, without the two parties; None if nobody."""
        ...

    def route(self, identifier: bytes, owner: Any) -> None:
        """Deliver messages that name ``identifier`` to ``owner``."""
        ...
