"""A lane: what one payer owes one payee under one contract, as cumulative vouchers.

Each voucher carries the whole amount owed so far, so a lost or repeated voucher changes nothing:
the newest counts. The payer journals a voucher before it is sent; the payee accepts none that pays
less than the one before, or more than was delivered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from protocols.envelope import Signed
from protocols.errors import Rejected
from protocols.limits import CLOCK_SKEW_MS
from protocols.messages import Voucher

__all__ = ["MATURITY_MS", "PayeeLane", "PayerLane"]

MATURITY_MS = 24 * 3_600_000
"""A voucher may be settled from this long after it is written."""


class PayerLane:
    """The payer's book of one lane."""

    def __init__(self, lane: bytes, payee: bytes) -> None:
        self.lane = lane
        self.payee = payee
        self.sequence = 0
        self.settled_micros = 0

    def pay(
        self, amount_micros: int, *, evidence: bytes, now_ms: int, sign: Callable[[Any], Signed[Any]]
    ) -> Signed[Voucher]:
        """The next voucher, for ``amount_micros`` more than before.

        Args:
            amount_micros: what the newly verified work costs, at least 0.
            evidence: id of the commitment whose verdict made it due.
            now_ms: the payer's clock.
            sign: seals a body with the payer's key.

        Raises:
            ValueError: a negative amount.
        """
        if amount_micros < 0:
            raise ValueError(f"amount_micros={amount_micros} must be >= 0")
        self.sequence += 1
        self.settled_micros += amount_micros
        voucher: Signed[Voucher] = sign(
            Voucher(
                lane=self.lane,
                payee=self.payee,
                sequence=self.sequence,
                settled_micros=self.settled_micros,
                pending_micros=0,
                matures_ms=now_ms + MATURITY_MS,
                evidence=evidence,
            )
        )
        return voucher


class PayeeLane:
    """The payee's book of one lane."""

    def __init__(self, lane: bytes, *, payer: bytes, payee: bytes) -> None:
        self.lane = lane
        self.payer = payer
        self.payee = payee
        self.delivered_micros = 0
        self.settled_micros = 0
        self.sequence = 0
        self.best: Signed[Voucher] | None = None

    def deliver(self, amount_micros: int) -> None:
        """Book work that was delivered and is worth ``amount_micros`` once verified."""
        self.delivered_micros += amount_micros

    def accept(self, message: Signed[Voucher], now_ms: int) -> bool:
        """Take a voucher.

        Returns:
            Whether it is newer than the best one so far (False for a repeat).

        Raises:
            Rejected: it is somebody else's, pays less than before, or more than was delivered.
        """
        voucher = message.body
        if message.signer != self.payer or voucher.lane != self.lane or voucher.payee != self.payee:
            raise Rejected("voucher is for another lane")
        if voucher.sequence <= self.sequence:
            return False
        if voucher.settled_micros < self.settled_micros:
            raise Rejected(
                f"voucher settled_micros={voucher.settled_micros} is below {self.settled_micros} paid before"
            )
        # More than delivered would make our own books look false to an auditor.
        if voucher.settled_micros + voucher.pending_micros > self.delivered_micros:
            raise Rejected(
                f"voucher settled_micros={voucher.settled_micros} exceeds {self.delivered_micros} delivered"
            )
        if voucher.matures_ms > now_ms + MATURITY_MS + CLOCK_SKEW_MS:
            raise Rejected(f"voucher matures_ms={voucher.matures_ms} is too far ahead")
        self.sequence = voucher.sequence
        self.settled_micros = voucher.settled_micros
        self.best = message
        return True
