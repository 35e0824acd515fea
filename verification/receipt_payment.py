"""What a receipt says was paid: every voucher has its verdict, and every verdict its voucher.

Amounts follow from the terms alone. Within one lane vouchers are cumulative, so they are put in the
order of their sequence numbers, which is the order in which the verdicts came, and each must add
exactly what its own verdict made due.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from protocols.envelope import Signed
from protocols.identity import peer_id
from protocols.messages import Voucher, VoucherReceipt
from verification.receipt_report import Reader, require

__all__ = ["PaymentBook"]


@dataclass(frozen=True, slots=True)
class _Entry:
    step: str
    voucher: Signed[Voucher]
    amount_micros: int


@dataclass(slots=True)
class PaymentBook:
    """The vouchers of one contract, by payee."""

    lane: bytes
    reader: Reader
    _entries: dict[bytes, list[_Entry]] = field(default_factory=dict)

    def read(
        self,
        raw: bytes,
        receipt_raw: bytes,
        *,
        payee: bytes,
        amount_micros: int,
        evidence: bytes,
        is_owed: bool | None,
        step: str,
    ) -> bool:
        """Read one voucher that may be, must be or must not be there.

        Args:
            raw: the voucher, or empty bytes.
            receipt_raw: the payee's receipt of it, or empty bytes.
            payee: whom it must pay.
            amount_micros: what it must add to the lane.
            evidence: id of the commitment whose verdict makes it due.
            is_owed: whether it must be there; None if it may.
            step: names the voucher in errors.

        Returns:
            Whether it is there.

        Raises:
            ReceiptError: missing, undue, not the requester's, or about something else.
        """
        if is_owed is not None and (raw != b"") != is_owed:
            missing = "the voucher is missing" if is_owed else "nothing was due, but here is a voucher"
            require(False, step, missing)
        if raw == b"":
            require(receipt_raw == b"", step, "a voucher is confirmed that isn't here")
            return False
        voucher = self.reader.open_own(raw, Voucher, step)
        require(voucher.body.lane == self.lane, step, "its lane isn't this contract's")
        require(voucher.body.payee == payee, step, f"it pays another peer than {peer_id(payee)}")
        require(voucher.body.evidence == evidence, step, "its evidence is another commitment")
        if receipt_raw != b"":
            self._read_receipt(receipt_raw, voucher, f"{step} receipt")
        self._entries.setdefault(payee, []).append(_Entry(step, voucher, amount_micros))
        return True

    def _read_receipt(self, raw: bytes, voucher: Signed[Voucher], step: str) -> None:
        receipt = self.reader.open(raw, VoucherReceipt, step)
        require(receipt.signer == voucher.body.payee, step, "it isn't signed by the payee")
        require(receipt.body.voucher_id == voucher.id, step, "it confirms another voucher")
        require(
            receipt.body.settled_micros == voucher.body.settled_micros,
            step,
            f"settled_micros={receipt.body.settled_micros} isn't the voucher's {voucher.body.settled_micros}",
        )

    def balance(self) -> dict[bytes, int]:
        """What each payee is owed under this contract, in micro-units, once all amounts are checked.

        Raises:
            ReceiptError: a lane skips a voucher, or one adds another amount than was due.
        """
        return {payee: self._balance_lane(entries) for payee, entries in self._entries.items()}

    def _balance_lane(self, entries: list[_Entry]) -> int:
        owed = 0
        in_order = sorted(entries, key=lambda entry: entry.voucher.body.sequence)
        for sequence, entry in enumerate(in_order, start=1):
            body = entry.voucher.body
            require(
                body.sequence == sequence,
                entry.step,
                f"sequence={body.sequence} must be {sequence}: the lane's other vouchers aren't here",
            )
            owed += entry.amount_micros
            require(
                body.settled_micros == owed,
                entry.step,
                f"settled_micros={body.settled_micros} must be {owed}",
            )
        return owed
