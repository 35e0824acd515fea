"""How many peers the network has, by what one of them hears.

While a network is small everybody's advert reaches everybody, and whoever counts them knows. In a large one a
lot decides, minute by minute, whose advert does: the digest of the minute and the key. About
`ADVERTS_PER_MINUTE` win it, whatever the size, so how many did tells how many took part.
"""

from __future__ import annotations

from statistics import median

from protocols.digest import tagged

__all__ = ["ADVERTS_PER_MINUTE", "MINUTE_MS", "Census", "has_won"]

MINUTE_MS = 60_000
ADVERTS_PER_MINUTE = 64
"""Adverts that reach everybody, in a network that is larger than `COUNTED_MAX`."""

COUNTED_MAX = 256
"""Up to so many peers are counted one by one."""

SLACK = 4
"""An advert passes although by our own count it lost, if a network smaller by this would have let it."""

GRACE_MS = 20_000
"""Until the adverts of a minute have all arrived."""

CLAIMS_MAX = 16
CLAIMS_COUNT_MS = 3 * MINUTE_MS
LOT = 1 << 64


def lot_of(key: bytes, sent_ms: int) -> int:
    """The lot of a peer in the minute of a time, in [0, 2^64)."""
    minute = (sent_ms // MINUTE_MS).to_bytes(8, "little")
    return int.from_bytes(tagged("p2p-node/advert-lot/1", minute, key)[:8], "little")


def has_won(key: bytes, sent_ms: int, *, peers: int) -> bool:
    """Whether a peer's advert of this time goes to everybody, in a network of so many."""
    return peers <= COUNTED_MAX or lot_of(key, sent_ms) * peers < ADVERTS_PER_MINUTE * LOT


class Census:
    """One peer's count."""

    def __init__(self) -> None:
        self.peers = 0
        self._minutes: dict[int, set[bytes]] = {}
        self._counted_minute = -1
        self._claims: list[int] = []
        self._began_ms = -1

    def passes(self, key: bytes, sent_ms: int) -> bool:
        """Whether an advert may go to everybody, as far as we can tell."""
        return has_won(key, sent_ms, peers=self.peers // SLACK)

    def hear(self, key: bytes, sent_ms: int) -> None:
        """An advert came that goes to everybody."""
        if self.peers > COUNTED_MAX and has_won(key, sent_ms, peers=2 * self.peers):
            self._minutes.setdefault(sent_ms // MINUTE_MS, set()).add(key)

    def hear_claim(self, peers: int) -> None:
        """A neighbour says how many there are: that counts until we have counted ourselves."""
        self._claims = [*self._claims, peers][-CLAIMS_MAX:]

    def review(self, now_ms: int, *, known: int) -> int:
        """How many there are.

        Args:
            now_ms: the time.
            known: adverts that we have.
        """
        if self._began_ms < 0:
            self._began_ms = now_ms
        claimed = int(median(self._claims)) if self._claims else 0
        if now_ms < self._began_ms + CLAIMS_COUNT_MS and claimed > COUNTED_MAX:
            self.peers = max(known, claimed)
        elif self.peers <= COUNTED_MAX:
            self.peers = known
        last = (now_ms - GRACE_MS) // MINUTE_MS - 1
        if last > self._counted_minute:
            # The minute in which we came, or began to count, isn't whole.
            if (
                self._counted_minute >= 0
                and self.peers > COUNTED_MAX
                and now_ms >= self._began_ms + CLAIMS_COUNT_MS
            ):
                won = len(self._minutes.get(last, ()))
                self.peers = (self.peers + 2 * self.peers * won // ADVERTS_PER_MINUTE) // 2
            self._counted_minute = last
            self._minutes = {minute: keys for minute, keys in self._minutes.items() if minute > last}
        return self.peers
