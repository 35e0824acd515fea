"""What the requester owes under one contract, to the executor and to each verifier.

A voucher is journalled before it is sent, and sent until its payee confirms it; the receipt carries
both.
"""

from __future__ import annotations

from collections.abc import Callable

from p2p_node.core.surroundings import Surroundings
from protocols.effects import Effect, Notify, Persist, Send
from protocols.envelope import Signed
from protocols.errors import Rejected
from protocols.lane import PayerLane
from protocols.messages import Voucher, VoucherReceipt

__all__ = ["Payouts"]

DELIVERY_MS = 24 * 3_600_000
"""How long a voucher is sent again to a payee that doesn't confirm it: it may be down for a while."""


class Payouts:
    """All lanes of one award, on the payer's side."""

    def __init__(
        self, node: Surroundings, award_id: bytes, *, job_id: bytes, route: Callable[[bytes], None]
    ) -> None:
        self.vouchers: dict[tuple[bytes, bytes], Signed[Voucher]] = {}
        """By (commitment id, payee)."""
        self._node = node
        self._award_id = award_id
        self._job_id = job_id
        self._route = route
        self._lanes: dict[bytes, PayerLane] = {}
        self._held: dict[bytes, frozenset[bytes]] = {}
        self._due: list[tuple[bytes, int, bytes]] = []
        self._receipts: dict[bytes, Signed[VoucherReceipt]] = {}
        self.touched: set[bytes] = set()
        """Commitments of which something was paid or confirmed since somebody looked."""

    def pay(self, payee: bytes, amount: int, commitment_id: bytes, now_ms: int) -> list[Effect]:
        """Owe ``payee`` ``amount`` micro-units more, for its part in a commitment.

        While the payee is party to a dispute under this contract nothing is signed; see `hold`.
        """
        if any(payee in parties for parties in self._held.values()):
            self._due.append((payee, amount, commitment_id))
            return []
        lane = self._lanes.setdefault(payee, PayerLane(self._award_id, payee))
        voucher = lane.pay(amount, evidence=commitment_id, now_ms=now_ms, sign=self._node.sign)
        self.vouchers[(commitment_id, payee)] = voucher
        self.touched.add(commitment_id)
        self._route(voucher.id)
        return [
            Persist("vouchers", self._award_id + payee, voucher.raw),
            Notify(self._job_id, "paid", {"peer": payee, "settled_micros": lane.settled_micros}),
            Send(payee, voucher, now_ms + DELIVERY_MS),
        ]

    def hold(self, commitment_id: bytes, parties: frozenset[bytes]) -> None:
        """Withhold what becomes due to the parties of a dispute about a commitment until it is settled.

        It is their bond: the loser isn't paid for the disputed segment at all.
        """
        self._held[commitment_id] = parties

    def release(self, commitment_id: bytes, now_ms: int) -> list[Effect]:
        """A commitment's disputes are settled: pay what became due meanwhile."""
        self._held.pop(commitment_id, None)
        due, self._due = self._due, []
        # Whoever is party to another dispute goes on waiting.
        return [effect for payment in due for effect in self.pay(*payment, now_ms)]

    def release_all(self, now_ms: int) -> list[Effect]:
        """The attempt is over, so nothing more will be settled."""
        self._held.clear()
        return self.release(b"", now_ms)

    def has(self, voucher_id: bytes) -> bool:
        """Whether a voucher of this id is ours."""
        return any(voucher.id == voucher_id for voucher in self.vouchers.values())

    def hear_receipt(self, message: Signed[VoucherReceipt]) -> None:
        """A payee confirms a voucher.

        Raises:
            Rejected: not the voucher's payee, or another amount.
        """
        for (commitment_id, _), voucher in self.vouchers.items():
            if voucher.id != message.body.voucher_id:
                continue
            if message.signer != voucher.body.payee:
                raise Rejected("voucher receipt isn't the payee's")
            if message.body.settled_micros != voucher.body.settled_micros:
                raise Rejected(
                    f"voucher receipt settled_micros={message.body.settled_micros} isn't the voucher's "
                    f"{voucher.body.settled_micros}"
                )
            self._receipts[voucher.id] = message
            self.touched.add(commitment_id)

    @property
    def is_acknowledged(self) -> bool:
        """Whether every payee has confirmed its vouchers."""
        return all(voucher.id in self._receipts for voucher in self.vouchers.values())

    def raws(self, commitment_id: bytes, payee: bytes) -> tuple[bytes, bytes]:
        """The bytes of a voucher and of its confirmation; empty for what there isn't."""
        voucher = self.vouchers.get((commitment_id, payee))
        if voucher is None:
            return b"", b""
        receipt = self._receipts.get(voucher.id)
        return voucher.raw, receipt.raw if receipt else b""
