"""What each requester may owe this peer before it stops working for it.

A requester nobody has seen pay gets a little credit, and what it has settled is added to it. So one
that takes results and never pays costs this peer a bounded amount for each key it comes with, and an
honest one that cancels now and then notices nothing. The book is this peer's own and isn't gossiped.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from protocols.limits import CREDIT_ACCOUNTS_MAX

__all__ = ["CREDIT_CHUNKS", "CreditBook"]

CREDIT_CHUNKS = 32
"""Chunks of work that a stranger may owe, at the price of the contract in hand."""


@dataclass(slots=True)
class _Account:
    delivered_micros: int = 0
    settled_micros: int = 0

    @property
    def unpaid_micros(self) -> int:
        return self.delivered_micros - self.settled_micros


class CreditBook:
    """One peer's book over all requesters, bounded."""

    def __init__(self) -> None:
        self._accounts: OrderedDict[bytes, _Account] = OrderedDict()

    def deliver(self, requester: bytes, amount_micros: int) -> None:
        """Book work that ``requester`` owes ``amount_micros`` for, if it passes."""
        self._kept(requester).delivered_micros += amount_micros

    def settle(self, requester: bytes, amount_micros: int) -> None:
        """Book a voucher of ``requester`` for ``amount_micros`` more."""
        self._kept(requester).settled_micros += amount_micros

    def owed_micros(self, requester: bytes) -> int:
        """What it hasn't paid of what was delivered."""
        account = self._accounts.get(requester)
        return account.unpaid_micros if account else 0

    def is_good(self, requester: bytes, chunk_micros: int) -> bool:
        """Whether to work for ``requester`` on credit, where a chunk costs ``chunk_micros``."""
        account = self._accounts.get(requester)
        if account is None or account.unpaid_micros <= 0:
            return True
        return account.unpaid_micros < CREDIT_CHUNKS * chunk_micros + account.settled_micros

    def _kept(self, requester: bytes) -> _Account:
        account = self._accounts.setdefault(requester, _Account())
        self._accounts.move_to_end(requester)
        while len(self._accounts) > CREDIT_ACCOUNTS_MAX:
            self._accounts.popitem(last=False)
        return account
