"""What is owed, and that it was heard."""

from __future__ import annotations

from typing import ClassVar

from protocols.messages.fields import Body, Digest, Key, Small, Uint

__all__ = ["Voucher", "VoucherReceipt"]


class Voucher(Body, frozen=True):
    """The payer owes the payee ``settled_micros`` in all on this lane; each voucher replaces the last."""

    KIND: ClassVar[str] = "voucher"

    lane: Digest
    """The award's id: one lane for each contract and payee."""
    payee: Key
    sequence: Small
    settled_micros: Uint
    pending_micros: Uint
    matures_ms: Uint
    evidence: Digest
    """The commitment whose verdict made this due."""


class VoucherReceipt(Body, frozen=True):
    """The payee has the voucher and finds it right."""

    KIND: ClassVar[str] = "voucher-receipt"

    voucher_id: Digest
    settled_micros: Uint
