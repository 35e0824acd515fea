"""What a job's machines may ask of the node they live in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from p2p_node.core.credit import CreditBook
from p2p_node.core.market import Market
from p2p_node.core.rooms import Rooms
from protocols.crypto import Crypto
from protocols.effects import Effect
from protocols.envelope import Signed
from protocols.messages import Body, Offer
from protocols.standing import Standings

if TYPE_CHECKING:
    from p2p_node.core.disputes import Disputes

__all__ = ["Surroundings"]

B = TypeVar("B", bound=Body)


class Surroundings(Protocol):
    """The node, as a requester's or an executor's machine sees it."""

    network: str
    crypto: Crypto
    secret: bytes
    standings: Standings
    connected: set[bytes]
    market: Market
    rooms: Rooms
    credit: CreditBook
    disputes: Disputes

    def sign(self, body: B) -> Signed[B]:
        """Seal a body with this peer's key."""
        ...

    def seek(self, offer: Signed[Offer], now_ms: int) -> list[Effect]:
        """Look for those who could do a job; nothing if they are known. `Job.sought` ends the search."""
        ...

    def route(self, identifier: bytes, owner: Any) -> None:
        """Deliver messages that name ``identifier`` to ``owner``."""
        ...
